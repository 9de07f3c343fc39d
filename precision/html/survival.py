"""Share of elements over ratio of error to budget."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from ..names import OUTPUTS
from ..report import Report
from .figure import Figure, Section, Table, number
from .plot import ALARM, log_axis, panel, power, series

TABLE_RATIOS = (-12.0, -8.0, -4.0, -2.0, -1.0, 0.0)


def survival(report: Report) -> Section:
    lines = series([result.variant for result in report.results])
    outputs = [name for name in OUTPUTS if any(name in result.survival for result in report.results)]

    def draw(output: str) -> Callable[[Axes], None]:
        def on(axes: Axes) -> None:
            log_axis(axes, "x", 2)
            log_axis(axes, "y")
            least = 1.0
            for line, result in zip(lines, report.results, strict=True):
                curve = result.survival.get(output)
                if curve is None:
                    continue
                points = [(2.0**x, y) for x, y in zip(curve.log2_ratio, curve.share, strict=True) if y > 0]
                if not points:  # every element is exact, or next to it: nothing to see
                    continue
                least = min([least, *(y for _, y in points)])
                axes.step(
                    *zip(*points, strict=True),
                    where="post",
                    color=line.colour,
                    linewidth=line.width,
                    linestyle=line.dash,
                )
            axes.axvline(1, color=ALARM, linewidth=1)
            axes.text(
                1.15, 0.97, "over\nbudget", color=ALARM, fontsize=8, va="top", transform=axes.get_xaxis_transform()
            )
            axes.set_xlim(2.0**-16, 2.0**2)
            axes.set_ylim(least / 2, 1.5)
            axes.set_xlabel("error / bound")
            axes.set_ylabel("share of elements at or above")

        return on

    figure = Figure(
        title="How much of its budget every element uses",
        how="A curve shows which share of an output's elements have at least that ratio of error to bound. All must "
        "end left of the red line. A curve that ends far to the left has a bound that is much too wide there to find "
        "small defects; one that runs up to the line and falls off at it, as with a filter or a single rounding, has "
        "elements that use all they may. Variants that compute an output alike share its curve.",
        panels=[panel(OUTPUTS[output], draw(output)) for output in outputs],
        legend=lines,
        tables=[_numbers(report, output) for output in outputs],
        missing=None if outputs else "This report is of an older schema, which held no curves.",
    )
    return Section(
        slug="survival",
        title="Use of the budget",
        intro="Bounds are computed per element from the input, before anything is measured; none is fitted.",
        figures=[figure],
    )


def _numbers(report: Report, output: str) -> Table:
    rows = []
    for result in report.results:
        if curve := result.survival.get(output):
            shares = dict(zip(curve.log2_ratio, curve.share, strict=True))
            rows.append([result.variant, *(number(shares[x]) for x in TABLE_RATIOS)])
    columns = ("variant", *(f"≥ {power(2, int(x))}" for x in TABLE_RATIOS))
    return Table(title=f"{OUTPUTS[output]}: share of elements at or above a ratio", columns=columns, rows=rows)
