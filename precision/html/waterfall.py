"""Per stage: what the budget allows, and what was measured."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.axes import Axes

from ..names import GRADIENTS, OUTPUTS
from ..report import Report, Result
from ..stage_table import StageRow, StageTable
from ..stages import STAGES
from .figure import Figure, Section, Table, number, percent
from .plot import INK, MUTED, Series, log_axis, panel

NOTHING = 1e-12  # of the truth: a stage that adds less is not drawn
LEGEND = [Series("allowed by the budget", 0), Series("measured", 1)]


def waterfall(report: Report) -> Section:
    intro = (
        "Every place where a kernel rounds or drops something is a stage with a name. Its budget is what it may cost; "
        "the attribution emulates the kernel with stages switched on one after the other, in the order of execution."
    )
    figures = [_figure(report, result) for result in report.results]
    if not any(result.stages for result in report.results):
        figures = [
            Figure(
                title="Stages",
                missing="This report has no budgets by stage and no attribution: it was made by a version of ccelab, "
                "or with settings, that did not compute them.",
            )
        ]
    return Section(slug="stages", title="Error by stage", intro=intro, figures=figures)


def _figure(report: Report, result: Result) -> Figure:
    tables = {name: table for name, table in result.stages.items() if name in GRADIENTS}
    missing = None if tables else "No stages of this variant are in the report."
    attributed = any(row.measured is not None for table in tables.values() for row in table.rows)
    machine = next((table.machine for table in tables.values() if table.machine), None)
    note = (
        f" Emulated: {machine}."
        if attributed
        else " No dots: this report holds no attribution, so that only what is allowed is known."
    )
    return Figure(
        title=result.variant,
        variant=result.variant,
        how="A row is a stage, in the order of execution. The bar ends at what the budget allows it, the dot is what "
        "it was measured to cost; both are norms over the norm of the truth, on a logarithmic axis. A dot right of "
        "its bar is no defect: roundings that are known exactly are booked where they show, under cast_residual or in "
        "fp32 recompute_logits, and a budget holds for all stages together. The vertical lines: the error as a whole, "
        "and the floor of two roundings. The stage with the rightmost dot decides the error; a long bar with a dot far "
        f"to the left is a bound that costs nothing.{note}",
        panels=[
            panel(_title(name, table), _draw(report, result, name, table), height=_height(table), width=5.6)
            for name, table in tables.items()
        ],
        legend=LEGEND if tables else (),
        tables=[_numbers(name, table) for name, table in result.stages.items()],
        missing=missing,
    )


def _title(name: str, table: StageTable) -> str:
    explained = f"; stages explain {percent(table.explained)}" if table.explained is not None else ""
    return f"{GRADIENTS[name]}{explained}"


def _shown(table: StageTable) -> list[StageRow]:
    return [row for row in table.rows if max(row.predicted or 0.0, row.measured or 0.0) > NOTHING]


def _height(table: StageTable) -> float:
    return 1.1 + 0.23 * len(_shown(table))


def _draw(report: Report, result: Result, name: str, table: StageTable) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        rows = _shown(table)
        values = [v for row in rows for v in (row.predicted, row.measured) if v]
        log_axis(axes, "x")
        left = min([NOTHING * 10, *values]) if not values else min(values) / 3
        for place, row in enumerate(rows):
            if row.predicted:
                axes.barh(place, row.predicted - left, left=left, height=0.62, color=LEGEND[0].colour, alpha=0.35)
            if row.measured:
                axes.plot(row.measured, place, "o", color=LEGEND[1].colour)
        total, floor = result.outputs[name].normwise, report.floors[name].two_roundings
        axes.axvline(total, color=INK, linewidth=1)
        axes.axvline(floor, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        if values:
            axes.set_xlim(left, max([*values, total]) * 3)
        axes.text(total, -0.95, "  error  ", color=INK, fontsize=8, ha="left" if total > floor else "right")
        axes.text(floor, -0.95, "  floor  ", color=MUTED, fontsize=8, ha="right" if total > floor else "left")
        axes.set_ylim(len(rows) - 0.4, -1.5)
        axes.set_yticks(range(len(rows)), [row.stage for row in rows])
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("error / norm of the truth")

    return draw


def _numbers(name: str, table: StageTable) -> Table:
    rows = [
        [
            row.stage,
            STAGES[row.stage].what if row.stage in STAGES else "",  # of another version's report
            number(row.predicted),
            number(row.measured),
            "–" if row.share is None else percent(row.share),
        ]
        for row in table.rows
    ]
    if table.residue is not None:
        rows.append(["(not explained)", "", "–", number(table.residue), "–"])
    return Table(
        title=f"Stages of {OUTPUTS[name]}",
        columns=("stage", "what it does", "allowed", "measured", "share of the error"),
        rows=rows,
        words=frozenset({0, 1}),
    )
