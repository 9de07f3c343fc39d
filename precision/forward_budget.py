"""The error budget of the forward pass: of loss and lse, and of what the backward pass takes from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant
from ccelab.reference import formula
from ccelab.reference.double import Forward, ResidualChunk, Stream
from ccelab.reference.formula import FLOAT64, Rows

from . import stages
from .arithmetic import Arithmetic
from .coincidences import coincidences
from .enclosure import Enclosure
from .fold import Fold
from .formats import U
from .logit_error import logit_error
from .random_error import RandomError
from .terms import Terms


@dataclass(frozen=True, eq=False)
class ForwardError:
    """Per row, (N, 1): bounds by stage that the backward pass needs too, and of two of them what is known."""

    lse_from_logits: Terms  # of lse and of the loss, through perturbed logits
    log_sum: Terms  # of the computed log sum, given the computed logits
    target_logit: Terms  # of the logit at the target
    lse_signed: Enclosure  # of the error that `lse_from_logits` bounds
    target_signed: Enclosure  # and of that at the target
    top: Enclosure  # the computed largest logit
    maximum: Tensor  # its error
    widest: Tensor  # the largest of any logit
    random: RandomError  # of the log sum, whose bound `log_sum` is
    alike: Tensor  # in how many rows that error may be the same
    same_log: Tensor  # and in how many the log sum
    oracle: Tensor  # of the exact lse, which float64 rounds


def forward_error(
    stream: Stream, rows: Rows, variant: Variant, schedule: Schedule, arithmetic: Arithmetic, by_stage: bool
) -> ForwardError:
    """Perturbed logits, exponentials, sums of a tile, rescaling, joining the splits."""
    tiles = schedule.forward
    maximum = rows.maximum
    widest, oracle = torch.zeros_like(maximum), torch.zeros_like(maximum)
    perturbation, at_target = Terms(by_stage), Terms(by_stage)
    fallen, risen, low_target, high_target = (torch.zeros_like(maximum) for _ in range(4))
    top = Enclosure(torch.full_like(maximum, -torch.inf), torch.full_like(maximum, -torch.inf))
    lse = formula.lse(FLOAT64, rows)
    fold = Fold(lse, stream.vocabulary, schedule, arithmetic)
    for part in stream.residuals(rows):
        found = logit_error(stream, part.columns, part.raw, part.logits, tiles, arithmetic, by_stage)
        error, signed = found.capped, found.signed
        for stage, moved in error.shared(moved_softmax(part, lse, error.total, error.total)).items():
            perturbation.add(stage, moved.sum(1, keepdim=True))
        oracle += torch.where(part.softmax > 0, part.softmax * found.oracle.capped, 0.0).sum(1, keepdim=True)
        highest = ((part.logits + x).amax(1, keepdim=True) for x in signed)
        top = Enclosure(*(torch.maximum(x, y) for x, y in zip(top, highest, strict=True)))
        risen += moved_softmax(part, lse, signed.high, error.total).sum(1, keepdim=True)
        fallen += torch.where(part.softmax > 0, part.softmax * torch.expm1(signed.low), 0.0).sum(1, keepdim=True)
        is_target = part.columns == stream.targets
        for stage, bound in error.masked(is_target).items():
            at_target.add(stage, bound.sum(1, keepdim=True))
        low_target += torch.where(is_target, signed.low, 0.0).sum(1, keepdim=True)
        high_target += torch.where(is_target, signed.high, 0.0).sum(1, keepdim=True)
        widest = torch.maximum(widest, error.total.amax(1, keepdim=True))
        fold.add(part.logits, error.total, found.computed(part.logits))
    log_s = torch.log1p(rows.rest)
    top_error, top = top.error(maximum).largest, top.rounded()
    joined, logarithm = fold.joined(maximum, top, log_s)
    relative = Terms(by_stage).add("exponentials", fold.exponentials.largest)
    relative.add("fold_tile", fold.error.largest)
    relative.add("join_splits", joined.largest)
    # log of a sum within `relative`
    of_log = -torch.log1p(-relative.total.clamp(max=0.5))
    log_sum = relative.shared(of_log).add("join_splits", logarithm.largest)
    random = fold.exponentials.plus(fold.error).plus(joined)
    random = random.times(torch.where(relative.total > 0, of_log / relative.total, 1.0)).plus(logarithm)
    if variant.target == "indexed":
        at_target = _indexed_error(stream, rows, tiles, by_stage)
        low_target, high_target = -at_target.total, at_target.total
    # The lse rises with every logit; no more than the largest error of one either, since its slope is 1 at most.
    low = torch.maximum(torch.log1p(fallen.clamp(min=-1)), -widest)
    # It also has what is known of the exponentials.
    lse_signed = Enclosure(low + fold.known, torch.minimum(torch.log1p(risen), widest) + fold.known)
    lse_from_logits = perturbation.shared(lse_signed.largest)
    target_signed = Enclosure(low_target, high_target)
    same_log = coincidences(log_s.T).T
    return ForwardError(
        lse_from_logits,
        log_sum,
        at_target,
        lse_signed,
        target_signed,
        top=top,
        maximum=top_error,
        widest=widest,
        random=random._replace(largest=log_sum.total),
        alike=torch.maximum(same_log, coincidences(maximum.T).T),
        same_log=same_log,
        oracle=oracle,
    )


def moved_softmax(part: ResidualChunk, lse: Tensor, error: Tensor, of_logit: Tensor) -> Tensor:
    """(N, n) the most that exp(z - lse) can grow when z - lse grows by `error`; 0 for masked classes, whose logits
    have no error `of_logit`."""
    # Written without p for large errors: p may be 0 in float64 where the moved one is not.
    log_p = torch.where(part.softmax > 0, torch.log(part.softmax), part.logits - lse)
    grown = torch.where(error < 1, part.softmax * torch.expm1(error), torch.exp(log_p + error))
    grown = torch.where(of_logit == torch.inf, torch.inf, grown)  # of a masked class too, whose p is exp(-inf)
    return torch.where((part.logits == -torch.inf) & (of_logit == 0), 0.0, grown)


def _indexed_error(stream: Stream, rows: Rows, tiles: Tiles, by_stage: bool) -> Terms:
    problem, d = stream.problem, stream.embeddings.shape[1]
    product = stream.embeddings * problem.classifier[stream.targets[:, 0]].double()
    absolute = product.abs().sum(1, keepdim=True)
    error = Terms(by_stage).add("indexed_dot", stages.indexed_dot(absolute, d, tiles.block_d))
    if problem.bias is not None:
        error.add("add_bias", U * (product.sum(1, keepdim=True).abs() + absolute + error.total))
    if problem.softcap is not None:
        error.add("soft_cap", stages.soft_cap(rows.target_logit, error.total, problem.softcap))
    return error


def outputs(
    stream: Stream, rows: Rows, forward: Forward, error: ForwardError, variant: Variant
) -> dict[str, tuple[Terms, RandomError]]:
    """(N,) bounds of loss and lse and that of the reduced loss, by stage, and what of it is random."""
    lse, m, loss = forward.lse[:, None], forward.max_logit[:, None], forward.loss[:, None]
    log_s, gap = torch.log1p(rows.rest), m - forward.target_logit[:, None]
    is_fused = variant.target == "fused"
    by_stage = error.log_sum.by_stage

    def whole(terms: Terms, random: RandomError, rounding: RandomError, of_logits: Tensor) -> tuple[Terms, RandomError]:
        """Rounding of the bound's own sum, and ignored rows."""
        terms.add("token_loss", rounding.largest)
        random = random.plus(rounding).plus(RandomError.certain(of_logits))
        row = Terms(by_stage, {stage: x[:, 0] for stage, x in terms.masked(stream.valid).times(1 + 4 * U).items()})
        random = RandomError(*(x[:, 0] for x in random.masked(stream.valid).times(1 + 4 * U)))
        return row, random._replace(largest=row.total)

    through_logits = Terms(by_stage).merge(error.lse_from_logits).merge(error.target_logit)
    signed = error.lse_signed.minus(error.target_signed)
    lse_bound = Terms(by_stage).merge(error.lse_from_logits).merge(error.log_sum)
    loss_bound = through_logits.shared(signed.largest).merge(error.log_sum)
    smaller = torch.minimum(m.abs(), log_s.abs())
    lse_rounding = stages.token_loss(lse, smaller, torch.zeros_like(lse), lse_bound.total)
    smaller = torch.minimum(gap.abs(), log_s.abs()) if is_fused else loss.abs() + lse.abs()
    loss_rounding = stages.token_loss(loss, smaller, gap if is_fused else lse, loss_bound.total)
    made = {
        "loss": whole(loss_bound, error.random, loss_rounding, signed.largest),
        "lse": whole(lse_bound, error.random, lse_rounding, error.lse_signed.largest),
    }
    made["reduced"] = made["loss"]
    if stream.problem.reduction != "none":
        made["reduced"] = _reduced(stream, forward, error, *made["loss"])
    return made


def _reduced(
    stream: Stream, forward: Forward, error: ForwardError, terms: Terms, random: RandomError
) -> tuple[Terms, RandomError]:
    """() the bound of the reduced loss."""
    reduced = Terms(terms.by_stage, {stage: stream.reduce(bound) for stage, bound in terms.items()}).times(1 + 4 * U)
    rounding = stages.reduce_losses(stream.reduce(forward.loss), reduced.total)
    each = stream.reduce(stream.valid[:, 0].double()) / stream.valid.sum().clamp(min=1)
    proxy = stream.reduce(random.proxy * error.alike[:, 0]) * each
    systematic = stream.reduce(random.systematic) + rounding
    reduced.add("reduce_losses", rounding)
    return reduced, RandomError(reduced.total, systematic, proxy)
