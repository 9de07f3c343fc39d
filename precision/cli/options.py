"""Options that several commands share, and how a command says that it was asked for something impossible."""

from __future__ import annotations

import errno
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from ..html.page import Shown

TOKENS = {"cpu": 64, "cuda": 1024}
VOCABULARY, HIDDEN = 4096, 256
"""Of a drawn head on a CPU, where the interpreter would take a quarter of an hour for each variant of a large one."""
MOST_WORKERS = 4  # each takes two gigabytes on the real head


class Dtype(StrEnum):
    """Storage dtypes of the kernels."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Device(StrEnum):
    """Where to run: auto is a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


HeadOption = Annotated[str, typer.Option("--head", help="real, planted:NAME, gaussian, or a saved head's FILE.")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="N; default 64 on a CPU, 1024 on a GPU.")]
VocabularyOption = Annotated[
    int | None, typer.Option("--vocabulary", min=1, help="V of a drawn head; default: its own, 4096 on a CPU.")
]
HiddenOption = Annotated[
    int | None,
    typer.Option("--hidden", min=1, help="D of a drawn head, 256 on a CPU; a real or saved one is lifted to a larger."),
]
TextOption = Annotated[
    Path | None, typer.Option("--text", help="Text for the real head; default: Python's help topics.")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Storage dtype of E, C and the gradients.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="auto takes a GPU where there is one.")]
SoftcapOption = Annotated[float | None, typer.Option("--softcap", help="Cap the logits: softcap * tanh(z / softcap).")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of planted and gaussian heads, a lift and a bias.")]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes that share the variants; default: cores, at most 4; 1 on a GPU."),
]


FAILURES = (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError)
"""What work raises where it was asked for something impossible: said in a line, without a traceback."""


def draw_page(shown: Shown, path: Path) -> Path:
    """The page of what is in the JSON file `path`, beside it. matplotlib is imported only now."""
    from ..html import write_page

    page = path.with_suffix(".html")
    write_page(shown, page)
    return page


def choose_place(device: Device) -> str:
    """cpu or cuda; to be called before anything imports triton."""
    if device is Device.cpu:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        fail("--device cuda: torch finds no GPU here; use --device auto or cpu")
    return "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"


def is_drawn(head: str) -> bool:
    """Whether it has any shape."""
    return head == "gaussian" or head.startswith("planted:")


def drawn_shape(place: str, head: str, vocabulary: int | None, hidden: int | None) -> tuple[int | None, int | None]:
    """V and D as asked for; of a drawn head on a CPU, what the interpreter can do."""
    if place == "cpu" and is_drawn(head):
        return vocabulary or VOCABULARY, hidden or HIDDEN
    return vocabulary, hidden


VARIANTS = "Preset, flag string, all (the presets) or every (all combinations); repeatable."


def check_folder(out: Path) -> None:
    """Before the work, whose results are for `out`.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    for place in (out, *out.absolute().parents):
        if place.exists():
            if not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
            if not os.access(place, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
            return


def worker_count(workers: int | None, place: str) -> int:
    return workers or (1 if place == "cuda" else min(os.cpu_count() or 1, MOST_WORKERS))


def said(error: Exception) -> str:
    """What went wrong, of files and folders without the system's numbers."""
    name = getattr(error, "filename", None)
    if name and isinstance(error, FileNotFoundError):
        return f"there is no file {name}"
    if name and isinstance(error, IsADirectoryError):
        return f"{name} is a folder, not a file"
    if name and isinstance(error, FileExistsError | NotADirectoryError):
        return f"{name} is a file, where a folder is needed"
    if name and isinstance(error, PermissionError):
        return f"{name} cannot be written to, or not be read: permission denied"
    return str(error)


def fail(message: str | Exception) -> NoReturn:
    """Says what is wrong and exits with 2."""
    if isinstance(message, Exception):
        message = said(message)
    Console(stderr=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    raise typer.Exit(2)
