"""`ccelab report`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from . import options


def report(
    variant: Annotated[list[str] | None, typer.Option(help=options.VARIANTS)] = None,
    head: options.HeadOption = "real",
    tokens: options.TokensOption = None,
    vocabulary: options.VocabularyOption = None,
    hidden: options.HiddenOption = None,
    text: options.TextOption = None,
    dtype: options.DtypeOption = options.Dtype.bfloat16,
    device: options.DeviceOption = options.Device.auto,
    softcap: options.SoftcapOption = None,
    bias: Annotated[bool, typer.Option("--bias", help="Add a drawn bias to the logits, and measure dbias.")] = False,
    seed: options.SeedOption = 0,
    workers: options.WorkersOption = None,
    stages: Annotated[
        bool, typer.Option(help="Say which stage of the kernel errors come from, by emulating it.")
    ] = True,
    html: Annotated[bool, typer.Option(help="Draw report.html.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for report.json and report.html.")] = Path("out/report"),
) -> None:
    """Measure variants on a head against the oracle and their error budgets."""
    console = Console()
    place = options.choose_place(device)
    import torch

    from ccelab.kernels.variant import named
    from ccelab.reference import heads

    from ..laboratory import build_report
    from ..view import show

    try:
        chosen = named(variant or ["all"])
    except ValueError as error:
        options.fail(f"--variant: {error}")
    path = out / "report.json"
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        options.check_folder(out)
        vocabulary, hidden = options.drawn_shape(place, head, vocabulary, hidden)
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"head: {head}")
            found = heads.resolve(
                head,
                tokens=tokens or options.TOKENS[place],
                vocabulary=vocabulary,
                hidden=hidden,
                text=text,
                seed=seed,
                dtype=getattr(torch, dtype.value),
                device=place,
            )
            made = build_report(
                found,
                chosen,
                softcap=softcap,
                bias=heads.draw_bias(found, seed) if bias else None,
                path=path,
                progress=lambda step: bar.update(task, description=step),
                workers=options.worker_count(workers, place),
                command=_command(
                    head=head,
                    tokens=tokens or options.TOKENS[place],
                    vocabulary=vocabulary,
                    hidden=hidden,
                    text=text,
                    dtype=dtype.value,
                    device=place,
                    softcap=softcap,
                    bias=bias,
                    seed=seed,
                ),
                by_stage=stages,
            )
            written = [path]
            if html:
                bar.update(task, description="drawing the page")
                written.append(options.draw_page(made, path))
    except KeyboardInterrupt:
        kept = f"{path} holds the variants that were measured" if path.exists() else "nothing was measured yet"
        console.print(f"stopped: {kept}", soft_wrap=True)
        raise typer.Exit(130) from None
    except options.FAILURES as error:
        options.fail(error)
    show(made, console)
    console.print(f"written: {' and '.join(map(str, written))}", highlight=False)
    if not all(result.within_budget for result in made.results):
        raise typer.Exit(1)


def _command(**chosen: object) -> str:
    """The command that measures the same head again, but for its variant: what is off or not given is left out."""
    words = ["ccelab", "report"]
    for name, value in chosen.items():
        if value is None or value is False or (name == "seed" and value == 0):
            continue
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return shlex.join(words)
