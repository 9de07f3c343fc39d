"""Laws of granularity=segment and of tails: what rows lose is known, spread as the sample loses it, given back."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ccelab.kernels.sampling import sample_rows
from ccelab.kernels.similar_rows import PIVOTS
from ccelab.precision.budget import budget
from ccelab.precision.decisions import decisions
from ccelab.precision.row_blocks import RowBlocks, likeness, parts
from ccelab.reference import Problem
from ccelab.reference.double import Stream

from .conditions import both, by_likeness, by_segment, filtered_in_e, giving_back, telling, without_filter
from .law import Trial, law
from .probabilities import softmax_and_error
from .strategies import specs

NEEDS = ["filter", "schedule"]
HARD = ("peaked", "near_threshold", "zipf", "dominant")
"""Families whose segments are some kept and some skipped."""


def _probabilities(trial: Trial) -> tuple[Tensor, Tensor]:
    """(N, V) exact softmax, 0 at ignored rows, and how far a computed one may be from it."""
    valid = trial.case.problem().valid[:, None]
    p, moved = (torch.where(valid, x, 0.0) for x in softmax_and_error(trial))
    return p, moved


def _dropped(trial: Trial) -> tuple[Tensor, Tensor]:
    """(N, V) bool: what dE and what dC dropped where they are filtered, by the call's own word."""
    stats, (n, v, _) = trial.outcome.stats, trial.case.problem().shape
    if trial.variant.granularity == "tile":
        tiles = trial.case.schedule.backward
        assert stats.tiles is not None
        of_rows = stats.tiles.repeat_interleave(tiles.block_n, 0)[:n]
        of_both = of_rows.repeat_interleave(tiles.block_v, 1)[:, :v] == 0
        return of_both, of_both
    tiles = trial.case.schedule.row_segments
    assert stats.segments_e is not None
    assert stats.segments_c is not None
    of_words = RowBlocks(tiles.block_n, stats.row_order).of_rows(stats.segments_e, n) == 0
    of_rows = stats.segments_c.T.repeat_interleave(tiles.block_v, 1)[:, :v] == 0
    return of_words, of_rows


def _recorded(problem: Problem) -> Tensor:
    """(N,) what a probability that the forward pass recorded may be off by, relatively: it rounds to fp16 a distance
    within the range of the row's logits."""
    stream = Stream(problem)
    logits = stream.raw(torch.arange(stream.vocabulary, device=stream.embeddings.device))
    size = stream.rows().maximum.abs()[:, 0] + 32
    # A segment's log mass lies between its smallest logit and that of all its words at the largest.
    reach = (logits - logits.amax(1, keepdim=True)).abs().amax(1) + math.log(logits.shape[1]) + size * 2.0**-20
    return torch.expm1(2.0**-11 * reach)


@law(
    "cce-segment,eps=2^-6",
    "cce-segment,eps=2^-6,tail=drop",
    "cce-no-sort,eps=2^-6,tail=rank1",
    needs=NEEDS,
    when=telling,
    draw=specs(families=HARD, ignored=3, softcap=None, least=(17, 65, 17)),
    both_kinds=True,
)
def test_what_rows_lose_is_what_was_dropped(trial: Trial) -> None:
    """The mass that a call reports is the exact probability in the segments or tiles that it dropped, row by row.

    Tolerance: the errors of the softmax in a row, and roundings of its sum, its logarithm and what is subtracted of it;
    of what is read from the forward pass's record, its rounding to fp16. Source: definition.
    """
    p, moved = _probabilities(trial)
    problem, stats, flags = trial.case.problem(), trial.outcome.stats, trial.variant
    size = Stream(problem).rows().maximum.abs()[:, 0] + 32
    slack = moved.sum(1) + (p.shape[1] + 8 * size) * 2.0**-22
    recorded = _recorded(problem)
    for name, mass, dropped, filtered, is_read in zip(
        ("dE", "dC"),
        (stats.filtered_mass_e, stats.filtered_mass_c),
        _dropped(trial),
        (flags.filter_e, flags.filter_c),
        (flags.granularity == "tile", True),
        strict=True,
    ):
        assert mass is not None
        lost = torch.where(dropped & filtered, p, 0.0).sum(1)
        trial.bounded(f"lost of {name}", mass, lost, slack + (lost * recorded if is_read else 0.0))


