"""Error against time and memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from ..names import GRADIENTS
from ..report import Report, Result
from ..timing import Timing
from .figure import Figure, Section, Table, number
from .plot import MUTED, SERIES, Series, log_axis, panel, plain_ticks, series

HOW = (
    "Lower is closer to the truth (1 is two roundings), further left is cheaper. The dashed steps join those that no "
    "other beats in both; one above and to the right of another has nothing to offer here."
)
BASELINE = Path(__file__).parents[1] / "baselines" / "gemma-alpaca-bfloat16.json"


def pareto(report: Report) -> Section:
    intro = "What accuracy costs. Times are over one cuBLAS product E·Cᵀ of the same shape in the same run."
    if any(result.timing for result in report.results):
        figures = [_figure(report, "This report")]
    else:
        figures = [
            Figure(
                title="This report",
                missing="No times: kernels ran in Triton's interpreter, whose time says nothing about a GPU's. The "
                "figure below is that of the committed report.",
            )
        ]
        if BASELINE.exists():
            committed = Report.read(BASELINE)
            figures.append(_figure(committed, f"Committed report: {committed.head['name']}"))
    return Section(slug="cost", title="Time and memory", intro=intro, figures=figures)


def _figure(report: Report, title: str) -> Figure:
    timed = [(result, result.timing) for result in report.results if result.timing is not None]
    lines = series([result.variant for result, _ in timed])
    head = report.head

    def draw(name: str, cost: Callable[[Timing], float], label: str) -> Callable[[Axes], None]:
        return frontier([(cost(t), _times(report, r, name)) for r, t in timed], lines, label)

    costs: tuple[tuple[Callable[[Timing], float], str], ...] = (
        (lambda t: t.forward_over_product + t.backward_over_product, "time of forward and backward / product"),
        (lambda t: t.backward_mib, "MiB of the backward pass, gradients included"),
    )
    return Figure(
        title=title,
        how=f"{HOW} {head['name']}: N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}, "
        f"on {report.provenance.device}.",
        panels=[
            panel(f"{short}: error over two roundings", draw(name, cost, label))
            for cost, label in costs
            for name, short in GRADIENTS.items()
        ],
        legend=lines,
        tables=[
            Table(
                title="Costs",
                columns=("variant", "dE × floor", "dC × floor", "forward", "backward", "forward MiB", "backward MiB"),
                rows=[
                    [
                        result.variant,
                        *(number(_times(report, result, name)) for name in GRADIENTS),
                        number(t.forward_over_product),
                        number(t.backward_over_product),
                        number(t.forward_mib),
                        number(t.backward_mib),
                    ]
                    for result, t in timed
                ],
            )
        ],
    )


def frontier(points: Sequence[tuple[float, float]], lines: Sequence[Series], label: str) -> Callable[[Axes], None]:
    """Draws (cost, error over the floor), one per line of the legend, and the steps that join the best."""

    def on(axes: Axes) -> None:
        log_axis(axes, "y")
        for line, (x, y) in zip(lines, points, strict=True):
            axes.plot(x, y, "os"[line.place // len(SERIES) % 2], color=line.colour, markersize=7)
        best = sorted(p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points))
        axes.step(*zip(*best, strict=True), where="post", color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        axes.set_xlim(0, 1.05 * max(x for x, _ in points))
        axes.set_xlabel(label)
        low, high = axes.get_ylim()
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        plain_ticks(axes, "y", ticks, [number(t) for t in ticks])

    return on


def _times(report: Report, result: Result, name: str) -> float:
    times = report.over_floor(result, name)
    return 1.0 if times is None else times
