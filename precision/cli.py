"""The `ccelab` command."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# The interpreter multiplies tiles of a few thousand numbers through numpy, where more threads only wait for each other.
# numpy reads this once, when it is imported, which no module above does.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

app = typer.Typer(
    help="How far is a fused cross-entropy kernel from the truth, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
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


@app.command()
def variants() -> None:
    """List the presets and the fields that a flag string may set."""
    from dataclasses import fields

    from ccelab.kernels.variant import LEGAL, PRESETS

    from .table import table

    names = [field.name for field in fields(PRESETS["cce"])]
    presets = table("Presets", "preset", *names, left=1 + len(names))
    for preset, variant in PRESETS.items():
        values = (getattr(variant, name) for name in names)
        presets.add_row(
            preset, *("default" if v is None else {True: "yes", False: "no"}.get(v, str(v)) for v in values)
        )
    legal = table("A flag string is PRESET(,field=value)*", "field", "values", left=2)
    for name, choices in LEGAL.items():
        legal.add_row(name, " | ".join({True: "yes", False: "no"}.get(v, str(v)) for v in choices))
    legal.add_row("eps", "2^-12, a decimal, or default: finfo(dtype).eps / 32")
    console = Console()
    console.print(presets, "", legal, "", sep="\n")
    console.print("For instance --variant cce-exact --variant cce,accumulate=hilo,eps=2^-14", highlight=False)


@app.command()
def report(
    variant: Annotated[
        list[str] | None,
        typer.Option(help="Preset, flag string, all (the presets) or every (all combinations); repeatable."),
    ] = None,
    head: Annotated[str, typer.Option(help="real, planted:NAME, gaussian, or a saved head's FILE.")] = "real",
    tokens: Annotated[int | None, typer.Option(min=1, help="N; default 64 on a CPU, 1024 on a GPU.")] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help="V of a planted or gaussian head.")] = None,
    hidden: Annotated[
        int | None, typer.Option(min=1, help="D; a real or saved head is lifted to a larger one.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="Text for the real head; default: Python's help topics.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Storage dtype of E, C and the gradients.")] = Dtype.bfloat16,
    device: Annotated[Device, typer.Option(help="auto takes a GPU where there is one.")] = Device.auto,
    softcap: Annotated[float | None, typer.Option(help="Cap the logits: softcap * tanh(z / softcap).")] = None,
    bias: Annotated[bool, typer.Option("--bias", help="Add a drawn bias to the logits, and measure dbias.")] = False,
    seed: Annotated[int, typer.Option(help="Of planted and gaussian heads, a lift and a bias.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share the variants; default: cores, at most 4; 1 on a GPU."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report.json.")] = Path("out/report"),
) -> None:
    """Measure variants on a head against the oracle and their error budgets."""
    console = Console()
    if device is Device.cpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        _fail("--device cuda: torch finds no GPU here; use --device auto or cpu")
    place = "cuda" if device is not Device.cpu and torch.cuda.is_available() else "cpu"

    from ccelab.kernels import PRESETS, Variant, every
    from ccelab.reference import heads

    from .laboratory import build_report
    from .view import show

    chosen: dict[Variant, None] = {}
    try:
        for name in variant or ["all"]:
            several = {"all": list(PRESETS.values()), "every": every()}
            chosen.update(dict.fromkeys(several[name] if name in several else [Variant.parse(name)]))
    except ValueError as error:
        _fail(f"--variant: {error}")
    path = out / "report.json"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        out.mkdir(parents=True, exist_ok=True)  # fails now, not after the work
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"head: {head}")
            found = heads.resolve(
                head,
                tokens=tokens or TOKENS[place],
                vocabulary=vocabulary,
                hidden=hidden,
                text=text,
                seed=seed,
                dtype=getattr(torch, dtype.value),
                device=place,
            )
            made = build_report(
                found,
                list(chosen),
                softcap=softcap,
                bias=heads.draw_bias(found, seed) if bias else None,
                path=path,
                progress=lambda step: bar.update(task, description=step),
                workers=workers or (1 if place == "cuda" else min(os.cpu_count() or 1, MOST_WORKERS)),
            )
    except KeyboardInterrupt:
        console.print(f"stopped; {path} holds the variants that were measured" if path.exists() else "stopped")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError) as error:
        _fail(str(error))
    show(made, console)
    console.print(f"written: {path}", highlight=False)
    if not all(result.within_budget for result in made.results):
        raise typer.Exit(1)


def _fail(message: str) -> None:
    Console(stderr=True).print(f"[bold red]error[/] {escape(message)}", highlight=False)
    raise typer.Exit(2)
