"""tail=rank1 with granularity=tile: what it gives back, to whom, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant
from ccelab.kernels.sampling import sample_rows
from ccelab.properties.cases import DTYPES, SMALL, Case, Outcome, draw, peaked, run
from ccelab.reference import double

WIDE = replace(SMALL, forward=Tiles(block_n=32, block_v=32, block_d=16), segment=16)
WIDE = replace(WIDE, backward=replace(SMALL.backward, block_v=64), group=1)
"""Backward tiles of four segments, which lie in two forward tiles."""
BASES = (
    "cce-no-sort",
    "cce-no-sort,increment=tile",
    "cce-no-sort,accumulate=hilo",
    "cce-no-sort,accumulate=fp32",
    "cce-kahan,order=none",
    "cce-kahan-full-c,order=none",
    "cce-kahan-full-e,order=none",
)


def with_tail(case: Case, base: str, eps: str = "2^-6") -> Case:
    return replace(case, variant=f"{base},eps={eps},tail=rank1")


def without_tail(case: Case) -> Case:
    return replace(case, variant=replace(Variant.of(case.variant), tail="drop"))


def errors(case: Case, outcome: Outcome) -> dict[str, float]:
    truth = double(case.problem())
    return {
        name: float((got.double() - getattr(truth, name)).norm() / getattr(truth, name).norm())
        for name, got in outcome.outputs.items()
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("base", BASES)
def test_what_is_given_back_is_nearer_to_the_truth(base: str, dtype: torch.dtype) -> None:
    """Than what is dropped; a gradient that is not filtered has the same bits as ever."""
    case = with_tail(peaked(53, 130, 40, dtype, bias=dtype, lse=True), base)
    one, other = run(case), run(without_tail(case))
    assert one.stats.tiles_skipped_e or one.stats.tiles_skipped_c
    with_it, without = errors(case, one), errors(case, other)
    for name, filtered in zip(("d_embeddings", "d_classifier"), base_filters(case), strict=True):
        if filtered:
            assert with_it[name] < without[name], name
        else:
            assert torch.equal(one[name], other[name]), name
    assert torch.equal(one["d_bias"], other["d_bias"])


def base_filters(case: Case) -> tuple[bool, bool]:
    variant = Variant.of(case.variant)
    return variant.filter_e, variant.filter_c


def dropped(outcome: Outcome, case: Case) -> Tensor:
    """(N, V) bool."""
    (n, v, _), tiles = case.problem().shape, case.schedule.backward
    assert outcome.stats.tiles is not None
    marks = outcome.stats.tiles.repeat_interleave(tiles.block_n, 0)[:n]
    return marks.repeat_interleave(tiles.block_v, 1)[:, :v] == 0


@pytest.mark.parametrize("schedule", [SMALL, WIDE, replace(SMALL, splits=3)], ids=["small", "wide", "splits"])
def test_the_tail_is_that_of_the_tiles(schedule: Schedule) -> None:
    """m q^T as its docstring has it, in float64 from what the call says: with fp32 sums all else is the same."""
    case = with_tail(peaked(53, 300, 40, torch.float32, lse=True), "cce-no-sort,accumulate=fp32", "2^-10")
    case = replace(case, schedule=schedule)
    one, other = run(case), run(without_tail(case))
    problem, stats = case.problem(), one.stats
    assert stats.tail_share is not None
    assert stats.filtered_mass_e is not None
    logits = problem.embeddings.double() @ problem.classifier.double().T
    probabilities = torch.where(problem.valid[:, None], logits.softmax(1), 0.0)
    lost = torch.where(dropped(one, case), probabilities, 0.0)
    assert int((lost.sum(1) > 0).sum()) > 20
    torch.testing.assert_close(stats.filtered_mass_e.double(), lost.sum(1), rtol=2e-2, atol=1e-7)
    sampled = lost[sample_rows(problem.targets, problem.ignore_index)]
    torch.testing.assert_close(stats.tail_share.double(), sampled.sum(0) / sampled.sum(), rtol=1e-4, atol=1e-7)
    d_loss, d_lse = problem.upstream()
    m = (stats.filtered_mass_e.double() * torch.where(problem.valid, d_loss + d_lse, 0.0))[:, None]
    q = stats.tail_share.double()[:, None]
    for name, x in (
        ("d_embeddings", m * (q.T @ problem.classifier.double())),
        ("d_classifier", q * (m.T @ problem.embeddings.double())),
    ):
        torch.testing.assert_close(one[name].double() - other[name].double(), x, rtol=1e-3, atol=1e-7)


def test_targets_are_kept() -> None:
    """Even those that are all but certain, of which a call without a tail drops tiles."""
    case = peaked(40, 130, 40)
    case = with_tail(replace(case, input=4 * case.linear_weight[case.target.clamp(min=0)]), "cce-no-sort", "2^-4")
    one, other = run(case), run(without_tail(case))
    assert one.stats.tiles_kept_e is not None
    assert other.stats.tiles_kept_e is not None
    assert one.stats.tiles_kept_e > other.stats.tiles_kept_e
    rows = case.problem().valid.nonzero()[:, 0]
    assert not bool(dropped(one, case)[rows, case.target[rows]].any())


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (True, True, False)])
def test_what_is_asked_for_changes_no_bit(wanted: tuple[bool, bool, bool]) -> None:
    """Neither dbias, nor the other gradient, nor that somebody counts."""
    case = with_tail(peaked(53, 130, 40, bias=torch.float32), "cce-no-sort")
    whole, part = run(case), run(replace(case, wanted=wanted), counts=False)
    for name, got in part.outputs.items():
        assert torch.equal(got, whole[name]), name


def test_ignored_rows_lose_nothing() -> None:
    """They may hold NaN; and where all are ignored, nothing is given back."""
    case = with_tail(peaked(40, 130, 40, ignored=5), "cce-no-sort")
    clean = run(case)
    case.input[case.target == -100] = torch.nan
    poisoned = run(case)
    for name, got in poisoned.outputs.items():
        assert torch.equal(got, clean[name]), name
    nothing = run(replace(case, target=torch.full_like(case.target, -100)))
    assert not any(bool(nothing[name].any()) for name in ("d_embeddings", "d_classifier"))


def test_a_row_without_a_softmax_poisons_its_tiles_alone() -> None:
    case = with_tail(peaked(40, 130, 40), "cce-no-sort")
    case.input[20] = torch.inf
    d_e = run(case)["d_embeddings"]
    assert bool(d_e[20].isnan().all())
    assert bool(d_e[:20].isfinite().all())
    assert bool(d_e[21:].isfinite().all())


def test_a_row_without_upstream_loses_a_probability() -> None:
    """All of it, and no more; nothing is given back for it."""
    case = peaked(40, 130, 40, reduction="none", ignored=0)
    assert case.grad_loss is not None
    outcome = run(with_tail(replace(case, grad_loss=torch.zeros_like(case.grad_loss)), "cce-no-sort"))
    mass = outcome.stats.filtered_mass_e
    assert mass is not None
    assert float(mass.max()) <= 1
    assert float(mass.min()) > 0.98
    assert not any(bool(outcome[name].any()) for name in ("d_embeddings", "d_classifier"))


def test_tiles_hold_whole_segments() -> None:
    case = with_tail(draw(), "cce-no-sort")
    narrow = replace(SMALL, forward=replace(SMALL.forward, block_v=64))
    with pytest.raises(ValueError, match=r"tiles of 16 words hold no whole segment of 32; set segment=16"):
        run(replace(case, schedule=narrow))
    run(replace(case, schedule=replace(narrow, segment=16)))
    run(replace(case, schedule=narrow, variant="cce-no-sort"))


def test_an_eps_of_zero_gives_nothing_back() -> None:
    case = with_tail(draw((37,), 75, 40), "cce-no-sort", "0")
    one, other = run(case), run(without_tail(case))
    assert one.stats.tiles_skipped_e == 0
    for name, got in one.outputs.items():
        assert torch.equal(got, other[name]), name
