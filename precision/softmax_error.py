"""`SoftmaxError`: how far the softmax that the backward pass computes again is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.reference.double import ResidualChunk
from ccelab.reference.formula import Rows

from . import stages
from .arithmetic import Arithmetic
from .difference import difference_error
from .formats import FP32
from .forward_budget import ForwardError, moved_softmax
from .logit_error import LogitError
from .random_error import RandomError
from .stages import EXP_UNDERFLOW
from .stored_softmax import StoredSoftmax
from .terms import Terms


@dataclass(frozen=True, eq=False)
class SoftmaxError:
    """The computed softmax is within `own` of p + `known` + kappa `alike`, |kappa| <= `kappa`.

    With b the error of a logit, D that of the row's max + log s and e what its own roundings do to the exponent, it is
    p exp(b - D + e). b and D are partly known, in the interpreter; of the rest, what D has is the same for all entries
    of a row, and what it does to a sum over the vocabulary is relative to that sum, not to that of absolute values.
    """

    known: Tensor  # (N, n)
    alike: Tensor  # (N, n)
    kappa: Terms  # (N, 1)
    own: Terms  # (N, n)
    random: RandomError  # (N, n), whose bound `own` is
    common: Tensor  # (N, n) what of the random part may be the same for all entries of a row
    random_kappa: RandomError  # (N, 1)

    @property
    def apart(self) -> Terms:
        """(N, n) as if kappa were another number in every entry."""
        return Terms(self.own.by_stage).merge(self.own).merge(self.kappa.times(self.alike))

    @property
    def largest(self) -> Tensor:
        """(N, n)."""
        return self.known.abs() + self.apart.total


def softmax_error(
    part: ResidualChunk,
    rows: Rows,
    error: ForwardError,
    logit: LogitError,
    arithmetic: Arithmetic,
    *,
    stores: bool = False,
) -> SoftmaxError:
    """From the errors of the forward pass and of the logits computed again; or of its own, where it `stores`
    exponentials."""
    by_stage, log_s = error.log_sum.by_stage, torch.log1p(rows.rest)
    recomputed = stages.recompute_logits(logit.capped.total)
    z, off = logit.computed(part.logits), recomputed + error.maximum
    distance = (rows.maximum - part.logits).abs()
    difference = difference_error(z, error.top, distance, off, is_known=arithmetic.rounds_to_nearest)
    last = _last_digit(z.minus(error.top).low.float(), distance + off) / 2
    of_log = error.maximum + error.lse_signed.largest + error.log_sum.total
    # A log sum within half a unit of the difference is lost whole.
    is_lost = log_s + of_log < FP32.half_ulp((distance - off).clamp(min=0)) * (1 - 2.0**-16)
    is_lost = is_lost & arithmetic.rounds_to_nearest
    computed, computed_log = distance * (1 + 2.0**-23) + off, log_s * (1 + 2.0**-23) + of_log
    smaller = torch.where(is_lost, of_log, torch.minimum(computed, computed_log))
    less = 2 * (computed + computed_log - distance - log_s)
    rounding, common = stages.softmax(difference.radius, computed + computed_log, smaller, last, less, arithmetic)
    of_logits, of_exponent, kept = "recompute_logits", "softmax", None
    middle = difference.middle + torch.where(is_lost, log_s, 0.0)
    if stores:
        of_logits, of_exponent = "dot_logits", "restore_softmax"
        is_largest = part.softmax > (1 - part.softmax) * torch.exp(2 * error.widest)
        kept = StoredSoftmax.of(is_largest, computed, computed + computed_log, computed_log, log_s, of_log, arithmetic)
        middle = torch.where(is_largest, middle, 0.0)
        common = torch.where(is_largest, common, kept.restored.largest)
        rounding = rounding.masked(is_largest).plus(kept.restored)
    kappa = error.lse_from_logits.shared(error.lse_signed.radius).merge(error.log_sum)
    own = Terms(by_stage).add(of_logits, logit.signed.radius).add(of_exponent, rounding.largest)
    random = rounding.plus(RandomError.certain(logit.signed.radius))
    if kept is not None:
        own.add("exponentials", kept.exponentials.largest).add("store_exponentials", kept.kept)
        random = random.plus(kept.exponentials).plus(RandomError.certain(kept.kept))
    random_kappa = error.random.plus(RandomError.certain(error.lse_signed.radius))
    skew = arithmetic.skew(distance + log_s)
    known = logit.signed.middle - error.lse_signed.middle + skew + middle
    # exp(b - D + e) - 1, taken apart without a rest.
    tame = (known.abs() + kappa.total + own.total < 1) & (part.softmax > 0)
    alike = torch.where(tame, part.softmax * torch.exp(known), 0.0)
    bound = torch.where(tame, alike * torch.exp(kappa.total) * torch.expm1(own.total), 0.0)
    slope = torch.where(own.total > 0, bound / own.total, 0.0)
    random = random.times(slope)
    own = own.shared(bound)
    if not bool(tame.all()):
        moved = Terms(by_stage).add(of_logits, recomputed)
        moved.merge(error.lse_from_logits).merge(error.log_sum).add(of_exponent, rounding.largest)
        if kept is not None:
            moved.add("exponentials", kept.exponentials.largest).add("store_exponentials", kept.kept)
        # Not capped at 1: a logit of 1e9 recomputed in other tiles may lie far above the maximum that forward found.
        grown = moved_softmax(part, rows.maximum + log_s, moved.total, logit.capped.total)
        own.merge(moved.shared(torch.where(tame, 0.0, grown)))
    own = own.add(of_exponent, torch.full_like(part.softmax, EXP_UNDERFLOW))
    if kept is not None:
        own = own.add("store_exponentials", kept.underflow)
    of_kappa = torch.where(kappa.total < 1, torch.expm1(kappa.total), 0.0)
    return SoftmaxError(
        known=torch.where(tame, part.softmax * torch.expm1(known), 0.0),
        alike=alike,
        kappa=kappa.shared(of_kappa),
        own=own,
        random=random.rest_certain(own.total),
        common=slope * common,
        random_kappa=random_kappa.times(torch.where(kappa.total > 0, of_kappa / kappa.total, 0.0)),
    )


def _last_digit(distance: Tensor, size: Tensor) -> Tensor:
    """(N, n) a unit in the last place of an fp32 `distance` of at most that size, or of a row of them: integers have
    fewer digits than fp32."""
    mantissa, exponent = torch.frexp(distance)
    digits = (mantissa.abs() * 2**24).nan_to_num(posinf=0).long()
    last = torch.ldexp((digits & -digits).double() * 2.0**-24, exponent)
    of_row = torch.where(digits > 0, last, torch.inf).amin(1, keepdim=True)
    return torch.maximum(2 * FP32.half_ulp(size), torch.where(of_row.isfinite(), of_row, 0.0))
