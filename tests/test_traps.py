"""Mistakes seen in kernels of this kind, one test each. Where it can, a test shows that the mistake would be caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant, launch
from ccelab.precision import single_stages as stages
from ccelab.precision.budget import budget
from ccelab.precision.measure import worst_ratio
from ccelab.properties.cases import (
    DEVICE,
    DTYPES,
    SMALL,
    Case,
    assert_within_budget,
    draw,
    judge,
    peaked,
    run,
)
from ccelab.reference import Reduction, double
from ccelab.reference.double import Stream


def exceeds(case: Case, name: str, wrong: Tensor) -> bool:
    """Whether the case's budget would refuse this output."""
    problem = case.problem()
    limit = budget(problem, Variant.of(case.variant), case.schedule)
    return worst_ratio(wrong, getattr(double(problem), name), getattr(limit.bound, name)) > 1


@pytest.mark.parametrize("softcap", [2.0**-6, 1.0])
@pytest.mark.parametrize("v", [33, 47, 5])
def test_padding_is_masked_after_the_softcap(v: int, softcap: float) -> None:
    """A mask of -inf before the cap becomes -softcap, and every column of padding nearly a class."""
    case = draw((20,), v, 20, softcap=softcap, lse=True, variant="cce-no-sort")
    verdict = assert_within_budget(case)
    padding = -v % SMALL.forward.block_v
    lse = verdict.truth.lse
    wrong = torch.where(case.problem().valid, torch.log(lse.exp() + padding * torch.exp(lse.new_tensor(-softcap))), 0.0)
    assert exceeds(case, "lse", wrong)


def test_bias_is_added_once() -> None:
    """And not once per block of D."""
    case = draw((20,), 40, 70, bias=torch.bfloat16, lse=True, variant="cce")
    assert_within_budget(case)
    assert case.linear_bias is not None
    blocks = -(-70 // SMALL.forward.block_d)
    assert exceeds(case, "lse", double(replace(case, linear_bias=case.linear_bias * blocks).problem()).lse)


@pytest.mark.parametrize("variant", ["cce-no-sort", "cce", "cce-exact,target=indexed"])
@pytest.mark.parametrize("v", [33, 48, 17])
def test_targets_beside_the_padding(v: int, variant: str) -> None:
    """The last class shares its tile with columns that do not exist; with one split more than there are tiles."""
    case = draw((20,), v, 20, variant=variant, ignored=0, reduction="none", schedule=replace(SMALL, splits=3))
    assert_within_budget(replace(case, target=torch.full_like(case.target, v - 1)))


@pytest.mark.parametrize("variant", ["cce,eps=1", "cce-no-sort,eps=1"])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, False, True)], ids=str)
def test_dbias_is_complete_where_everything_is_filtered(variant: str, wanted: tuple[bool, bool, bool]) -> None:
    case = draw((20,), 40, 20, bias=torch.float32, variant=variant, wanted=wanted)
    outcome = assert_within_budget(case).outcome
    assert bool(outcome["d_bias"].any())
    assert exceeds(case, "d_bias", torch.zeros_like(outcome["d_bias"]))
    for name in ("d_embeddings", "d_classifier"):
        assert name not in outcome.outputs or not outcome[name].any()


