"""A sweep for the terminal."""

from __future__ import annotations

from rich.console import Console

from .axes import written
from .sweep import Sweep
from .table import table

LEGEND = (
    "dE, dC x: errors over what two unavoidable roundings cost.  budget: the element nearest to its error bound.  "
    "kept: percent of the tiles, or segments, of dE/dC.  mass: probability that rows drop, on average.  dead rows: of "
    "dC, zero and should not be."
)


def show(sweep: Sweep, console: Console) -> None:
    """One table per variant, at most 80 columns wide with one axis."""
    settings = sweep.settings
    console.print(f"{settings['head']}, {settings['dtype']}, {settings['executes']}", style="bold")
    for variant in settings["variants"]:
        columns = ("dE x", "dC x", "budget", "kept", "mass", "dead rows")
        rows = table(variant, *sweep.axes, *columns, "verdict", left=len(sweep.axes))
        for point in sweep.points:
            for result in point.results:
                if result.variant != variant:
                    continue
                over = (result.over_floor.get(name) for name in ("d_embeddings", "d_classifier"))
                shares = (f"{100 * result.kept[name]:.0f}" for name in ("d_embeddings", "d_classifier"))
                rows.add_row(
                    *(written(name, value) for name, value in point.values.items()),
                    *("-" if x is None else f"{x:.2f}" for x in over),
                    f"{result.over_budget:.2f}",
                    "/".join(shares),
                    f"{result.mass:.3f}",
                    str(result.dead_rows.dead) if result.dead_rows else "-",
                    result.grade,
                )
        console.print(rows, "")
    console.print(LEGEND, style="dim", highlight=False)
    if not sweep.complete:
        console.print("stopped before its last point: the same command goes on from there", style="yellow")