@law(
    "cce-segment,eps=2^-6",
    "cce-no-sort,eps=2^-6,tail=rank1",
    needs=NEEDS,
    when=giving_back,
    draw=specs(families=HARD, softcap=None, least=(17, 65, 17)),
    both_kinds=True,
)
def test_a_tail_is_spread_as_sampled_rows_lose(trial: Trial) -> None:
    """`stats.tail_share` is the probability that the sampled rows drop, word by word, over all that they drop.

    Tolerance: errors of the softmax, and a rounding per sampled row, word and segment or tile. Source: definition of
    the tail.
    """
    share = trial.outcome.stats.tail_share
    assert share is not None
    assert bool((share >= 0).all())
    p, moved = _probabilities(trial)
    problem = trial.case.problem()
    sample = sample_rows(problem.targets, problem.ignore_index)
    lost = torch.where(_dropped(trial)[1], p, 0.0)[sample]
    total, off = lost.sum(), moved[sample].sum() + lost.sum() * (lost.numel() + 64) * 2.0**-22
    if float(total) <= float(2 * off):
        return  # all of it may be rounding
    want = lost.sum(0) / total
    slack = (moved[sample].sum(0) + len(sample) * 2.0**-22 * lost.sum(0) + want * off) / (total - off)
    trial.bounded("share", share, want, slack)


@law(
    "cce-segment,eps=2^-4",
    "cce-segment,eps=2^-6",
    "cce-no-sort,eps=2^-4,tail=rank1",
    "cce-kahan-full-c,order=none,eps=2^-6,tail=rank1",
    needs=NEEDS,
    when=both(giving_back, filtered_in_e),
    draw=specs(families=HARD, reduction="none", upstream="ones", lse=False, softcap=None, least=(17, 65, 17)),
    both_kinds=True,
)
def test_a_tail_conserves_rows(trial: Trial) -> None:
    """If C[:, 0] is 1 everywhere, dE[:, 0] is 0 as it is without a filter: rows of residuals sum to nothing.

    Slack: the budget of the unfiltered dE, and roundings of what a row lost and of the tail's sum over the vocabulary.
    Sums of tiles may round to storage on the way to what is given back: of those, the budget but for its term of the
    filter, and the record's rounding. Source: conservation.
    """
    weight = trial.case.linear_weight.clone()
    weight[:, 0] = 1.0
    case = replace(trial.case, linear_weight=weight)
    outcome = trial.run(case)
    if outcome.stats.tail_share is None or not bool(outcome.stats.tail_share.any()):
        return  # sampled rows lose nothing
    got = outcome["d_embeddings"][:, 0].double()
    mass = outcome.stats.filtered_mass_e
    assert mass is not None
    slack = (trial.spec.v + trial.spec.n) * 2.0**-21 * (1 + mass.double())
    if trial.variant.granularity == "segment":
        limit = budget(case.problem(), without_filter(trial.variant), case.schedule)
        assert limit.bound.d_embeddings is not None
        slack = slack + limit.bound.d_embeddings[:, 0]
    else:
        limit = budget(case.problem(), trial.variant, case.schedule, taken=outcome.stats, by_stage=True)
        terms = limit.stages["d_embeddings"].items()
        slack = slack + sum(bound[:, 0] for stage, bound in terms if stage != "is_live")
        slack = slack + mass.double() * _recorded(case.problem())
    trial.bounded("dE[:, 0]", got, torch.zeros_like(got), slack)


@law(
    "cce-segment,eps=2^-6",
    "cce-no-sort,eps=2^-6,tail=rank1",
    "cce-no-sort,accumulate=hilo,eps=2^-6,tail=rank1",
    needs=NEEDS,
    when=giving_back,
    draw=specs(families=HARD, least=(17, 65, 17)),
    examples=2,
    both_kinds=True,
)
def test_both_gradients_miss_what_a_tail_is_not(trial: Trial) -> None:
    """Beside roundings dE and dC err by what was dropped, less what the call says that it gave back, by element.

    Tolerance: the budget, whose term of the filter is that. Source: definition of the tail.
    """
    trial.judge()


@law(
    "cce-segment,eps=2^-4",
    "cce-no-sort,eps=2^-4,tail=rank1",
    needs=NEEDS,
    when=giving_back,
    draw=specs(families=("confident", *HARD), least=(17, 65, 17)),
    both_kinds=True,
)
def test_a_tail_keeps_targets(trial: Trial) -> None:
    """No target of a row that has an upstream gradient is dropped, however sure it is: the vector is of what is lost
    beside them."""
    problem = trial.case.problem()
    counts = torch.stack([x.abs() for x in problem.upstream()]).sum(0) > 0
    rows = (problem.valid & counts).nonzero()[:, 0]
    for dropped in _dropped(trial):
        assert not bool(dropped[rows, problem.targets[rows]].any())


