"""What a person should take home about one variant on one head: a grade, and the reasons in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from .floors import Floor
from .names import OUTPUTS

if TYPE_CHECKING:
    from .report import Result

FLOORS_ALLOWED = 2.0
"""A gradient further from the truth than this many times its two-rounding floor is dominated by something else than the
two roundings: by the filter, by the sums, or by what the attribution names."""


class Grade(StrEnum):
    """From good to bad. A variant whose budget cannot tell right from wrong is `inconclusive`."""

    passed = "pass"
    limited = "pass with limitations"
    inconclusive = "inconclusive"
    failed = "fail"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A grade and why; a plain pass has no reasons."""

    grade: Grade
    reasons: list[str] = field(default_factory=list)


def judge(result: Result, floors: Mapping[str, Floor]) -> Verdict:
    """The verdict on what was measured, by the first of these that applies.

    fail: an output exceeds its budget, is NaN or infinite where the truth is not (or the reverse), or the tiles kept
    are not those that are live. inconclusive: the gate proves nothing, since an output of zeros would pass it too, or
    bounds are infinite. pass with limitations: within budget, but a gradient is further from the truth than
    `FLOORS_ALLOWED` floors, or rows of dC are zero that should not be. pass: the rest.
    """
    for grade, reasons in (
        (Grade.failed, failures(result)),
        (Grade.inconclusive, gaps(result)),
        (Grade.limited, limitations(result, floors)),
    ):
        if reasons:
            return Verdict(grade=grade, reasons=reasons)
    return Verdict(grade=Grade.passed)


def failures(result: Result) -> list[str]:
    found = []
    for output, m in result.outputs.items():
        if (m.over_budget or 0.0) > 1:
            place = ", ".join(map(str, m.worst_element.place))
            found.append(f"{OUTPUTS[output]}[{place}] is {m.over_budget:.3g} times its budget away from the truth")
        if m.nonfinite_mismatches:
            found.append(
                f"{OUTPUTS[output]} is NaN or infinite where the truth is not, or the reverse, in "
                f"{m.nonfinite_mismatches} of {m.elements} elements"
            )
    for side, name in (("e", "dE"), ("c", "dC")):
        kept, least, most = (
            result.tiles[key] for key in (f"kept_{side}", f"live_{side}_at_least", f"live_{side}_at_most")
        )
        if (kept or result.tiles[f"skipped_{side}"]) and not least <= kept <= most:
            found.append(f"{kept} tiles of {name} were kept; {least} to {most} are live")
    if not result.within_budget and not found:
        found.append("the numbers of tiles kept do not agree with the oracle's")
    return found


def gaps(result: Result) -> list[str]:
    found = []
    for output, m in result.outputs.items():
        if m.infinite_bounds:
            found.append(
                f"{m.infinite_bounds} of {m.elements} bounds of {OUTPUTS[output]} are infinite: nothing is judged there"
            )
        if output.startswith("d_") and m.zero_over_budget is not None and m.zero_over_budget <= 1:
            found.append(
                f"a {OUTPUTS[output]} of zeros would pass its budget too: the largest |truth| / bound is "
                f"{m.zero_over_budget:.2g}"
            )
    return found


def limitations(result: Result, floors: Mapping[str, Floor]) -> list[str]:
    found = []
    for output, floor in floors.items():
        times = floor.times(result.outputs[output].normwise) if output in result.outputs else None
        if times is not None and times > FLOORS_ALLOWED:
            found.append(
                f"{OUTPUTS[output]} is {times:.1f} times as far from the truth as two roundings would put it"
                + largest_stage(result, output)
            )
    if result.dead_rows is not None and result.dead_rows.dead:
        dead = result.dead_rows
        found.append(
            f"{dead.dead} of {dead.rows} rows of dC are exactly zero and should not be: "
            f"{100 * dead.lost:.2g} % of its norm is lost"
        )
    return found


def largest_stage(result: Result, output: str) -> str:
    """The stage that the attribution found to cost most, as the end of a sentence."""
    table = result.stages.get(output)
    rows = [row for row in table.rows if row.measured is not None] if table else []
    if not rows:
        return ""
    worst = max(rows, key=lambda row: row.measured or 0.0)
    return f"; most of it from {worst.stage}"
