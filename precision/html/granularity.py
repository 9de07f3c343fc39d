"""What a filter loses by what it keeps together, drawn from a committed study."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes

from ..granularity_study import KEPT, GranularityPoint, GranularityStudy
from ..names import GRADIENTS
from ..study import STUDIES
from .figure import Figure, Section, Table, not_made, number
from .plot import Series, log_axis, panel, series

TAIL = ", with a tail"


def granularity(path: Path = STUDIES / "granularity.json") -> Section:
    """Error against what has to be read, per granularity."""
    return granularity_of(GranularityStudy.read(path) if path.exists() else None)


def granularity_of(study: GranularityStudy | None) -> Section:
    """The section of a study at hand."""
    intro = (
        "A filter may look at single entries, at words of a block of rows, at segments of a row or, as the paper's, at "
        "whole tiles. What is kept together is read together: its row of C or E once for all."
    )
    figure = not_made("granularity") if study is None else _figure(study)
    return Section(slug="granularity", title="What is kept together", intro=intro, figures=[figure])


def _figure(study: GranularityStudy) -> Figure:
    lines, head = series([name + tail for name in KEPT for tail in ("", TAIL)]), study.head
    return Figure(
        title="Error against what is read",
        how="Each point is a threshold, from 2⁻⁸ at the left to 2⁻¹⁸. Lower is better, and so is further left: per row "
        "of E, fewer rows of C (for dE) or of E (for dC) are read. A tail gives back what is dropped along one vector "
        "over the vocabulary. Float64, so that nothing but the filter errs: bf16's own rounding costs 2e-3 beside it. "
        f"Measured on {head['name']}, N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}.",
        panels=[panel(f"{name}: error", _lines(study, lines, output)) for output, name in GRADIENTS.items()],
        legend=lines,
        tables=[
            Table(
                title="Every point",
                columns=(
                    *("keeps", "eps", "entries per row", "rows read"),
                    *(name + tail for tail in ("", TAIL) for name in GRADIENTS.values()),
                ),
                rows=[
                    [
                        p.granularity,
                        f"2^{p.power}",
                        number(p.entries),
                        number(p.gathered),
                        *(number(found[g]) for found in (p.dropped, p.with_tail) for g in GRADIENTS),
                    ]
                    for p in study.points
                ],
                words=frozenset({0, 1}),
            )
        ],
    )


def _lines(study: GranularityStudy, lines: list[Series], output: str) -> Callable[[Axes], None]:
    def error(point: GranularityPoint, label: str) -> float:
        return (point.with_tail if label.endswith(TAIL) else point.dropped)[output]

    def draw(axes: Axes) -> None:
        log_axis(axes, "x", 10)
        log_axis(axes, "y", 10)
        for line in lines:
            points = [p for p in study.points if p.granularity == line.label.removesuffix(TAIL)]
            places = [(p.gathered, error(p, line.label)) for p in points]
            axes.plot(*zip(*places, strict=True), "o-", color=line.colour, linewidth=line.width)
        axes.set_xlabel("rows read, per row")
        axes.set_ylabel("‖error‖ / ‖gradient‖")

    return draw
