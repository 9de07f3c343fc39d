"""`ccelab diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options

RULE = (
    "worse means beyond noise: 2 % and 3/sqrt(n) for averages over n elements, 25 % for extremes, 5 % for times, 1 % "
    "for memory, a tenth of the error for bias; --threshold replaces the percentages"
)


def diff(
    before: Annotated[Path, typer.Argument(help="The report to compare with.")],
    after: Annotated[Path, typer.Argument(help="The report that may be worse.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Compare this metric alone, such as normwise; repeatable.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0, help="Relative change that counts, such as 0.1, for every metric.")
    ] = None,
    every: Annotated[bool, typer.Option("--every", help="Also print what did not change.")] = False,
) -> None:
    """Compare two reports, regressions first. Exit status: 1 where something got worse, 2 for files that don't fit."""
    from ..diff import METRICS, Change
    from ..diff import diff as compare
    from ..report import Report
    from ..table import table

    console = Console()
    try:
        old, new = Report.read(before), Report.read(after)
        found = compare(old, new, metrics=metric or METRICS, threshold=threshold)
    except (OSError, ValueError) as error:
        options.fail(error)
    colours = {Change.worse: "bold red", Change.better: "green", Change.same: "dim"}
    rows = table("Changes", "", "variant", "output", "metric", "before", "after", "ratio", left=4)
    for delta in found:
        if delta.change is Change.same and not every:
            continue
        values = (x if isinstance(x, str) else f"{x:.3g}" for x in (delta.before, delta.after))
        ratio = "" if isinstance(delta.before, str) else f"{delta.ratio:.3f}"
        name = delta.variant.replace(",", ",\n ")
        rows.add_row(delta.change, name, delta.output, delta.metric, *values, ratio, style=colours[delta.change])
    counts = {change: sum(delta.change is change for delta in found) for change in Change}
    if rows.row_count:
        console.print(rows)
    console.print(", ".join(f"{n} {change}" for change, n in counts.items()), highlight=False)
    console.print(RULE, style="dim", highlight=False)
    for name, a, b in (
        ("device", old.provenance.device, new.provenance.device),
        ("torch", old.provenance.torch, new.provenance.torch),
        ("commit", old.provenance.commit, new.provenance.commit),
    ):
        if a != b:
            console.print(f"{name}: {a} before, {b} after", highlight=False)
    if counts[Change.worse]:
        raise typer.Exit(1)
