"""The budget refuses what it should, empty, reversed and inflated gradients, and its recursions hold and bind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import PRESETS, Schedule, Tiles, Variant, default_schedule
from ccelab.precision import single_stages as stages
from ccelab.precision.accumulation import Accumulation
from ccelab.precision.budget import _chunk
from ccelab.precision.formats import Format
from ccelab.precision.measure import worst_ratio
from ccelab.properties.cases import (
    DEVICE,
    DTYPES,
    GRADIENTS,
    Verdict,
    assert_within_budget,
    draw,
    judge,
    peaked,
)
from ccelab.reference import Problem

MEDIUM = Schedule(
    forward=Tiles(block_n=64, block_v=64, block_d=32), backward=Tiles(block_n=32, block_v=32, block_d=64), splits=2
)
INFLATED = 4.0  # the design's: a budget that admits four times the error is not worth having
SHARE = 1 / 20  # of an accumulation bound that honest rounding must reach somewhere


def ratio(verdict: Verdict, name: str, output: Tensor) -> float:
    return worst_ratio(output, getattr(verdict.truth, name), getattr(verdict.budget.bound, name))


@pytest.mark.parametrize("make", [draw, peaked], ids=["flat", "peaked"])
@pytest.mark.parametrize("variant", [*PRESETS, "cce-no-sort,tail=rank1", "cce-kahan,order=none,eps=2^-6,tail=rank1"])
def test_the_budget_is_not_vacuous(variant: str, make: object) -> None:
    """More than 10^4 elements of dE and dC, in bf16: where all is flat, and where filters drop most tiles."""
    options: dict[str, Any] = {"variant": variant, "bias": torch.bfloat16, "schedule": MEDIUM, "lse": True}
    case = draw((160,), 150, 70, **options) if make is draw else peaked(160, 150, 70, **options)
    verdict = assert_within_budget(case)
    for name in GRADIENTS:
        got, want = verdict.outcome[name].double(), getattr(verdict.truth, name)
        assert got.numel() >= 10**4 or name == "d_bias"
        assert ratio(verdict, name, torch.zeros_like(got)) > 1, name
        assert ratio(verdict, name, -got) > 1, name
        assert ratio(verdict, name, want + INFLATED * (got - want)) > 1, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_nothing_passes_for_a_gradient_in_other_formats(dtype: torch.dtype) -> None:
    verdict = judge(draw((40,), 75, 70, dtype, variant="cce", bias=dtype))
    for name in GRADIENTS:
        assert ratio(verdict, name, torch.zeros_like(verdict.outcome[name])) > 1, name
        assert ratio(verdict, name, -verdict.outcome[name]) > 1, name


def test_one_wrong_element_is_found() -> None:
    """An entry of dC left out, and two exchanged."""
    verdict = judge(draw((40,), 75, 70, variant="cce-no-filter"))
    got = verdict.outcome["d_classifier"].clone()
    got[74, 69] = 0
    assert ratio(verdict, "d_classifier", got) > 1
    got = verdict.outcome["d_classifier"].clone()
    got[[10, 11], 5] = got[[11, 10], 5]
    assert ratio(verdict, "d_classifier", got) > 1


def test_a_filter_that_drops_too_much_is_refused() -> None:
    """Targets in the first tile alone, and gradients of eps = 2^-2 against the budget of the default eps."""
    case = draw(variant="cce-no-sort", ignored=0)
    case = replace(case, target=case.target % MEDIUM.backward.block_v // 2)
    greedy = judge(replace(case, variant="cce-no-sort,eps=2^-2"))
    verdict = judge(case)
    kept, live = greedy.outcome.stats.tiles_kept_e, verdict.budget.tiles_live_e
    assert kept is not None
    assert kept < live[0]
    assert max(ratio(verdict, name, greedy.outcome[name]) for name in ("d_embeddings", "d_classifier")) > 1


def increments(kind: str, terms: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(terms)
    v = torch.randn(terms, width, generator=g)
    if kind == "coherent":
        v = v.abs() + 0.25
    elif kind == "ragged":
        v = v * torch.exp2(torch.randint(-20, 4, v.shape, generator=g).float())
    elif kind == "cancelling":
        v[1::2] = -v[::2] * (1 + torch.rand(v[::2].shape, generator=g) / 64)
    return v.to(DEVICE)


@pytest.mark.parametrize("kind", ["random", "coherent", "ragged", "cancelling"])
@pytest.mark.parametrize("scheme", ["storage", "kahan", "hilo", "fp32"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accumulation_bounds_hold_and_bind(dtype: torch.dtype, scheme: str, kind: str) -> None:
    """The kernels' own sums of exact fp32 increments, which is all the error there is, against the recursion."""
    v = increments(kind, 128, 512)
    fmt = Format.of(dtype)
    bound = Accumulation(scheme, fmt, v[0].double())
    for increment in v.double():
        bound.add(increment, torch.zeros_like(increment))
    s, c = stages.accumulate(v, scheme, dtype)
    want = v.double().sum(0)
    result = s.to(dtype).double()
    returned = ((result - want).abs() / bound.result()).max()
    assert float(returned) <= 1
    assert float(returned) >= SHARE
    if scheme in ("kahan", "hilo"):  # the pair, before its companion is dropped
        assert bool(((s.double() + c.double() - want).abs() <= bound.error).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_scheme_fails_the_bound_of_a_better_one(dtype: torch.dtype) -> None:
    v = increments("coherent", 256, 512)
    want = v.double().sum(0)
    bounds = {}
    for scheme in ("kahan", "hilo", "fp32"):
        bounds[scheme] = Accumulation(scheme, Format.of(dtype), want)
        for increment in v.double():
            bounds[scheme].add(increment, torch.zeros_like(increment))
    storage, _ = stages.accumulate(v, "storage", dtype)
    for scheme, bound in bounds.items():
        assert bool(((storage.double() - want).abs() > bound.result()).any()), scheme


def test_reductions_bound_their_sum() -> None:
    """A mean that divides by all rows instead of those with a target is refused."""
    case = draw((40,), 75, 70, ignored=5, wanted=(False, False, False))
    verdict = assert_within_budget(case)
    assert ratio(verdict, "reduced", verdict.outcome["reduced"] * (35 / 40)) > 1
    assert Variant.of(case.variant) == PRESETS["cce"]


@pytest.mark.parametrize("n", [1, 8192, 2**14])
@pytest.mark.parametrize("variant", PRESETS)
def test_no_increment_is_cut_in_two(variant: str, n: int) -> None:
    """A budget goes through the vocabulary in chunks: of a part of an increment, it would bound two smaller sums."""
    problem = Problem(
        embeddings=torch.zeros((n, 1), dtype=torch.bfloat16),
        classifier=torch.zeros((3, 1), dtype=torch.bfloat16),
        targets=torch.zeros(n, dtype=torch.int64),
    )
    schedule, flags = default_schedule(torch.bfloat16, n, 1), PRESETS[variant]
    block = schedule.backward.block_v
    words = schedule.merged("e", flags, stores=variant == "cce-stored") * block
    assert all(_chunk(problem, flags, schedule, by_stage) % words == 0 for by_stage in (False, True))
