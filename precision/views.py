"""What the terminal shows of a saved file, by its kind."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from rich.console import Console

from . import bench_view, study_view, sweep_view, view
from .saved import LawReport


@singledispatch
def show(found: Any, console: Console) -> None:
    """Prints what `read_saved` found.

    Raises:
        TypeError: it is of another kind.
    """
    raise TypeError(f"a {type(found).__name__} has no view")


show.register(view.show)
show.register(sweep_view.show)
show.register(bench_view.show)
show.register(study_view.show_exhaustive)
show.register(study_view.show_adders)
show.register(study_view.show_adder_check)
show.register(study_view.show_schedules)
show.register(study_view.show_granularity)


@show.register
def _show_laws(found: LawReport, console: Console) -> None:
    study_view.show_laws(found.content, console)
