"""Relative error against condition number."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from ..condition import ConditionSample
from ..names import GRADIENTS
from ..report import Report, Result
from .figure import Figure, Section, Table, number
from .plot import MUTED, SERIES, log_axis, panel

U = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}


def condition(report: Report) -> Section:
    u = U.get(str(report.head["dtype"]), 2.0**-8)
    figures = [_figure(result, u) for result in report.results if result.conditions]
    if not figures:
        figures = [Figure(title="Condition", missing="This report is of an older schema, which held no such points.")]
    intro = (
        "An element of a gradient is a sum of terms of both signs. Its condition number is the sum of their sizes "
        "over the size of their sum: 1 where nothing cancels, large where nearly everything does."
    )
    return Section(slug="condition", title="Error and cancellation", intro=intro, figures=figures)


def _figure(result: Result, u: float) -> Figure:
    return Figure(
        title=result.variant,
        variant=result.variant,
        how="A point is an element. The dashed line is one rounding of every term: u times the condition number. "
        "Points along it, or under it, have the error that cancellation brings with it. Points far above it at small "
        "condition numbers have another cause: a sum that stagnates, or a dropped tile (all of those lie at a "
        "relative error of 1). At most 400 points are drawn, the largest of either axis among them; elements that are "
        "exact are left out.",
        panels=[panel(GRADIENTS[name], _draw(sample, u)) for name, sample in result.conditions.items()],
        tables=[_numbers(result)],
    )


def _draw(sample: ConditionSample, u: float) -> Callable[[Axes], None]:
    def on(axes: Axes) -> None:
        points = [(c, e) for c, e in zip(sample.condition, sample.error, strict=True) if e > 0]
        log_axis(axes, "x")
        log_axis(axes, "y")
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, "o", color=SERIES[0], alpha=0.45, markersize=3, markeredgewidth=0)
            span = [1.0, max(x) * 1.5]
            axes.plot(span, [u * c for c in span], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
            axes.text(span[1], u * span[1], "u × condition ", color=MUTED, fontsize=8, ha="right", va="bottom")
        axes.set_xlabel("condition number")
        axes.set_ylabel("relative error")

    return on


def _numbers(result: Result) -> Table:
    rows = []
    for name, sample in result.conditions.items():
        if not sample.error:
            continue
        top = max(range(len(sample.error)), key=lambda k: sample.condition[k])
        worst = max(range(len(sample.error)), key=lambda k: sample.error[k])
        rows.append(
            [
                GRADIENTS[name],
                str(sample.elements),
                number(sample.condition[top]),
                number(sample.error[top]),
                number(sample.error[worst]),
                number(sample.condition[worst]),
            ]
        )
    columns = ("output", "elements", "largest condition", "its error", "largest error", "its condition")
    return Table(title="Extremes", columns=columns, rows=rows)
