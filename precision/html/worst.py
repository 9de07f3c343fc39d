"""The elements that come nearest to their bounds, in bits, and the command that repeats them."""

from __future__ import annotations

from markupsafe import Markup

from ..measure import Element
from ..names import OUTPUTS
from ..report import Report, Result
from .figure import Figure, Section, Table, number


def worst(report: Report) -> Section:
    return Section(
        slug="worst",
        title="Worst cases",
        intro="Where to look first. The bits can be typed in again: float.fromhex reads the truth and the bound.",
        figures=[_figure(result) for result in report.results],
    )


def _figure(result: Result) -> Figure:
    found = result.worst or {name: [m.worst_element] for name, m in result.outputs.items()}
    rows: list[list[str | Markup]] = [
        [OUTPUTS[name], *_cells(element)] for name, elements in found.items() for element in elements
    ]
    repeat = (
        Markup(" Repeat it with <code class=command>{}</code>").format(result.reproduce) if result.reproduce else ""
    )
    columns = (
        "output",
        "place",
        "error / bound",
        "got",
        "bits",
        "truth",
        "truth, exactly",
        "bound",
        "bound, exactly",
        "ulps",
    )
    return Figure(
        title=result.variant,
        variant=result.variant,
        how=Markup(
            "Place: token, or word and column of D. Bits: of the storage format of the output. Ulps: units in the "
            "last place of the truth in that format; large where terms cancel, which is no fault of the kernel.{}"
        ).format(repeat),
        tables=[
            Table(
                title="Elements nearest to their bounds", columns=columns, rows=rows, words=frozenset({0, 1, 4, 6, 8})
            )
        ],
        open_tables=True,
    )


def _cells(e: Element) -> list[str | Markup]:
    def code(text: str | None) -> str | Markup:
        return Markup("<code>{}</code>").format(text) if text else "–"

    return [
        ", ".join(map(str, e.place)) or "–",
        f"{e.over_budget:.3f}" if e.over_budget is not None else "–",
        number(e.got, 6),
        code(e.got_hex),
        number(e.want, 6),
        code(e.want_hex),
        number(e.bound),
        code(e.bound_hex),
        number(e.ulps),
    ]
