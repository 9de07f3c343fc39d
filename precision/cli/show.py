"""`ccelab show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import options


def show(
    file: Annotated[Path, typer.Argument(help="A report, sweep, bench, committed study, or law report: JSON.")],
    html: Annotated[bool, typer.Option("--html", help="Also write the page again, beside the file.")] = False,
) -> None:
    """Print a saved report, sweep, bench, study or law report."""
    from .. import bench_view, study_view, sweep_view, view
    from ..adder_check import AdderCheck
    from ..adder_study import AdderStudy
    from ..bench import Bench
    from ..granularity_study import GranularityStudy
    from ..report import Report
    from ..saved import LawReport, read_saved
    from ..schedule_study import ScheduleStudy
    from ..sweep import Sweep

    console = Console()
    try:
        found = read_saved(file)
        if isinstance(found, LawReport):
            study_view.show_laws(found.content, console)
        elif isinstance(found, Report):
            view.show(found, console)
        elif isinstance(found, Sweep):
            sweep_view.show(found, console)
        elif isinstance(found, Bench):
            bench_view.show(found, console)
        elif isinstance(found, AdderStudy):
            study_view.show_adders(found, console)
        elif isinstance(found, ScheduleStudy):
            study_view.show_schedules(found, console)
        elif isinstance(found, GranularityStudy):
            study_view.show_granularity(found, console)
        elif isinstance(found, AdderCheck):
            study_view.show_adder_check(found, console)
        else:
            study_view.show_exhaustive(found, console)
        if not html:
            return
        if isinstance(found, LawReport):
            options.fail(f"{file} is a law report, which has no page")
        page = options.draw_page(found, file)
    except (OSError, ValueError) as error:
        options.fail(str(error))
    console.print(f"written: {page}", highlight=False, soft_wrap=True)
