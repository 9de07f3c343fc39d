"""Error against time and memory."""

from __future__ import annotations

from pathlib import Path

from ..bench import Bench
from ..names import GRADIENTS
from ..report import Report, Result
from .bench import against_costs, where
from .figure import Figure, Section, Table, number
from .frontier import HOW, frontiers
from .plot import series

BENCHED = Path(__file__).parents[1] / "benches" / "table1-h200.json"


def pareto(report: Report) -> Section:
    intro = "What accuracy costs. Times are over one cuBLAS product E·Cᵀ of the same shape in the same run."
    if any(result.timing for result in report.results):
        figures = [_figure(report, "This report")]
    else:
        figures = [
            Figure(
                title="This report",
                missing="No times: kernels ran in Triton's interpreter, whose time says nothing about a GPU's. The "
                "figure below is that of a committed bench.",
            )
        ]
        if BENCHED.exists():
            bench = Bench.read(BENCHED)
            (place,) = bench.places
            figures.append(against_costs(place, f"Committed bench: {place.shape}, {where(bench)}"))
    return Section(slug="cost", title="Time and memory", intro=intro, figures=figures)


def _figure(report: Report, title: str) -> Figure:
    timed = [(result, result.timing) for result in report.results if result.timing is not None]
    lines = series([result.variant for result, _ in timed])
    head = report.head
    times = [t.forward_over_product + t.backward_over_product for _, t in timed]
    costs = [
        (times, "time of forward and backward / product"),
        ([t.backward_mib for _, t in timed], "MiB of the backward pass, gradients included"),
    ]
    return Figure(
        title=title,
        how=f"{HOW} {head['name']}: N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}, "
        f"on {report.provenance.device}.",
        panels=frontiers(
            costs,
            [{name: _times(report, result, name) for name in GRADIENTS} for result, _ in timed],
            lines,
        ),
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


def _times(report: Report, result: Result, name: str) -> float:
    times = report.over_floor(result, name)
    return 1.0 if times is None else times
