"""Figures of a sweep: one quantity over one axis, a line per variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from ..axes import written
from ..sweep import Point, PointResult, Sweep
from .figure import Table, number, percent
from .plot import MUTED, Series, log_axis, panel, plain_ticks, power, series


@dataclass(frozen=True)
class Quantity:
    """What stands on the vertical axis."""

    title: str
    read: Callable[[PointResult], float | None]
    logarithmic: bool = False
    share: bool = False
    line: float | None = None  # drawn across, where it has a meaning of its own


def error_over_floor(output: str, name: str) -> Quantity:
    return Quantity(f"{name}: error over two roundings", lambda r: r.over_floor.get(output), logarithmic=True, line=1.0)


def dead_share(result: PointResult) -> float | None:
    dead = result.dead_rows
    return dead.dead / dead.rows if dead and dead.rows else None


QUANTITIES = (
    error_over_floor("d_embeddings", "dE"),
    error_over_floor("d_classifier", "dC"),
    Quantity("kept of dE", lambda r: r.kept["d_embeddings"], share=True),
    Quantity("probability of what dE skips", lambda r: r.mass, share=True),
    Quantity("rows of dC left at zero", dead_share, share=True),
    Quantity("worst error / budget", lambda r: r.over_budget, line=1.0),
)


def lines_of(sweep: Sweep) -> list[Series]:
    return series(list(sweep.settings["variants"]))


def over_axis(
    sweep: Sweep,
    quantity: Quantity,
    axis: str,
    *,
    x: Callable[[Point], float] | None = None,
    label: str | None = None,
    decorate: Callable[[Axes], None] | None = None,
) -> Markup:
    """A panel. `x` places a point elsewhere than at its value of `axis`; other axes of the grid make more lines of the
    same colour."""
    place = x or (lambda point: point.values[axis])
    others = sorted({tuple((k, v) for k, v in point.values.items() if k != axis) for point in sweep.points})

    def draw(axes: Axes) -> None:
        log_axis(axes, "x", 2)
        if quantity.logarithmic:
            log_axis(axes, "y")
        elif quantity.share:
            axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        if quantity.line is not None:
            axes.axhline(quantity.line, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        for line in lines_of(sweep):
            for other in others:
                points = sorted(_points(sweep, line.label, quantity, place, dict(other)))
                if points:
                    axes.plot(*zip(*points, strict=True), "o-", color=line.colour, linewidth=line.width)
        if decorate is not None:
            decorate(axes)
        if quantity.logarithmic:
            _ticks_between_decades(axes)
        at = sorted({place(point) for point in sweep.points})
        shown = at[:: max(1, -(-len(at) // 8))]
        plain_ticks(axes, "x", shown, [_short(axis, value) if x is None else str(int(value)) for value in shown])
        axes.set_xlabel(label or axis)

    return panel(quantity.title, draw)


def _points(
    sweep: Sweep, variant: str, quantity: Quantity, place: Callable[[Point], float], other: dict[str, float]
) -> list[tuple[float, float]]:
    found = []
    for point in sweep.points:
        if any(point.values[name] != value for name, value in other.items()):
            continue
        for result in point.results:
            value = quantity.read(result)
            if result.variant == variant and value is not None and (value > 0 or not quantity.logarithmic):
                found.append((place(point), value))
    return found


def _ticks_between_decades(axes: Axes) -> None:
    """Some more of every decade, where less than two decades are shown."""
    low, high = axes.get_ylim()
    if high / low < 100:
        ticks = [m * 10.0**k for k in range(-12, 6) for m in (1, 1.5, 2, 3, 5, 7) if low <= m * 10.0**k <= high]
        plain_ticks(axes, "y", ticks, [number(tick) for tick in ticks])


def _short(axis: str, value: float) -> str:
    base, power_sign, exponent = written(axis, value).partition("^")
    return power(int(base), int(exponent)) if power_sign else base


def table_of(sweep: Sweep) -> Table:
    """Every point of a sweep."""
    rows = []
    for point in sweep.points:
        for result in point.results:
            dead = result.dead_rows
            rows.append(
                [
                    ", ".join(f"{name}={written(name, value)}" for name, value in point.values.items()),
                    result.variant,
                    *(number(result.error.get(o)) for o in ("d_embeddings", "d_classifier")),
                    *(number(result.over_floor.get(o)) for o in ("d_embeddings", "d_classifier")),
                    number(result.over_budget),
                    " / ".join(percent(result.kept[o]) for o in ("d_embeddings", "d_classifier")),
                    percent(result.mass),
                    str(dead.dead) if dead else "–",
                    result.grade,
                ]
            )
    columns = ("point", "variant", "dE error", "dC error", "dE × floor", "dC × floor", "worst / budget")
    return Table(
        title="Every point",
        columns=(*columns, "kept dE / dC", "mass", "dead rows", "verdict"),
        rows=rows,
        words=frozenset({0, 1, 10}),
    )


def where(sweep: Sweep) -> str:
    """Head, shape and machine in one line; what the axes vary is left out."""
    settings = sweep.settings
    sizes = [("tokens", "N"), ("vocabulary", "V"), ("hidden", "D")]
    shape = [f"{letter}={settings[name]}" for name, letter in sizes if name not in sweep.axes and settings.get(name)]
    parts: Sequence[str] = (settings["head"], *shape, settings["dtype"], settings["executes"])
    unfinished = "" if sweep.complete else "; stopped before its last point"
    return ", ".join(parts) + unfinished
