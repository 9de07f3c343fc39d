"""Where the laboratory itself cannot tell right from wrong: what a pass does not say."""

from __future__ import annotations

import torch

from ccelab.kernels import Variant
from ccelab.reference import Problem, double

from ..arithmetic import own
from ..budget import budget
from ..call import run
from ..measure import worst_ratio
from ..names import GRADIENTS
from .deviation import Deviation
from .numbers import SMALL, overflowing_de

EXACT = Variant.of("cce-exact")


def _four_times(problem: Problem) -> dict[str, float]:
    """Of each gradient with four times its error, the worst ratio to its bound: above 1 the budget refuses it."""
    want, got = double(problem), run(problem, EXACT, SMALL)[0]
    bound = budget(problem, EXACT, SMALL, arithmetic=own(), by_stage=False).bound
    triples = {name: tuple(getattr(x, name) for x in (want, got, bound)) for name in GRADIENTS}
    return {name: worst_ratio(w + 4 * (g.double() - w), w, b) for name, (w, g, b) in triples.items()}


def an_overflow_is_not_judged() -> bool:
    problem = overflowing_de()
    want = double(problem).d_embeddings
    bound = budget(problem, EXACT, SMALL, arithmetic=own(), by_stage=False).bound.d_embeddings
    assert want is not None
    assert bound is not None
    return bool(want.isfinite().all()) and bool(bound.isinf().all())


def fp32_admits_four_times_in_dc() -> bool:
    """Tokens that are all alike in sign and nearly in softmax: N = 160, V = 150, D = 64."""
    generator = torch.Generator().manual_seed(0)
    e, c = (torch.randn(rows, 64, generator=generator) for rows in (160, 150))
    alike = Problem(embeddings=(e.abs() + 1) / 8, classifier=c / 16, targets=torch.arange(160) % 150)
    return _four_times(alike)["d_classifier"] <= 1


JUDGEMENT = (
    Deviation(
        name="Possible overflows",
        truth="A finite truth is a number to be held to.",
        ours="An infinite bound, which admits anything, where an intermediate result may leave fp32 or the storage "
        "dtype.",
        reason="Whether it overflows depends on the order of sums. A verdict counts such elements, and is "
        "inconclusive.",
        source="precision/stages.py, overflowing; precision/verdict.py, gaps",
        check=an_overflow_is_not_judged,
    ),
    Deviation(
        name="Budgets of dC in fp32",
        truth="A budget that admits four times the error finds no small defect.",
        ours="Where all tokens are alike, that of dC in fp32 does admit it.",
        reason="The roundings of many small softmaxes cancel in dC, and a bound adds up their sizes. In 16 bits one "
        "rounding of the result outweighs them, and four times the error is refused.",
        source="ARCHITECTURE.md, Rigour; tests/test_budget_inflated.py",
        check=fp32_admits_four_times_in_dc,
    ),
)
