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
from ccelab.properties.spec import Spec
from ccelab.reference import double

VARIANTS = (
    *("cce", "cce-no-filter", "cce-kahan", "cce-exact,accumulate=hilo", "cce-exact"),
    "cce-kahan,order=none,eps=2^-2,tail=rank1",
)


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
@pytest.mark.parametrize("power", [-30, -60, -100, -126, -135])
@pytest.mark.parametrize("size", [1.0, 2.0**-30])
def test_rows_of_which_little_is_left_at_their_scale(size: float, power: int, variant: str) -> None:
    """Half the rows have next to no upstream gradient beside the others', where E = 0: dC is theirs alone, and at that
    scale bf16 rows of E become subnormal, or 0."""
    case = draw((20,), dtype=torch.bfloat16, reduction="none", variant=variant)
    assert case.grad_loss is not None
    far = torch.arange(20, device=DEVICE) % 2 == 0
    rows = torch.where(far[:, None], case.input * size, 0.0).to(torch.bfloat16)
    upstream = torch.where(far, 2.0**power, 1.0) * case.grad_loss.abs().clamp(min=0.5)
    case = replace(case, input=rows, target=torch.where(far, 0, 1), grad_loss=upstream)
    assert_within_budget(case)
    if power >= -60:
        assert refuses_zero(case, "d_classifier")


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


@pytest.mark.parametrize("target", ["fused", "indexed"])
def test_a_loss_that_overflows_where_no_logit_does(target: str) -> None:
    """Logits of 2e38 and -2e38; and ten losses that fp32 holds, but not their sum."""
    case = Case(
        input=torch.full((10, 1), 1.4e19, device=DEVICE),
        linear_weight=torch.tensor([[-1.4e19], [1.4e19], [0.0]], device=DEVICE),
        target=torch.zeros(10, dtype=torch.int64, device=DEVICE),
        reduction="none",
        variant=f"cce-exact,target={target}",
    )
    assert bool(assert_within_budget(case).outcome["loss"].isinf().all())
    summed = replace(case, reduction="sum", target=case.target + 2)
    assert bool(assert_within_budget(summed).outcome["reduced"].isinf())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_products_overflow_before_their_scale_is_put_back(dtype: torch.dtype) -> None:
    """A residual of 1.8 times its row's power of two, by entries of 3e38: 0.9 * 3e38 would fit."""
    c = torch.tensor([[3e38], [-3e38], [0.0], [3e38]], device=DEVICE, dtype=dtype)
    case = Case(
        input=torch.zeros((20, 1), device=DEVICE, dtype=dtype),
        linear_weight=c,
        target=torch.zeros(20, dtype=torch.int64, device=DEVICE),
        reduction="none",
        grad_loss=torch.full((20,), 0.9, device=DEVICE),
        variant="cce-exact",
    )
    assert_within_budget(case)
    flipped = replace(case, input=torch.full_like(case.input, 3e38), linear_weight=torch.zeros_like(c))
    assert_within_budget(replace(flipped, reduction="mean", grad_loss=None))


@pytest.mark.parametrize("entry", [2.0**63, 2.0**64])
@pytest.mark.parametrize(("target", "softcap"), [("fused", 1e30), ("indexed", 1e30), ("fused", None)])
def test_masked_and_capped_classes_beside_logits_that_overflow(
    target: str, softcap: float | None, entry: float
) -> None:
    """+inf - inf is NaN, which no cap takes back, and a softmax of NaN times the slope 0 of a masked class is NaN."""
    case = draw(d=3, dtype=torch.float32, bias=torch.float32, softcap=softcap, lse=True, reduction="none")
    assert case.linear_bias is not None
    case.linear_bias[::3] = -torch.inf
    masked = (case.target >= 0) & (case.target % 3 == 0)  # a target that is masked has no loss to speak of
    case = replace(case, target=torch.where(masked, case.target + 1, case.target))
    weight = case.linear_weight.sign() * entry
    case = replace(case, input=case.input.abs().sign() * entry, linear_weight=weight)
    case = replace(case, variant=f"cce-no-filter,target={target}")
    assert_within_budget(case)
    bound = judge(case).budget.bound
    for x in (bound.loss, bound.d_embeddings, bound.d_classifier, bound.d_bias):
        assert x is not None
        assert not bool(x.isnan().any())


@pytest.mark.parametrize("variant", ["cce-kahan", "cce-no-sort,eps=2^-2,tail=rank1"])
@pytest.mark.parametrize("upstream", [torch.inf, torch.nan, 0.0])
def test_upstream_gradients_of_ignored_rows_excuse_nobody(upstream: float, variant: str) -> None:
    """Nor does a row that has none: no bound is infinite, and dE is 0 in such rows."""
    case = draw(dtype=torch.bfloat16, reduction="none", lse=True, ignored=3, variant=variant)
    assert case.grad_loss is not None
    assert case.grad_lse is not None
    for x in (case.grad_loss, case.grad_lse):
        x[case.target == case.ignore_index] = upstream
        x[10] = 0.0
    verdict = assert_within_budget(case)
    for name in ("d_embeddings", "d_classifier"):
        assert bool(getattr(verdict.budget.bound, name).isfinite().all()), name
    want, bound = verdict.truth.d_embeddings, verdict.budget.bound.d_embeddings
    assert want is not None
    assert bound is not None
    assert worst_ratio(want + 1e-30 * (torch.arange(len(want), device=DEVICE) == 10)[:, None], want, bound) > 1


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


@pytest.mark.parametrize(
    "variant", ["cce-kahan", "cce-no-sort", "cce-no-sort,tail=rank1", "cce-segment,eps=2^-4,tail=drop"]
)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_dropped_is_known_as_well_as_the_oracle_knows_it(seed: int, variant: str) -> None:
    """Saturated softcaps have slopes of 1e-300, which float64 gets wrong by all that it gets the logit wrong by: in
    another order of the vocabulary the sum of what was dropped was another by 2e-14 of itself, beyond its budget."""
    spec = Spec(n=45, v=83, d=37, dtype="float32", family="offset", seed=seed, bias="float32", lse=True)
    assert_within_budget(spec.but(softcap=2.0, reduction="mean").case(variant))
