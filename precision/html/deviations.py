"""The registry of known deviations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from markupsafe import Markup

from ..deviations import CALL, JUDGEMENT, MODELS, NUMBERS, Deviation
from .figure import Figure, Section, Table
from .plot import power


def deviations() -> Section:
    return Section(
        slug="deviations",
        title="Known deviations",
        intro="Where the kernels are known to differ from the operation, and the interpreter and the models from a "
        "GPU, and what a passing budget does not prove. A test tries each entry on the CPU and fails as soon as the "
        "difference is gone, so that the list does not outlive what it says. What only hardware shows is read from the "
        "committed file named.",
        figures=[
            _figure(
                "The call",
                CALL,
                "Decisions: the plain operation is torch's, over stored logits.",
            ),
            _figure(
                "Numbers of the kernels",
                NUMBERS,
                "A kernel on a problem of a few numbers, against the float64 oracle. Rounding within the budget is no "
                "deviation and stands elsewhere on this page.",
            ),
            _figure(
                "Interpreter and models of GPUs",
                MODELS,
                "What a measurement in Triton's interpreter, or an attribution by a model, does not show of a GPU.",
            ),
            _figure(
                "What is not judged",
                JUDGEMENT,
                "Errors that a budget would let pass.",
            ),
        ],
    )


def _figure(title: str, entries: Sequence[Deviation], how: str) -> Figure:
    rows = [
        [
            Markup('<span class="entry">{}</span>').format(typeset(entry.name)),
            typeset(entry.truth),
            typeset(entry.ours),
            Markup('{}<span class="reasons">{}</span>').format(typeset(entry.reason), entry.source),
        ]
        for entry in entries
    ]
    table = Table(
        title=title,
        columns=("", "what it should be", "what it is", "why, and where that is written"),
        rows=rows,
        words=frozenset({0, 1, 2, 3}),
        prose=True,
    )
    return Figure(title=title, how=how, tables=[table], open_tables=True)


def typeset(text: str) -> str:
    """Powers of two as on the rest of the page: 2^-24 is 2⁻²⁴."""
    return re.sub(r"\b2\^(-?\d+)", lambda found: power(2, int(found[1])), text)
