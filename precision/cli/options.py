"""Options that several commands share, and how a command says that it was asked for something impossible."""

from __future__ import annotations

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
VocabularyOption = Annotated[int | None, typer.Option("--vocabulary", min=1, help="V of a planted or gaussian head.")]
HiddenOption = Annotated[
    int | None, typer.Option("--hidden", min=1, help="D; a real or saved head is lifted to a larger one.")
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


def worker_count(workers: int | None, place: str) -> int:
    return workers or (1 if place == "cuda" else min(os.cpu_count() or 1, MOST_WORKERS))


def fail(message: str) -> NoReturn:
    """Says what is wrong and exits with 2."""
    Console(stderr=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    raise typer.Exit(2)
