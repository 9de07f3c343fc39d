"""`ccelab sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..axes import MEANINGS, Axis
from . import options


def sweep(
    axis: Annotated[
        list[str],
        typer.Option(
            help="NAME=a,b,c or NAME=first:last in steps of a factor 2, such as eps=2^-8:2^-18; repeatable, all "
            f"combinations are measured. {'; '.join(f'{name}: {meaning}' for name, meaning in MEANINGS.items())}."
        ),
    ],
    variant: Annotated[list[str] | None, typer.Option(help=options.VARIANTS)] = None,
    head: options.HeadOption = "planted:gemma-alpaca",
    tokens: options.TokensOption = None,
    vocabulary: options.VocabularyOption = None,
    hidden: options.HiddenOption = None,
    text: options.TextOption = None,
    dtype: options.DtypeOption = options.Dtype.bfloat16,
    device: options.DeviceOption = options.Device.auto,
    softcap: options.SoftcapOption = None,
    bias: Annotated[bool, typer.Option("--bias", help="Add a drawn bias to the logits.")] = False,
    seed: options.SeedOption = 0,
    workers: options.WorkersOption = None,
    out: Annotated[
        Path, typer.Option(help="The file, written after every point; the same command goes on where it ends.")
    ] = Path("out/sweep.json"),
) -> None:
    """Measure variants as eps, N, V, D, the logits' scale or the number of tiles varies; resumes where it stopped."""
    console = Console()
    place = options.choose_place(device)
    from ccelab.kernels.variant import named

    from ..sweep import Settings
    from ..sweep import sweep as run_sweep
    from ..sweep_view import show

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        axes = [Axis.parse(given) for given in axis]
        for given in axes:
            if {"tokens": tokens, "vocabulary": vocabulary, "hidden": hidden}.get(given.name) is not None:
                raise ValueError(f"{given.name} is an axis: leave --{given.name} out")
        vocabulary, hidden = options.drawn_shape(place, head, vocabulary, hidden)
        settings = Settings(
            head=head,
            variants=tuple(map(str, named(variant or ["cce-kahan"]))),
            tokens=tokens or options.TOKENS[place],
            vocabulary=vocabulary,
            hidden=hidden,
            text=str(text) if text else None,
            dtype=dtype.value,
            device=place,
            softcap=softcap,
            bias=bias,
            seed=seed,
        )
        begun: list[int] = []
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"head: {head}", total=None)

            def advance(done: int, of: int, step: str) -> None:
                if done and not begun:
                    console.print(f"{done} of {of} points are in {out} already", highlight=False, soft_wrap=True)
                begun.append(done)
                bar.update(task, completed=done, total=of, description=step)

            made = run_sweep(
                settings,
                axes,
                out,
                progress=advance,
                workers=options.worker_count(workers, place),
            )
        page = options.draw_page(made, out)
    except KeyboardInterrupt:
        left = f"; {out} holds what was measured, the same command goes on from there" if out.exists() else ""
        console.print(f"stopped{left}", soft_wrap=True)
        raise typer.Exit(130) from None
    except options.FAILURES as error:
        options.fail(error)
    show(made, console)
    console.print(f"written: {out} and {page}", highlight=False, soft_wrap=True)
