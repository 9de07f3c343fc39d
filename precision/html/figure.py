"""What a section of the page is made of: figures with their explanation and the numbers behind them, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from .plot import Series


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text; the first column heads its row. `words` are the columns that are not numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Markup]]
    words: frozenset[int] = frozenset({0})
    prose: bool = False  # whether cells are sentences: on a phone each row is then a block of its own


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels side by side, or the reason why there are none."""

    title: str
    how: str | Markup = ""  # how to read it
    panels: Sequence[Markup] = ()
    legend: Sequence[Series] = ()
    tables: Sequence[Table] = ()
    open_tables: bool = False  # whether the numbers are what is to be seen
    missing: str | None = None
    variant: str | None = None  # shown when this variant is chosen; None is always


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading of the page, and an entry of its navigation."""

    slug: str
    title: str
    intro: str | Markup
    figures: list[Figure] = field(default_factory=list)


def not_made(study: str) -> Figure:
    """In the place of a study that is not there."""
    return Figure(
        title="Not measured yet",
        missing=f"The study is not among the committed ones. Make it with: python -m ccelab.precision.study {study}",
    )


def number(x: float | None, digits: int = 3) -> str:
    """As a person would write it: 1.23e-4 without the exponent's zero, a dash for nothing."""
    if x is None:
        return "–"
    text = f"{x:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def percent(x: float) -> str:
    return "0 %" if x == 0 else f"{100 * x:.3g} %"