@law(
    "cce-segment,eps=2^-6",
    "cce-segment,eps=2^-6,eps_e=2^-9",
    "cce-segment,eps=2^-6,tail=drop",
    "cce-segment,eps=2^-2",
    needs=NEEDS,
    when=by_segment,
    draw=specs(families=HARD, least=(17, 65, 17)),
    both_kinds=True,
)
def test_segments_that_are_dropped_are_negligible(trial: Trial) -> None:
    """No segment that is dropped has an entry above eps times its row's upstream scale, nor a target; of dE's, none
    above eps_e in a segment that dC keeps.

    Tolerance: entries that the computed residual's error may carry across eps, as the budget's own decisions have it: a
    call's are among them. Source: Wijmans et al., section 4.3, for segments.
    """
    stats, case = trial.outcome.stats, trial.case
    limit = budget(case.problem(), trial.variant, case.schedule, taken=stats, arithmetic=trial.arithmetic)
    assert limit.miscounted(stats) is None, limit.miscounted(stats)
    problem = case.problem()
    own = decisions(problem, trial.variant, case.schedule, stats)
    rows = torch.arange(len(problem.targets), device=problem.targets.device)[problem.valid]
    target = problem.targets[problem.valid]
    counts = torch.stack([x.abs() for x in problem.upstream()]).sum(0)[problem.valid] > 0
    tiles = case.schedule.row_segments
    assert bool(own.rows[target // tiles.block_v, rows][counts].all())
    assert bool(own.blocks.of_rows(own.words, len(problem.targets))[rows, target][counts].all())


@law(
    "cce-segment,eps=2^-6",
    needs=NEEDS,
    when=by_segment,
    draw=specs(families=HARD, least=(17, 65, 17)),
    both_kinds=True,
)
def test_a_larger_eps_e_keeps_no_more(trial: Trial) -> None:
    """Words that dE keeps under a larger eps_e are among those under a smaller one, and dC knows neither: bit for bit.

    Source: definition of eps_e.
    """
    first = before = None
    for power in (-20, -10, -7, -4):
        outcome = trial.run(trial.made(replace(trial.variant, eps_e=2.0**power)))
        words = outcome.stats.segments_e
        assert words is not None
        if first is None or before is None:
            first = outcome
        else:
            assert not bool(((words != 0) & (before == 0)).any()), f"eps_e=2^{power} keeps what a smaller one drops"
            trial.same(outcome, first, "d_classifier", "d_bias")
        before = words


@law(
    "cce-segment,eps=2^-6",
    needs=NEEDS,
    when=by_likeness,
    draw=specs(families=HARD, ignored=3, least=(17, 65, 17)),
    both_kinds=True,
)
def test_similar_rows_share_blocks(trial: Trial) -> None:
    """Every row has one place in dE's blocks: four parts of as many rows, those that keep the most segments first, in a
    part by the pivot that a row reaches furthest towards, then as they are in the batch; ignored ones come last.

    Tolerance: a row whose two furthest reaches are closer than fp32's roundings of them may be with either pivot; those
    of D products and their sum, truncated, and of a norm and its reciprocal root. Source: definition of row_order.
    """
    stats, problem = trial.outcome.stats, trial.case.problem()
    n, _, d = problem.shape
    order, kept = stats.row_order, stats.segments_c
    if order is None:
        assert n <= trial.case.schedule.row_segments.block_n, "rows of several blocks have an order"
        return
    assert kept is not None
    assert torch.equal(order.sort().values, torch.arange(n, device=order.device))
    valid = problem.valid[order]
    assert not bool((valid[1:] & ~valid[:-1]).any()), "ignored rows come last"
    part = parts(kept.sum(0))[order][valid]
    assert bool((part[1:] >= part[:-1]).all()), "rows that keep more come first"
    reach = likeness(problem, sample_rows(problem.targets, problem.ignore_index))
    best, pivot = reach.max(1)
    second = reach.scatter(1, pivot[:, None], -torch.inf).amax(1)
    size = problem.embeddings.detach().double().norm(dim=1)
    smallest, largest = size[problem.valid].min(), size[problem.valid].max()
    ordinary = float(smallest) > 2.0**-60 and float(largest) < 2.0**60  # fp32 has room for squares and products
    sure = (best - second > (d + 16) * 2.0**-20 * size) & ordinary
    key, known = (part * PIVOTS + pivot[order][valid]) * n + order[valid], sure[order][valid]
    found = key[known]
    assert bool((found[1:] > found[:-1]).all()), "by pivot, and in a pivot's as in the batch"
