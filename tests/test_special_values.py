"""NaN, infinities and nothing at all: they reach exactly the rows they touch, and mean what they mean to torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import PRESETS
from ccelab.properties.cases import DEVICE, DTYPES, SMALL, Case, Outcome, assert_within_budget, draw, run
from ccelab.reference import Solution, double

TAIL = "cce-no-sort,eps=2^-4,tail=rank1"
UNSORTED = [*(name for name, preset in PRESETS.items() if preset.order == "none"), TAIL]
BAD = (torch.nan, torch.inf, -torch.inf)


def case_for(variant: str = "cce-no-sort", dtype: torch.dtype = torch.bfloat16, **options: Any) -> Case:
    """Every output per row; a float where a test can plant what it likes."""
    given: dict[str, Any] = {"reduction": "none", "lse": True, "bias": torch.float32, "variant": variant, **options}
    return draw((35,), 40, 20, dtype, **given)


def same_bits(a: Tensor, b: Tensor) -> bool:
    kind = torch.int32 if a.element_size() == 4 else torch.int16
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def alike(outcome: Outcome, truth: Solution) -> bool:
    """NaN where the truth is NaN, the same infinities, finite elsewhere."""
    return all(
        torch.equal(torch.nan_to_num(got.double() * 0, 0.0), torch.zeros_like(got, dtype=torch.float64))
        and torch.equal(got.isnan(), want.isnan())
        and torch.equal(got[got.isinf()].double(), want[want.isinf()])
        for got, want in ((x, getattr(truth, name)) for name, x in outcome.outputs.items())
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_token_spoils_its_own_row(bad: float, dtype: torch.dtype) -> None:
    case = case_for(dtype=dtype)
    good = run(case)
    spoilt = case.input.clone()
    spoilt[20, 3] = bad
    outcome = run(replace(case, input=spoilt))
    others = torch.arange(35, device=DEVICE) != 20
    for name in ("loss", "lse", "d_embeddings"):
        assert same_bits(outcome[name][others], good[name][others]), name
    assert not outcome["d_embeddings"][20].isfinite().any()
    assert alike(outcome, double(replace(case, input=spoilt).problem()))


@pytest.mark.parametrize("variant", ["cce-no-sort", "cce-exact,target=indexed"])
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_bad_class_spoils_every_row_with_a_target(bad: float, variant: str) -> None:
    case = case_for(variant)
    spoilt = case.linear_weight.clone()
    spoilt[17, 3] = bad
    outcome = run(replace(case, linear_weight=spoilt))
    assert alike(outcome, double(replace(case, linear_weight=spoilt).problem()))
    ignored = case.target == case.ignore_index
    assert not outcome["d_embeddings"][ignored].any()
    assert not outcome["d_embeddings"][~ignored][:, 3].isfinite().any()


@pytest.mark.parametrize("variant", [*PRESETS, TAIL])
def test_an_ignored_row_is_invisible(variant: str) -> None:
    """Whatever it holds, and whatever comes for it from upstream: also to the vocabulary order."""
    case = case_for(variant)
    assert case.grad_loss is not None
    assert case.grad_lse is not None
    ignored = case.target == case.ignore_index
    assert bool(ignored.any())
    planted: dict[str, Any] = {
        name: torch.where(ignored if x.ndim == 1 else ignored[:, None], torch.nan, x)
        for name, x in (("input", case.input), ("grad_loss", case.grad_loss), ("grad_lse", case.grad_lse))
    }
    good, outcome = run(case), run(replace(case, **planted))
    for name, output in good.outputs.items():
        assert same_bits(output, outcome[name]), name


@pytest.mark.parametrize("variant", UNSORTED)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
def test_a_bad_upstream_gradient_spoils_its_own_row(bad: float, variant: str) -> None:
    case = case_for(variant)
    good = run(case)
    assert case.grad_loss is not None
    spoilt = case.grad_loss.clone()
    spoilt[20] = bad
    outcome = run(replace(case, grad_loss=spoilt))
    others = torch.arange(35, device=DEVICE) != 20
    assert same_bits(outcome["d_embeddings"][others], good["d_embeddings"][others])
    assert not outcome["d_embeddings"][20].isfinite().any()
    assert not outcome["d_classifier"].isfinite().any()


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("masked", [slice(0, 32), slice(5, 6), slice(30, 40), slice(32, 40)], ids=str)
def test_a_bias_of_minus_infinity_masks_a_class(masked: slice, softcap: float | None) -> None:
    """Also a whole tile of classes. Like a bias that underflows, bit for bit; a cap brings the class back."""
    case = case_for("cce-no-filter", softcap=softcap)
    outcomes = []
    for value in (-torch.inf, -(2.0**20)):
        bias = torch.zeros(40, device=DEVICE)
        bias[masked] = value
        inside = torch.zeros(40, dtype=torch.bool, device=DEVICE)
        inside[masked] = True
        target = torch.where(
            (case.target >= 0) & inside[case.target.clamp(min=0)], 10 if masked.start > 10 else 39, case.target
        )
        outcomes.append(run(replace(case, linear_bias=bias, target=target)))
    infinite, large = outcomes
    for name, output in infinite.outputs.items():
        assert bool(output.isfinite().all())
        assert same_bits(output, large[name]), name
    if softcap is None:
        assert not infinite["d_classifier"][masked].any()
        assert not infinite["d_bias"][masked].any()


def test_masked_classes_are_as_good_as_absent() -> None:
    """A first tile of -inf alone: the running maximum starts there, and nothing of it may stay."""
    case = case_for("cce-no-filter", ignored=0, schedule=replace(SMALL, splits=1))
    case = replace(case, target=case.target % 8 + 32)
    assert case.linear_bias is not None
    bias = case.linear_bias.clone()
    bias[:32] = -torch.inf
    whole = run(replace(case, linear_bias=bias))
    without = replace(case, linear_weight=case.linear_weight[32:], linear_bias=bias[32:], target=case.target - 32)
    rest = assert_within_budget(without).outcome
    for name in ("loss", "lse", "d_embeddings"):
        assert same_bits(whole[name], rest[name]), name
    for name in ("d_classifier", "d_bias"):
        assert same_bits(whole[name][32:], rest[name]), name


@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("variant", ["cce", "cce-no-filter", "cce-exact,target=indexed"])
def test_infinite_logits_give_infinite_losses(variant: str, value: float) -> None:
    """One class at +inf, or every class at -inf."""
    case = case_for(variant)
    bias = torch.zeros(40, device=DEVICE)
    bias[7 if value > 0 else slice(None)] = value
    case = replace(case, linear_bias=bias)
    outcome, valid = run(case), case.target != case.ignore_index
    assert alike(outcome, double(case.problem()))
    logits = torch.nn.functional.linear(case.input.double(), case.linear_weight.double(), bias.double())
    # Not torch's cross_entropy, which makes NaN of every loss beside an infinite logit.
    want = torch.logsumexp(logits, 1) - logits.gather(1, case.target.clamp(min=0)[:, None])[:, 0]
    assert torch.equal(outcome["loss"].isnan(), want.isnan() & valid)
    assert bool((outcome["lse"][valid] == value).all())
    assert bool(outcome["d_embeddings"][valid].isnan().all())


@pytest.mark.parametrize("variant", [*PRESETS, TAIL])
@pytest.mark.parametrize("leading", [(0,), (2, 0), (0, 3)], ids=str)
def test_no_tokens_at_all(leading: tuple[int, ...], variant: str) -> None:
    for reduction in ("none", "mean", "sum"):
        case = Case(
            input=torch.zeros(*leading, 20, dtype=torch.bfloat16, device=DEVICE),
            linear_weight=torch.ones(40, 20, dtype=torch.bfloat16, device=DEVICE),
            linear_bias=torch.ones(40, device=DEVICE),
            target=torch.zeros(leading, dtype=torch.int64, device=DEVICE),
            reduction=reduction,
            grad_lse=torch.zeros(leading, device=DEVICE),
            variant=variant,
        )
        outcome = run(case)
        assert not outcome["d_classifier"].any()
        assert not outcome["d_bias"].any()
        assert outcome["lse"].shape == (0,)
        assert outcome["reduced"].shape == ((0,) if reduction == "none" else (1,))
        assert not outcome["reduced"].any()
