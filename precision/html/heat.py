"""Where in a gradient the error comes near its budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from ..heat_map import HeatMap
from ..names import GRADIENTS
from ..report import Report, Result
from .figure import Figure, Section, Table, number
from .plot import panel, power

LOWEST = -10


def heat(report: Report) -> Section:
    figures = [_figure(result) for result in report.results if result.heat_maps]
    if not figures:
        figures = [Figure(title="Heat maps", missing="This report is of an older schema, which held no maps.")]
    intro = "The worst ratio of error to bound in each block of rows and columns of dE and dC."
    return Section(slug="heat", title="Where the error is", intro=intro, figures=figures)


def _figure(result: Result) -> Figure:
    return Figure(
        title=result.variant,
        variant=result.variant,
        how="Bright cells have an element near its bound, red ones an element beyond it. An even texture is rounding. "
        "Stripes and blocks are not: a bright row band of dC is a vocabulary tile that the filter dropped (its bound "
        "is used up to 1), a bright corner is a ragged last tile, a column a defect of one part of D. Words stand in "
        "the order in which the backward pass takes them: the most likely first, where the variant sorts.",
        panels=[
            panel(_title(name, m), _draw(m, "token" if name == "d_embeddings" else "word, in the kernel's order"))
            for name, m in result.heat_maps.items()
        ],
        tables=[_numbers(result)],
    )


def _title(name: str, found: HeatMap) -> str:
    rows = "row" if found.rows_per_cell == 1 else "rows"
    return f"{GRADIENTS[name]}: cells of {found.rows_per_cell} {rows} × {found.columns_per_cell}"


def _draw(found: HeatMap, rows: str) -> Callable[[Axes], None]:
    def on(axes: Axes) -> None:
        cells = np.array(found.cells)
        shape = (0, cells.shape[1] * found.columns_per_cell, cells.shape[0] * found.rows_per_cell, 0)
        colours = colormaps["viridis"].with_extremes(over="#ff2d2d")
        # The least above 0: a filter uses up exactly what its bound allows, give or take a rounding.
        image = axes.imshow(
            cells, extent=shape, aspect="auto", cmap=colours, vmin=LOWEST, vmax=0.005, interpolation="none"
        )
        bar = axes.figure.colorbar(image, ax=axes, extend="max", fraction=0.06, pad=0.03)
        bar.set_ticks([-10, -8, -6, -4, -2, 0], labels=[power(2, k) for k in (-10, -8, -6, -4, -2, 0)])
        bar.set_label("worst error / bound")
        axes.grid(visible=False)
        axes.set_xlabel("column of D")
        axes.set_ylabel(rows)

    return on


def _numbers(result: Result) -> Table:
    rows = []
    for name, found in result.heat_maps.items():
        cells = 2.0 ** np.array(found.cells)
        place = np.unravel_index(cells.argmax(), cells.shape)
        rows.append(
            [
                GRADIENTS[name],
                number(float(np.median(cells))),
                number(float(cells.max())),
                f"rows from {place[0] * found.rows_per_cell}, columns from {place[1] * found.columns_per_cell}",
            ]
        )
    return Table(title="Cells", columns=("output", "median", "largest", "where"), rows=rows, words=frozenset({0, 3}))
