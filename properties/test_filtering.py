"""Laws of gradient filtering and of the vocabulary's order: what is dropped is negligible and counted."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ccelab.kernels.sampling import sample_rows
from ccelab.precision.budget import budget
from ccelab.reference.double import Stream

from .conditions import (
    both,
    by_mean_logit,
    by_mean_probability,
    by_tile,
    dropping,
    filtered,
    filtered_in_e,
    without_filter,
)
from .law import Trial, law
from .probabilities import softmax_and_error
from .strategies import specs

NEEDS = ["filter", "schedule"]
HARD = ("peaked", "confident", "near_threshold", "zipf", "dominant")
"""Families whose tiles are some kept and some skipped."""


@law(
    "cce",
    "cce-no-sort",
    "cce-no-sort,eps=2^-6,tail=rank1",
    needs=NEEDS,
    draw=specs(families=("near_threshold", *HARD), least=(2, 33, 2)),
    examples=2,
    both_kinds=True,
)
def test_what_is_skipped_is_negligible_and_what_is_kept_is_not(trial: Trial) -> None:
    """A tile with an entry above eps times the row's upstream scale is kept, one without is skipped.

    Entries that the computed residual's own error may carry across eps count either way: the oracle gives the least
    and the largest number of tiles. With a tail, a target's tile is kept. Source: Wijmans et al., section 4.3; Apple's
    filter tests softmax - onehot alone, before upstream, softcap and lse gradients are applied.
    """
    outcome = trial.outcome
    limit = budget(trial.case.problem(), trial.variant, trial.case.schedule, taken=outcome.stats)
    miscounted = limit.miscounted(outcome.stats)
    assert miscounted is None, miscounted


@law("cce", "cce-kahan", needs=NEEDS, draw=specs(families=HARD, least=(2, 17, 2)), both_kinds=True)
def test_every_tile_is_kept_or_skipped(trial: Trial) -> None:
    """Kept and skipped tiles of an output add up to all tiles of the schedule, or their columns and rows to all of
    those."""
    schedule, spec, stats = trial.case.schedule, trial.spec, trial.outcome.stats
    segments = trial.variant.granularity == "segment"
    tiles = schedule.row_segments if segments else schedule.backward
    down, across = -(-spec.n // tiles.block_n), -(-spec.v // tiles.block_v)
    for kept, skipped, want in (
        (stats.tiles_kept_e, stats.tiles_skipped_e, down * (spec.v if segments else across)),
        (stats.tiles_kept_c, stats.tiles_skipped_c, (spec.n if segments else down) * across),
    ):
        assert (kept or 0) + (skipped or 0) == want


@law(
    "cce,eps=2^-6",
    "cce-no-sort,accumulate=fp32,eps=2^-6",
    needs=NEEDS,
    when=both(filtered, by_tile),
    draw=specs(families=("dominant", "near_threshold"), bias=None, v=257, least=(17, 1, 17)),
    examples=2,
)
def test_looking_ahead_changes_no_bit(trial: Trial) -> None:
    """Gradients are the same whether dropped tiles are computed again or known to be dropped.

    A call that counts what it drops has to compute it, so these do not count. Classes are so many, and families such
    that few are alive: where more than an eighth of the segments are, nobody looks ahead.
    """
    one, other = (
        trial.uncounted(replace(trial.case, schedule=replace(trial.case.schedule, look_ahead=least)))
        for least in (None, 0)
    )
    trial.same(one, other)


@law(
    "cce",
    "cce-no-sort",
    needs=NEEDS,
    when=filtered_in_e,
    draw=specs(families=HARD, softcap=None, least=(2, 65, 17)),
    both_kinds=True,
)
def test_a_larger_eps_keeps_no_more(trial: Trial) -> None:
    """eps <= eps' keeps every tile that eps' keeps: their numbers fall as eps grows."""
    kept = [math.inf]
    for power in (-30, -12, -6, -2):
        stats = trial.run(trial.made(replace(trial.variant, eps=2.0**power))).stats
        assert stats.tiles_kept_e is not None
        kept.append(stats.tiles_kept_e)
    assert kept == sorted(kept, reverse=True), f"kept {kept[1:]}"


@law(
    "cce",
    "cce-kahan",
    "cce-no-sort,accumulate=fp32",
    "cce-segment,tail=drop",
    needs=NEEDS,
    when=both(filtered, dropping),
    draw=specs(),
)
def test_an_infinite_eps_drops_everything(trial: Trial) -> None:
    """eps = inf: no tile is kept, dE and dC are exactly 0, and dbias is as complete as ever."""
    outcome = trial.run(trial.made(replace(trial.variant, eps=math.inf)))
    assert (outcome.stats.tiles_kept_e, outcome.stats.tiles_kept_c) == (0, 0)
    assert not bool(outcome["d_embeddings"].any())
    assert not bool(outcome["d_classifier"].any())
    trial.same(outcome, trial.outcome, "d_bias", "loss", "lse", "reduced")


@law(
    "cce",
    "cce-no-sort",
    "cce-no-sort,eps=2^-6,tail=rank1",
    needs=NEEDS,
    when=filtered,
    draw=specs(families=HARD, bias="float32", least=(2, 33, 2)),
    both_kinds=True,
)
def test_dbias_is_never_filtered(trial: Trial) -> None:
    """dbias has the same bits with the filter on and off, in one order of the vocabulary.

    Source: apple/ml-cross-entropy (an early return dropped dbias with the tile).
    """
    off = without_filter(trial.variant)
    trial.same(trial.outcome, trial.run(trial.made(off)), "d_bias")


@law(
    "cce",
    "cce-no-sort",
    needs=NEEDS,
    when=both(filtered_in_e, dropping),
    draw=specs(
        families=("gaussian", "flat", "zipf", "near_threshold"),
        reduction="none",
        upstream="ones",
        lse=False,
        softcap=None,
        least=(2, 65, 2),
    ),
    examples=2,
    both_kinds=True,
)
def test_the_filtered_mass_is_what_the_constant_column_loses(trial: Trial) -> None:
    """If C[:, 0] is 1 everywhere, dE[:, 0] is minus the probability in the skipped tiles, target's tiles apart.

    Without a filter the column is 0, so the public call itself shows what was filtered; eps is 1/16, so that it shows
    above the rounding. Slack: the budget of the unfiltered dE. Source: conservation.
    """
    eps = 2.0**-4
    weight = trial.case.linear_weight.clone()
    weight[:, 0] = 1.0
    case = replace(trial.case, linear_weight=weight, variant=replace(trial.variant, eps=eps))
    outcome = trial.run(case)
    mass = outcome.stats.filtered_mass_e
    assert mass is not None
    # A skipped tile never holds a target whose residual counts: all that is missing there is probability, or nothing.
    limit = budget(case.problem(), without_filter(trial.variant), case.schedule, taken=outcome.stats)
    stream = Stream(case.problem())
    rows = stream.rows()
    lse = rows.maximum + torch.log1p(rows.rest)
    confident = torch.where(stream.valid, 1 - torch.exp(rows.target_logit - lse), 1.0)[:, 0]
    # A row so sure that even its target's entry is negligible may lose that entry as well.
    sure = confident <= 2 * eps
    got, want = outcome["d_embeddings"][:, 0].double(), -mass.double()
    u = torch.finfo(case.input.dtype).eps
    slack = limit.bound.d_embeddings[:, 0] + 4 * u * mass.double() + torch.where(sure, 1.0, 0.0)
    trial.bounded("dE[:, 0]", got, want, slack)


@law(
    "cce",
    "cce-kahan",
    needs=NEEDS,
    draw=specs(families=HARD, ignored=5, least=(17, 65, 33)),
    both_kinds=True,
)
def test_the_filtered_mass_is_a_probability(trial: Trial) -> None:
    """0 <= mass <= 1 for every token, 0 where nothing was skipped and at ignored rows. Slack: V roundings."""
    stats = trial.outcome.stats
    for mass, skipped in (
        (stats.filtered_mass_e, stats.tiles_skipped_e),
        (stats.filtered_mass_c, stats.tiles_skipped_c),
    ):
        assert mass is not None
        assert bool((mass >= 0).all())
        assert float(mass.max()) <= 1 + trial.spec.v * 2.0**-20
        assert skipped or not bool(mass.any())
        assert not bool(mass[trial.case.target == trial.case.ignore_index].any())


@law(
    "cce",
    "cce-no-sort",
    needs=NEEDS,
    draw=specs(families=("near_threshold", "peaked"), options=False, reduction="mean", least=(17, 65, 33)),
    both_kinds=True,
)
def test_the_filter_does_not_see_the_reduction(trial: Trial) -> None:
    """mean or sum: the same tiles are kept, since a row is measured by its own upstream scale.

    Source: Liger #512 (a mean in fp16 that underflows).
    """
    one, other = trial.outcome.stats, trial.run(replace(trial.case, reduction="sum")).stats
    assert one.tiles_kept_e == other.tiles_kept_e
    assert one.tiles_kept_c == other.tiles_kept_c


@law(
    "cce",
    needs=[*NEEDS, "lse"],
    when=filtered,
    draw=specs(
        families=("confident",),
        reduction="none",
        lse=True,
        upstream="ones",
        ignored=0,
        softcap=None,
        bias=None,
        dtypes=("bfloat16", "float16"),  # in fp32, eps is so small that hardly a token is sure
        least=(2, 17, 63),
    ),
)
def test_the_filter_sees_the_lse_gradient(trial: Trial) -> None:
    """A sure token has no loss gradient, yet an upstream gradient of its lse moves its target's logit: dE is not 0.

    Source: Apple's filter tests softmax - onehot only.
    """
    case = trial.case
    assert case.grad_loss is not None
    only = replace(case, grad_loss=torch.zeros_like(case.grad_loss), grad_lse=torch.ones_like(case.grad_loss))
    outcome = trial.run(only)
    assert bool((outcome["d_embeddings"].abs().sum(1) > 0).all())


@law(
    "cce",
    "cce-no-filter,order=mean_logit",
    needs=NEEDS,
    when=by_mean_logit,
    draw=specs(families=("gaussian", "zipf", "offset")),
)
def test_the_order_is_one_and_sorts_mean_logits(trial: Trial) -> None:
    """`stats.order` holds every class once, and mean logits fall along it, up to the error of a sum over N and D.

    Source: Wijmans et al., section 4.3 (vocabulary sorting).
    """
    order = _every_class_once(trial)
    ids = torch.arange(trial.spec.v, device=order.device)
    stream = Stream(trial.case.problem())
    count = max(int(stream.valid.sum()), 1)
    mean = stream.embeddings.sum(0) / count
    size = stream.embeddings.abs().sum(0) / count
    logit = stream.classifier(ids) @ mean
    error = (stream.classifier(ids).abs() @ size) * (trial.spec.n + trial.spec.d + 4) * 2.0**-24
    if trial.case.linear_bias is not None:
        logit = logit + trial.case.linear_bias.double()
        error = error + 2.0**-24 * logit.abs()
    _falls(trial, "mean logit", logit[order], error[order])


def _every_class_once(trial: Trial) -> Tensor:
    order = trial.outcome.stats.order
    assert order is not None
    ids = torch.arange(trial.spec.v, device=order.device)
    trial.same(order.long().sort().values, ids, "classes in order")
    return order.long()


def _falls(trial: Trial, what: str, along: Tensor, slack: Tensor) -> None:
    """`along` does not rise by more than the errors of two neighbours."""
    rise = (along[1:] - along[:-1]).clamp(min=0)
    trial.bounded(f"rise of the {what}", rise, torch.zeros_like(rise), slack[1:] + slack[:-1] + 1e-300)


@law(
    "cce,order=mean_prob",
    "cce-no-filter,order=mean_prob",
    needs=NEEDS,
    when=by_mean_probability,
    draw=specs(families=("gaussian", "zipf", "peaked"), dtypes=("bfloat16", "float32")),
)
def test_the_order_is_one_and_sorts_mean_probabilities(trial: Trial) -> None:
    """`stats.order` holds every class once; mean probabilities of the sampled rows fall along it, up to their errors.

    Tolerance: that of a softmax computed again, and of a sum over the sample. Source: definition of the order.
    """
    order = _every_class_once(trial)
    problem = trial.case.problem()
    if not bool(problem.valid.any()):
        return  # there are no rows to sample: any order will do
    sample = sample_rows(problem.targets, problem.ignore_index)
    mean, moved = (x[sample].mean(0) for x in softmax_and_error(trial))
    slack = moved + (len(sample) + 2) * 2.0**-24 * (mean + moved)
    _falls(trial, "mean probability", mean[order], slack[order])


@law(
    "cce",
    "cce-kahan-full-c",
    "cce-kahan-full-e",
    "cce-segment,eps=2^-6,eps_e=2^-5,tail=drop",
    needs=NEEDS,
    when=dropping,
    draw=specs(families=HARD, least=(2, 33, 2)),
    both_kinds=True,
)
def test_what_is_dropped_is_bounded_by_eps(trial: Trial) -> None:
    """|dE filtered - dE unfiltered| <= eps s_i sum_v |C_vd|, and for dC likewise over rows. Slack: both budgets.

    Source: definition of the filter, summed over the entries of skipped tiles.
    """
    case = trial.case
    off = trial.made(without_filter(trial.variant))
    one, other = trial.outcome, trial.run(off)
    stream = Stream(case.problem())
    spacing = torch.finfo(case.input.dtype).eps
    eps = trial.variant.threshold(spacing)
    eps_e = max(eps, trial.variant.threshold_e(spacing))  # an entry of a dropped segment is below eps
    size = stream.d_loss.abs() + stream.d_lse.abs()
    a = budget(case.problem(), without_filter(trial.variant), case.schedule, taken=one.stats).bound
    slack_e, slack_c = 2 * a.d_embeddings, 2 * a.d_classifier
    wide = 1 + 2.0**-10
    drop_e = wide * eps_e * size * case.linear_weight.double().abs().sum(0)
    drop_c = (wide * eps * size * stream.embeddings.abs()).sum(0).expand_as(slack_c)
    trial.bounded("dE", one["d_embeddings"], other["d_embeddings"], torch.where(stream.valid, drop_e, 0.0) + slack_e)
    trial.bounded("dC", one["d_classifier"], other["d_classifier"], drop_c + slack_c)
