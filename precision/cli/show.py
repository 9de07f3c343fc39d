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
    from .. import views
    from ..saved import LawReport, read_saved

    console = Console()
    try:
        found = read_saved(file)
        views.show(found, console)
        if not html:
            return
        if isinstance(found, LawReport):
            options.fail(f"{file} is a law report, which has no page")
        page = options.draw_page(found, file)
    except (OSError, ValueError) as error:
        options.fail(error)
    console.print(f"written: {page}", highlight=False, soft_wrap=True)
