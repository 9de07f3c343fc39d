"""The first thing on the page: which variants pass, and why the others do not."""

from __future__ import annotations

from markupsafe import Markup

from ..names import GRADIENTS
from ..report import Report, Result
from ..verdict import Grade
from .figure import Figure, Section, Table, percent

WORDS = {
    Grade.passed: ("pass", "✓"),
    Grade.limited: ("limited", "◐"),
    Grade.inconclusive: ("inconclusive", "?"),
    Grade.failed: ("fail", "✗"),
}
MEANINGS = {
    Grade.passed: "within budget, and near the floor that rounding sets",
    Grade.limited: "within budget, but the filter or the sums dominate the error",
    Grade.inconclusive: "the budget could not tell right from wrong on this head",
    Grade.failed: "an output exceeds its bound, is NaN or infinite where the truth is not, or tiles were miscounted",
}


def verdicts(report: Report) -> Section:
    rows = [
        [
            Markup("<code>{}</code>").format(result.variant),
            badge(result) + _reasons(result),
            *(_times(result, report, output) for output in GRADIENTS),
            f"{result.closest:.2f}",
            " / ".join(percent(share) for share in kept(result)),
        ]
        for result in report.results
    ]
    figure = Figure(
        title="Every variant",
        how="dE and dC: distance from the truth over what two unavoidable roundings cost (the residual rounded once, "
        "the result rounded once, all else exact); 1 is as good as the format allows. Worst / budget: the element "
        "that comes nearest to its a-priori error bound; above 1 is a defect. 1.00 is normal where a filter is on, "
        "because a dropped tile uses up exactly what its bound allows, and on small heads, where one rounding may be "
        "all that an element is off by. Kept: by the filter, of dE and of dC; of tiles, "
        "and by cce-segment of columns of tiles (dE) and of rows of half tiles (dC).",
        tables=[
            Table(
                title="Verdicts",
                columns=("variant", "verdict", "dE × floor", "dC × floor", "worst / budget", "kept dE / dC"),
                rows=rows,
                words=frozenset({0, 1}),
            )
        ],
        open_tables=True,
    )
    intro = Markup("<br>").join(
        Markup("{}: {}.").format(_signed(grade), meaning) for grade, meaning in MEANINGS.items()
    )
    return Section(slug="verdict", title="Verdict", intro=intro, figures=[figure])


def badge(result: Result) -> Markup:
    if result.verdict is None:
        return Markup('<span class="badge none">not judged</span>')
    return _signed(result.verdict.grade)


def _signed(grade: Grade) -> Markup:
    kind, sign = WORDS[grade]
    return Markup('<span class="badge {}">{} {}</span>').format(kind, sign, grade.value)


def kept(result: Result) -> list[float]:
    """Shares of the tiles of dE and dC."""
    shares = (result.kept(output) for output in GRADIENTS)
    return [1.0 if share is None else share for share in shares]


def _times(result: Result, report: Report, output: str) -> str:
    times = report.over_floor(result, output)
    return "–" if times is None else f"{times:.2f}"


def _reasons(result: Result) -> Markup:
    if result.verdict is None:
        reasons = ["the report is of an older schema, which did not hold what a verdict needs"]
    else:
        reasons = result.verdict.reasons
    return Markup().join(Markup('<span class="reasons">{}</span>').format(reason) for reason in reasons)
