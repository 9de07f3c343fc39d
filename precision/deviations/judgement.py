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


def _gaussian(dtype: torch.dtype, targets: torch.Tensor, bias: torch.Tensor | None = None) -> Problem:
    """Logits of a standard deviation of about 1: N = 37, V = 75, D = 64."""
    generator = torch.Generator().manual_seed(0)
    e, c = (torch.randn(rows, 64, generator=generator) for rows in (37, 75))
    return Problem(embeddings=(e / 8).to(dtype), classifier=c.to(dtype), targets=targets, bias=bias)


def an_overflow_is_not_judged() -> bool:
    problem = overflowing_de()
    want = double(problem).d_embeddings
    bound = budget(problem, EXACT, SMALL, arithmetic=own(), by_stage=False).bound.d_embeddings
    assert want is not None
    assert bound is not None
    return bool(want.isfinite().all()) and bool(bound.isinf().all())


def fp32_admits_four_times() -> bool:
    return max(_four_times(_gaussian(torch.float32, torch.arange(37))).values()) <= 1


def one_column_admits_four_times() -> bool:
    """Every token is sure of class 3, which is its target."""
    bias = torch.zeros(75)
    bias[3] = 20.0
    return _four_times(_gaussian(torch.bfloat16, torch.full((37,), 3), bias))["d_embeddings"] <= 1


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
        name="Budgets of fp32",
        truth="A budget that admits four times the error finds no small defect.",
        ours="Those of fp32 gradients do admit it.",
        reason="Their bounds add up every rounding of sums over D, V and N at its worst. In bf16 one rounding of the "
        "result outweighs them, and four times the error is refused.",
        source="ARCHITECTURE.md, Rigour; tests/test_budget.py",
        check=fp32_admits_four_times,
    ),
    Deviation(
        name="Heads whose gradient is one column",
        truth="As above.",
        ours="Where every token is sure of the same class, and right, four times the error of dE is admitted in bf16, "
        "too.",
        reason="What is left at the target is lost in 1 + r (see the token that is sure of its target), and the bound "
        "must allow for all of it.",
        source="ARCHITECTURE.md, Rigour",
        check=one_column_admits_four_times,
    ),
)
