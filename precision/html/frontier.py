"""Points of (cost, error), and the steps that join those that no other beats in both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes

from ..names import GRADIENTS
from .figure import number
from .plot import MUTED, SERIES, Series, log_axis, panel, plain_ticks

HOW = (
    "Lower is closer to the truth (1 is two roundings), further left is cheaper. The dashed steps join those that no "
    "other beats in both; one above and to the right of another has nothing to offer here. A square stands for a name "
    "with a dashed line."
)


def frontiers(
    costs: Sequence[tuple[Sequence[float], str]], times: Sequence[Mapping[str, float]], lines: Sequence[Series]
) -> list[Markup]:
    """A panel for each cost and gradient: `times` over the floor, one per line of the legend, against each cost and
    its label."""
    return [
        panel(
            f"{short}: error over two roundings",
            frontier(list(zip(cost, (of[name] for of in times), strict=True)), lines, label),
        )
        for cost, label in costs
        for name, short in GRADIENTS.items()
    ]


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
