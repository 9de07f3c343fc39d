"""`ccelab bench`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..shapes import GRID, Shape
from ..table1 import HEAD, SHAPE
from . import options

SMALL = Shape(64, 2048, 64)
"""What the interpreter does in seconds, where no shape is asked for."""


def bench(
    variant: Annotated[list[str] | None, typer.Option(help=options.VARIANTS)] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(help="A peer's name (a wrong one lists all), or module:function; repeatable."),
    ] = None,
    table1: Annotated[bool, typer.Option("--table1", help="The rows of the paper's Table 1, at its shape.")] = False,
    head: options.HeadOption = HEAD,
    tokens: Annotated[int | None, typer.Option(min=1, help="N; default 64 on a CPU, 8192 on a GPU.")] = None,
    vocabulary: options.VocabularyOption = None,
    hidden: options.HiddenOption = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="N,V,D instead of the three above; repeatable, measured in turn.")
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help=f"{len(GRID)} shapes of models' heads, and the worst ratio over them.")
    ] = False,
    text: options.TextOption = None,
    dtype: options.DtypeOption = options.Dtype.bfloat16,
    device: options.DeviceOption = options.Device.auto,
    softcap: options.SoftcapOption = None,
    weighted: Annotated[
        bool, typer.Option("--weighted", help="A mean with weights of tokens, as of a masked or packed batch.")
    ] = False,
    energy: Annotated[
        bool, typer.Option("--energy", help="Joules of a call, too, by the counter of an NVIDIA GPU.")
    ] = False,
    seed: options.SeedOption = 0,
    repetitions: Annotated[int, typer.Option(min=2, help="Rounds that are timed, on a GPU.")] = 9,
    html: Annotated[bool, typer.Option(help="Draw bench.html.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.html.")] = Path("out/bench"),
) -> None:
    """Measure variants and other people's losses side by side: errors, and on a GPU times and memory. Exit status: 1
    where nothing could be measured."""
    console = Console()
    place = options.choose_place(device)
    import torch

    from ccelab.kernels.variant import named
    from ccelab.reference import heads

    from ..bench import Status
    from ..bench_view import show
    from ..contestant import gather
    from ..energy import Meter
    from ..side_by_side import side_by_side

    if not (variant or subject or table1):
        variant, subject = ["all"], ["torch"]
    path = out / "bench.json"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        names = map(str, named(variant or []))
        contestants = gather(names, subject or [], papers=table1)
        shapes = _shapes(place, head, Shape(tokens or 0, vocabulary, hidden), shape or [], grid, papers=table1)
        made_of = [
            partial(
                heads.resolve,
                head,
                tokens=n,
                vocabulary=v,
                hidden=d,
                text=text,
                seed=seed,
                dtype=getattr(torch, dtype.value),
                device=place,
            )
            for n, v, d in shapes
        ]
        if energy and place == "cpu":
            raise ValueError("--energy needs a GPU: a CPU has no counter of its own")
        meter = Meter(torch.device(place)) if energy else None
        options.check_folder(out)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"head: {head}")
            made = side_by_side(
                made_of,
                contestants,
                device=place,
                softcap=softcap,
                weighted=weighted,
                repetitions=repetitions,
                meter=meter,
                path=path,
                progress=lambda step: bar.update(task, description=step),
            )
            written = [path]
            if html:
                bar.update(task, description="drawing the page")
                written.append(options.draw_page(made, path))
    except KeyboardInterrupt:
        kept = f"{path} holds what was measured" if path.exists() else "nothing was measured yet"
        console.print(f"stopped: {kept}", soft_wrap=True)
        raise typer.Exit(130) from None
    except options.FAILURES as error:
        options.fail(error)
    show(made, console)
    console.print(f"written: {' and '.join(map(str, written))}", highlight=False, soft_wrap=True)
    if not any(row.status is Status.measured for place in made.places for row in place.rows):
        raise typer.Exit(1)


def _shapes(place: str, head: str, one: Shape, several: list[str], grid: bool, *, papers: bool) -> list[Shape]:
    """What is asked for, or what the place can do; of a drawn head for the paper's table, the paper's shape.

    Raises:
        ValueError: shapes are given in two ways, or the interpreter would take days for them.
    """
    if any(one) + bool(several) + grid > 1:
        raise ValueError("give the shape by --tokens, --vocabulary and --hidden, or by --shape, or by --grid")
    if grid and place == "cpu":
        raise ValueError("--grid needs a GPU: the interpreter would take days for a shape. Try --shape 64,2048,64")
    if grid:
        return list(GRID)
    if several:
        return [Shape.parse(text) for text in several]
    drawn = options.is_drawn(head)
    if place == "cuda":
        usual = SHAPE if papers and drawn else Shape(SHAPE.tokens)
        return [Shape(one.tokens or usual.tokens, one.vocabulary or usual.vocabulary, one.hidden or usual.hidden)]
    small = SMALL if drawn else Shape(SMALL.tokens)
    return [Shape(one.tokens or small.tokens, one.vocabulary or small.vocabulary, one.hidden or small.hidden)]