@pytest.mark.parametrize("variant", ["cce", "cce-no-sort", "cce-kahan"])
def test_the_filter_sees_the_gradient_of_the_lse(variant: str) -> None:
    """A token that is sure of its target has no gradient from the loss, but all of it from a z-loss."""
    case = draw((20,), 40, 70, ignored=0, lse=True, variant=variant)
    case = replace(case, input=case.linear_weight[case.target], grad_lse=torch.ones(20, device=DEVICE))
    verdict = assert_within_budget(case)
    blind = run(replace(case, grad_lse=None))
    assert blind.stats.tiles_kept_e == blind.stats.tiles_kept_c == 0
    for name in ("d_embeddings", "d_classifier"):
        assert exceeds(case, name, torch.zeros_like(verdict.outcome[name]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_kahan_is_kahan(dtype: torch.dtype) -> None:
    """Along 64 tiles whose increments add up, plain storage leaves the budget that kahan and hilo keep."""
    schedule = Schedule(
        forward=Tiles(block_n=128, block_v=16, block_d=16), backward=Tiles(block_n=16, block_v=16, block_d=16)
    )
    case = draw((1024,), 16, 16, dtype, ignored=0, scale=0.01, upstream=False, wanted=(False, True, False))
    case = replace(case, input=case.input.abs() + 1, target=torch.zeros_like(case.target), schedule=schedule)
    of = {a: replace(case, variant=f"cce-exact,accumulate={a}") for a in ("storage", "kahan", "hilo")}
    got = {accumulate: assert_within_budget(each).outcome["d_classifier"] for accumulate, each in of.items()}
    assert exceeds(of["kahan"], "d_classifier", got["storage"])
    assert exceeds(of["hilo"], "d_classifier", got["storage"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_hilo_adds_increments_as_they_are(dtype: torch.dtype) -> None:
    """Increments that cancel leave a small sum: any cast of theirs shows. hilo's own error is of second order."""
    g = torch.Generator().manual_seed(0)
    v = torch.randn(64, 1024, generator=g).to(DEVICE)
    v[1::2] = -v[::2] * (1 + torch.rand(32, 1024, generator=g).to(DEVICE) / 64)
    want = v.double().sum(0)
    error = {}
    for scheme in ("hilo", "kahan", "storage"):
        s, c = stages.accumulate(v, scheme, dtype)
        error[scheme] = (s.double() + (c.double() if scheme != "storage" else 0) - want).norm()
    u = torch.finfo(dtype).eps / 2
    largest = v.double().cumsum(0).abs().amax()
    # Every step rounds the pair to 2p bits and the fp32 sum once; a cast of the increments costs u |v| each.
    assert error["hilo"] <= len(v) * (u * u + 2.0**-23) * largest * 1024**0.5
    assert error["hilo"] < u * error["storage"] / u**0.5
    assert error["hilo"] < error["kahan"]


def test_both_passes_see_the_same_logits() -> None:
    """One token and a fp32 bias: dbias is the residual itself, never rounded to storage. It sums to 0."""
    case = draw((1,), 75, 70, ignored=0, scale=1.0, bias=torch.float32, variant="cce-exact", upstream=False)
    verdict = assert_within_budget(case)
    bound = verdict.budget.bound.d_bias
    assert bound is not None
    assert float(verdict.outcome["d_bias"].double().sum().abs()) <= float(bound.sum())
    stream = Stream(case.problem())
    logits = stream.logits(torch.arange(75, device=DEVICE))
    lse = torch.logsumexp(logits, 1, keepdim=True)
    onehot = torch.nn.functional.one_hot(case.target, 75)
    assert not exceeds(case, "d_bias", (torch.exp(logits - lse) - onehot)[0])
    assert exceeds(case, "d_bias", (torch.exp(logits.bfloat16().double() - lse) - onehot)[0])


@pytest.mark.parametrize("scheme", ["storage", "kahan", "hilo", "fp32"])
def test_a_tiny_upstream_gradient_does_not_vanish_in_fp16(scheme: str) -> None:
    """A power of two from upstream is a power of two in the gradients, wherever those are normal numbers."""
    case = draw((20,), 40, 20, torch.float16, variant=f"cce-exact,accumulate={scheme}", reduction="sum")
    scaled: dict[str, Any] = {"input": case.input / 1024, "linear_weight": case.linear_weight * 1024}
    one, tiny = (
        run(replace(case, **scaled, grad_loss=torch.tensor(scale, device=DEVICE), wanted=(True, False, False)))
        for scale in (1.0, 2.0**-20)
    )
    got, want = tiny["d_embeddings"].float(), one["d_embeddings"].float() * 2.0**-20
    normal = want.abs() >= torch.finfo(torch.float16).tiny
    assert int(normal.sum()) > normal.numel() // 2
    assert torch.equal(got[normal], want[normal])


@pytest.mark.parametrize("variant", ["cce-no-sort", "cce-no-sort,eps=1", "cce-no-sort,accumulate=kahan"])
def test_a_filter_never_swallows_nan(variant: str) -> None:
    case = peaked(variant=variant, ignored=0, reduction="none")
    case.input[20] = torch.nan
    outcome = run(case)
    assert bool(outcome["d_embeddings"][20].isnan().all())
    assert bool(outcome["d_classifier"].isnan().all())
    finite = torch.arange(37, device=DEVICE) // SMALL.backward.block_n != 20 // SMALL.backward.block_n
    assert bool(outcome["d_embeddings"][finite].isfinite().all())
    assert outcome.stats.tiles_kept_e is not None
    assert outcome.stats.tiles_kept_e >= 5  # the whole row of tiles


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fused_loss_is_never_negative(dtype: torch.dtype) -> None:
    """Also where the target has all the probability, and exactly 0 where there is one class."""
    case = draw((37,), 75, 70, dtype, ignored=0, reduction="none", wanted=(False, False, False), upstream=False)
    for scale in (0.0, 0.25, 1.0, 4.0):
        loss = run(replace(case, input=case.linear_weight[case.target] * scale))["loss"]
        assert bool((loss >= 0).all())
    single = draw((37,), 1, 70, dtype, ignored=0, reduction="none", scale=3.0, bias=torch.float32)
    assert not assert_within_budget(single).outcome["loss"].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_filter_never_sees_the_number_of_tokens(dtype: torch.dtype) -> None:
    """Sum, mean and any scale from upstream, also a negative one, keep the same tiles."""
    case = peaked(dtype=dtype, variant="cce")
    kept = set()
    calls: tuple[tuple[Reduction, float], ...] = (("sum", 1.0), ("mean", -3.7), ("none", 2.0**-30))
    for reduction, scale in calls:
        upstream = torch.tensor(scale, device=DEVICE)
        upstream = upstream.expand(37) if reduction == "none" else upstream
        stats = run(replace(case, reduction=reduction, grad_loss=upstream)).stats
        kept.add((stats.tiles_kept_e, stats.tiles_kept_c))
    assert len(kept) == 1


@pytest.mark.parametrize("variant", ["cce", "cce-exact"])
def test_shards_of_the_vocabulary_combine(variant: str) -> None:
    """Partial results of two shards, as of two devices, are within the budget of the whole; a target lives in one."""
    case = draw(variant=variant, reduction="none", lse=True, bias=torch.float32, softcap=20.0)
    assert case.linear_bias is not None
    flags = Variant.of(variant)
    whole = launch.Call(
        case.input, case.linear_weight, case.linear_bias, case.target, case.ignore_index, 20.0, flags, SMALL
    )
    parts = []
    for first, last in ((0, 40), (40, 75)):
        here = (case.target >= first) & (case.target < last)
        shard = replace(
            whole,
            classifier=case.linear_weight[first:last],
            bias=case.linear_bias[first:last],
            targets=torch.where(here, case.target - first, -1),
        )
        parts.append(launch.forward_partial(shard))
    joined = type(parts[0])(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
    loss, lse, _, _ = launch.combine(whole, joined)
    problem = case.problem()
    truth, limit = double(problem), budget(problem, flags, replace(SMALL, splits=4)).bound
    assert worst_ratio(loss, truth.loss, limit.loss) <= 1
    assert worst_ratio(lse, truth.lse, limit.lse) <= 1


@pytest.mark.gpu
def test_indices_beyond_int32_in_the_logits() -> None:
    """N x V > 2^31; the last rows and classes are where an overflow would show."""
    tiles = Tiles(block_n=128, block_v=128, block_d=16, warps=8)
    schedule = Schedule(forward=tiles, backward=tiles, splits=4)
    case = draw((8704,), 256000, 16, variant="cce-no-sort", schedule=schedule, lse=True)
    assert_within_budget(case)


@pytest.mark.gpu
@pytest.mark.parametrize("descriptors", [True, False])
def test_indices_beyond_int32_in_the_classifier(descriptors: bool) -> None:
    """Rows 2^26 apart, 70 of them."""
    case = draw((37,), 70, 40, variant="cce", schedule=replace(SMALL, descriptors=descriptors))
    spread = torch.empty((70, 2**26), dtype=torch.bfloat16, device=DEVICE)[:, :40]
    spread.copy_(case.linear_weight)
    verdict = judge(replace(case, linear_weight=spread))
    assert verdict.within
    same = run(case)
    assert all(torch.equal(verdict.outcome[name], same[name]) for name in same.outputs)
