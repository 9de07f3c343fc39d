"""Budgets where numbers are huge, tiny, masked, saturated or about to overflow: kept by the kernels, and not idle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ccelab.kernels import Tiles, Variant
from ccelab.precision.budget import budget
from ccelab.precision.measure import measure, worst_ratio
from ccelab.properties.cases import DEVICE, DTYPES, SMALL, Case, assert_within_budget, draw, judge
from ccelab.reference import double

VARIANTS = ("cce", "cce-no-filter", "cce-kahan", "cce-exact,accumulate=hilo", "cce-exact")


def refuses_zero(case: Case, name: str) -> bool:
    """Whether the budget refuses an output of zeros."""
    problem = case.problem()
    want = getattr(double(problem), name)
    limit = getattr(budget(problem, Variant.of(case.variant), case.schedule).bound, name)
    return worst_ratio(torch.zeros_like(want), want, limit) > 1


@pytest.mark.parametrize("masked", [-torch.inf, -3e38, -3e10, -1e4])
@pytest.mark.parametrize("softcap", [None, 30.0, 1000.0])
@pytest.mark.parametrize("variant", ["cce", "cce-exact"])
def test_masked_classes(variant: str, softcap: float | None, masked: float) -> None:
    case = draw(bias=torch.float32, softcap=softcap, lse=True, reduction="none", variant=variant)
    assert case.linear_bias is not None
    case.linear_bias[40:50] = masked
    valid = case.target != case.ignore_index
    case = replace(case, target=torch.where(valid & (case.target >= 40) & (case.target < 50), 3, case.target))
    assert_within_budget(case)
    for name in ("loss", "d_embeddings", "d_classifier", "d_bias"):
        assert refuses_zero(case, name), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e18])
def test_huge_logits(dtype: torch.dtype, size: float) -> None:
    case = draw(dtype=dtype, lse=True, reduction="none", variant="cce-exact")
    assert_within_budget(
        replace(case, input=(case.input * size).to(dtype), linear_weight=(case.linear_weight * size).to(dtype))
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("power", [-140, -120, 100, 120])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradients_of_any_size(dtype: torch.dtype, power: int, variant: str) -> None:
    """Results that are subnormal, or overflow, in a storage dtype or in fp32."""
    case = draw(dtype=dtype, bias=torch.float32, reduction="sum", variant=variant)
    verdict = judge(replace(case, grad_loss=torch.tensor(2.0**power, device=DEVICE)))
    assert verdict.within, verdict.ratios


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("operand", ["input", "linear_weight"])
def test_subnormal_operands(operand: str, variant: str) -> None:
    case = draw(dtype=torch.float32, reduction="sum", variant=variant)
    changes: dict[str, Any] = {operand: getattr(case, operand) * 1e-40}
    assert_within_budget(replace(case, **changes))


def test_a_row_scale_at_a_power_of_two() -> None:
    """The fp32 sum of the row's two upstream gradients is 1, the exact one just below."""
    case = Case(
        input=torch.zeros(16, 1, device=DEVICE).half(),
        linear_weight=torch.tensor([[0.0], [1024.0]], device=DEVICE).half(),
        target=torch.zeros(16, dtype=torch.int64, device=DEVICE),
        linear_bias=torch.tensor([0.0, -17.3305], device=DEVICE),
        reduction="none",
        grad_loss=torch.full((16,), 0.75, device=DEVICE),
        grad_lse=torch.full((16,), 0.25 - 2.0**-26, device=DEVICE),
        variant="cce-exact",
    )
    assert_within_budget(case)


def test_rows_far_below_their_neighbours_in_fp32() -> None:
    """One upstream gradient of 1e38 beside others of 2^-10: these count where the first row of E is 0."""
    g = torch.Generator().manual_seed(0)
    embeddings = torch.zeros(16, 2)
    embeddings[1] = torch.tensor([1.0, 0.5])
    case = Case(
        input=embeddings.to(DEVICE),
        linear_weight=torch.randn(5, 2, generator=g).to(DEVICE),
        target=torch.zeros(16, dtype=torch.int64, device=DEVICE),
        reduction="none",
        grad_loss=torch.tensor([1e38] + [2.0**-10] * 15, device=DEVICE),
        wanted=(False, True, False),
        variant="cce-exact",
    )
    assert bool(assert_within_budget(case).outcome["d_classifier"].any())


@pytest.mark.parametrize("variant", VARIANTS)
def test_sums_of_de_stay_within_fp16(variant: str) -> None:
    """A row of residuals that adds up to 4 times its scale, times the largest number of the format."""
    weight, bias = torch.full((4001, 1), 65504.0), torch.zeros(4001)
    weight[0], bias[0] = -65504.0, -30.0
    case = Case(
        input=torch.zeros(1, 1, device=DEVICE).half(),
        linear_weight=weight.to(DEVICE).half(),
        target=torch.zeros(1, dtype=torch.int64, device=DEVICE),
        linear_bias=bias.to(DEVICE),
        reduction="none",
        grad_loss=torch.tensor([0.1248], device=DEVICE),
        wanted=(True, False, False),
        variant=variant,
        schedule=replace(SMALL, backward=Tiles(block_n=16, block_v=128, block_d=16)),
    )
    outcome = assert_within_budget(case).outcome
    assert bool(outcome["d_embeddings"].isfinite().all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_saturated_logits_still_have_a_gradient_to_check(dtype: torch.dtype) -> None:
    """Ten classes far under the cap's floor: their errors are capped too, and do not excuse the others'."""
    case = draw(dtype=dtype, bias=torch.float32, softcap=30.0, reduction="none", variant="cce-exact")
    assert case.linear_bias is not None
    case.linear_bias[40:50] = -1e9
    assert_within_budget(case)
    for name in ("loss", "d_embeddings", "d_classifier"):
        assert refuses_zero(case, name), name


@pytest.mark.parametrize("softcap", [1e-3, 1e-5, 1e-6])
def test_a_small_softcap_is_not_an_excuse(softcap: float) -> None:
    case = draw(scale=softcap / 10, softcap=softcap, variant="cce-exact", lse=True)
    assert_within_budget(case)
    for name in ("d_embeddings", "d_classifier"):
        assert refuses_zero(case, name), name


def test_logits_that_cancel_under_a_softcap() -> None:
    """The computed logit is 0, where the cap has slope 1; the true one is saturated."""
    case = Case(
        input=torch.ones(1, 3, device=DEVICE),
        linear_weight=torch.tensor([[1, 2.0**-30, -1]] * 2, device=DEVICE),
        target=torch.zeros(1, dtype=torch.int64, device=DEVICE),
        reduction="none",
        softcap=2.0**-34,
        variant="cce-exact",
    )
    assert_within_budget(case)


def test_a_bound_that_is_no_number_allows_nothing() -> None:
    want, bound = torch.tensor([5.0, 6.0]).double(), torch.tensor([1e-3, torch.nan]).double()
    got = torch.tensor([1.0, 6.5])
    assert worst_ratio(got, want, bound) == torch.inf
    assert measure("loss", got, want, bound).over_budget == torch.inf
    assert measure("loss", want.float(), want, bound).over_budget == 0


def test_a_bound_of_infinity_allows_an_overflow() -> None:
    want, bound = torch.tensor([5.0]).double(), torch.tensor([torch.inf]).double()
    for got in (torch.tensor([torch.inf]), torch.tensor([torch.nan])):
        measured = measure("loss", got, want, bound)
        assert (measured.over_budget, measured.nonfinite_mismatches) == (0, 0)
        assert worst_ratio(got, want, bound) == 0
