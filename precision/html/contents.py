"""What the page of a saved file has, by its kind: a title, sections in order, and the variants to choose from."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

from ..adder_check import AdderCheck
from ..adder_study import AdderStudy
from ..bench import Bench
from ..exhaustive import ExhaustiveTable
from ..granularity_study import GranularityStudy
from ..report import Report
from ..schedule_study import ScheduleStudy
from ..sweep import Sweep
from . import bench, studies
from .condition import condition
from .deviations import deviations
from .figure import Figure, Section
from .filter_page import filter_page
from .granularity import granularity, granularity_of
from .heat import heat
from .lines import QUANTITIES, lines_of, over_axis, table_of, where
from .loss import loss
from .pareto import pareto
from .schedules import schedules, schedules_of
from .survival import survival
from .verdicts import verdicts
from .waterfall import waterfall
from .worst import worst


class Contents(NamedTuple):
    """Of a page."""

    title: str
    subtitle: str
    sections: list[Section]
    variants: tuple[str, ...] = ()


@singledispatch
def contents(shown: Any) -> Contents:
    """Of what is to be drawn.

    Raises:
        TypeError: it is of a kind that has no page.
    """
    raise TypeError(f"a {type(shown).__name__} has no page")


@contents.register
def _report(shown: Report) -> Contents:
    head = shown.head
    shape = f"N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}"
    more = (f", softcap {head['softcap']}" if head.get("softcap") else "") + (
        ", with a bias" if head.get("bias") else ""
    )
    text = f" on {head['text']}" if head.get("text") else ""
    model = f" ({head['model']}{text})" if head.get("model") else ""
    subtitle = f"{head['name']} head{model}: {shape}{more}. Kernels ran on {shown.provenance.device}."
    return Contents("Error budgets", subtitle, sections(shown), tuple(result.variant for result in shown.results))


@contents.register
def _sweep(shown: Sweep) -> Contents:
    return Contents("Sweep", where(shown), [_over(shown, axis) for axis in shown.axes])


@contents.register
def _bench(shown: Bench) -> Contents:
    return Contents("Side by side", bench.where(shown), bench.sections(shown))


@contents.register
def _exhaustive(shown: ExhaustiveTable) -> Contents:
    figure = Figure(title=shown.provenance.device, tables=[studies.exhaustive_rows(shown)], open_tables=True)
    only = Section(slug="exhaustive", title="Every input", intro="", figures=[figure])
    return Contents("Every input", shown.provenance.device, [only])


@contents.register
def _adder_check(shown: AdderCheck) -> Contents:
    check = Section(slug="adder", title="The adder", intro="", figures=[studies.adder_figure(shown)])
    return Contents("The adder's model", shown.provenance.device, [check])


@contents.register
def _adders(shown: AdderStudy) -> Contents:
    return Contents("Adders", "models of tensor cores", [studies.adders_of(shown)])


@contents.register
def _schedules(shown: ScheduleStudy) -> Contents:
    return Contents("Schedules", shown.provenance.device, [schedules_of([shown])])


@contents.register
def _granularity(shown: GranularityStudy) -> Contents:
    return Contents("Granularity", "float64, on the CPU", [granularity_of(shown)])


def sections(report: Report) -> list[Section]:
    """Of a report, in the order of the page: what was found first, what explains it after."""
    return [
        verdicts(report),
        waterfall(report),
        survival(report),
        heat(report),
        condition(report),
        filter_page(report),
        granularity(),
        studies.extremes(),
        studies.tiles(),
        studies.adders(),
        schedules(),
        pareto(report),
        studies.every_input(),
        worst(report),
        loss(report),
        deviations(),
    ]


def _over(sweep: Sweep, axis: str) -> Section:
    figure = Figure(
        title=f"Over {axis}",
        how="Errors are over the floor of two roundings on the same head; the dashed line is that floor, or the whole "
        "budget.",
        panels=[over_axis(sweep, quantity, axis) for quantity in QUANTITIES] if sweep.points else (),
        legend=lines_of(sweep),
        tables=[table_of(sweep)],
        missing=None if sweep.points else "No point was measured.",
    )
    return Section(slug=axis, title=f"Over {axis}", intro="", figures=[figure])
