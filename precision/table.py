"""The one style of the terminal's tables."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A table without a frame: the first `left` columns are words, the others numbers."""
    made = Table(
        title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0), pad_edge=False, show_edge=False
    )
    for place, name in enumerate(columns):
        made.add_column(name, no_wrap=True, justify="left" if place < left else "right")
    return made
