"""No output of ours exceeds its likely bound, which is the bound itself where errors are not random."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ccelab.kernels import PRESETS, Variant
from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.precision.arithmetic import ANY
from ccelab.precision.budget import budget
from ccelab.precision.measure import worst_ratio
from ccelab.properties.cases import DTYPES, GRADIENTS, assert_within_budget, draw
from ccelab.properties.families import FAMILIES
from ccelab.properties.spec import Spec
from ccelab.reference import Solution

OPTIONS = (
    {"bias": "storage", "lse": True, "reduction": "none"},
    {
        "reduction": "mean",
        "ignored": 3,
    },  # no bias: logits of integers stay integers, and those of rows alike stay alike
    {"softcap": 5.0, "reduction": "sum", "upstream": "signed"},
    {"bias": "float32", "lse": True, "reduction": "mean", "softcap": 50.0},
    {"reduction": "none", "upstream": "signed", "lse": True},
)
SEEDS = range(5)


def named(solution: Solution) -> dict[str, torch.Tensor]:
    found = {field.name: getattr(solution, field.name) for field in fields(Solution)}
    return {name: x for name, x in found.items() if x is not None}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_likely_bounds_hold(family: str, dtype: str) -> None:
    """On problems of all options and every preset: a failure has a probability of one in a hundred for each, at most,
    but bounds are far from that, so that there is none."""
    for seed in SEEDS:
        spec = Spec(n=45, v=83, d=37, dtype=dtype, family=family, seed=seed).but(**OPTIONS[seed % len(OPTIONS)])
        verdict = assert_within_budget(spec.case(list(PRESETS)[seed % len(PRESETS)]))
        likely, bound = named(verdict.budget.likely), named(verdict.budget.bound)
        assert likely.keys() == bound.keys()
        for name, got in verdict.outcome.outputs.items():
            assert bool((likely[name] <= bound[name]).all()), name
            assert worst_ratio(got, getattr(verdict.truth, name), likely[name]) <= 1, f"{name}, {spec}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_random_has_no_likely_bound_of_its_own(dtype: torch.dtype) -> None:
    """Nothing where products may truncate; nor gradients of 16 bits: residuals are known there, and sums stagnate."""
    case = draw(dtype=dtype, variant="cce", bias=dtype)
    of_any = budget(case.problem(), Variant.of(case.variant), case.schedule, arithmetic=ANY)
    for name, bound in named(of_any.bound).items():
        assert named(of_any.likely)[name] is bound
    if dtype != torch.float32:
        verdict = assert_within_budget(case)
        assert all(named(verdict.budget.likely)[name] is named(verdict.budget.bound)[name] for name in GRADIENTS)


@pytest.mark.skipif(not IS_INTERPRETED, reason="tensor cores truncate: their errors are not random")
def test_likely_bounds_gain_with_the_number_of_terms() -> None:
    """As a column of dbias has, which is a sum over rows: as their root, less what is systematic."""
    gains = []
    for n in (64, 1024):
        verdict = assert_within_budget(draw((n,), 40, 24, torch.float32, variant="cce-exact", bias=torch.float32))
        bound, likely = (named(x)["d_bias"] for x in (verdict.budget.bound, verdict.budget.likely))
        gains.append(float((bound / likely).median()))
    assert gains[1] > gains[0] > 1
