"""The page: sections in order, filled into a template with its style and script inside."""

from __future__ import annotations

from pathlib import Path

import jinja2

from ..adder_check import AdderCheck
from ..bench import Bench
from ..exhaustive import ExhaustiveTable
from ..files import write_text
from ..granularity_study import GranularityStudy
from ..provenance import Provenance
from ..report import Report
from ..saved import Study
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

HERE = Path(__file__).parent
Shown = Report | Study


def write_page(shown: Shown, path: Path) -> None:
    """The page of a report, sweep or study, whole or not at all."""
    write_text(render(shown), path)


def render(shown: Shown) -> str:
    """HTML that asks nothing of any network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    title, subtitle, sections, variants = _contents(shown)
    return environment.get_template("page.html.j2").render(
        title=title,
        subtitle=subtitle,
        sections=sections,
        variants=variants,
        provenance=_provenance(shown.provenance),
        complete=getattr(shown, "complete", True),
        style=(HERE / "page.css").read_text(),
        script=(HERE / "page.js").read_text(),
    )


def _contents(shown: Shown) -> tuple[str, str, list[Section], list[str]]:
    if isinstance(shown, Report):
        head = shown.head
        shape = f"N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}"
        more = (f", softcap {head['softcap']}" if head.get("softcap") else "") + (
            ", with a bias" if head.get("bias") else ""
        )
        text = f" on {head['text']}" if head.get("text") else ""
        model = f" ({head['model']}{text})" if head.get("model") else ""
        subtitle = f"{head['name']} head{model}: {shape}{more}. Kernels ran on {shown.provenance.device}."
        return "Error budgets", subtitle, sections(shown), [result.variant for result in shown.results]
    if isinstance(shown, Sweep):
        return "Sweep", where(shown), [_sweep(shown, axis) for axis in shown.axes], []
    if isinstance(shown, Bench):
        return "Side by side", bench.where(shown), bench.sections(shown), []
    if isinstance(shown, ExhaustiveTable):
        figure = Figure(title=shown.provenance.device, tables=[studies.exhaustive_rows(shown)], open_tables=True)
        only = Section(slug="exhaustive", title="Every input", intro="", figures=[figure])
        return "Every input", shown.provenance.device, [only], []
    if isinstance(shown, AdderCheck):
        check = Section(slug="adder", title="The adder", intro="", figures=[studies.adder_figure(shown)])
        return "The adder's model", shown.provenance.device, [check], []
    if isinstance(shown, ScheduleStudy):
        return "Schedules", shown.provenance.device, [schedules_of([shown])], []
    if isinstance(shown, GranularityStudy):
        return "Granularity", "float64, on the CPU", [granularity_of(shown)], []
    return "Adders", "models of tensor cores", [studies.adders_of(shown)], []


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


def _sweep(sweep: Sweep, axis: str) -> Section:
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


def _provenance(source: Provenance) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in vars(source).items() if value is not None]
