"""`SoftmaxError`: how far the softmax that the backward pass computes again is from the exact one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.reference.double import ResidualChunk
from ccelab.reference.formula import Rows

from . import stages
from .arithmetic import Arithmetic
from .forward_budget import ForwardError, moved_softmax
from .logit_error import LogitError
from .stages import EXP_UNDERFLOW
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

    @property
    def apart(self) -> Terms:
        """(N, n) as if kappa were another number in every entry."""
        return Terms(self.own.by_stage).merge(self.own).merge(self.kappa.times(self.alike))

    @property
    def largest(self) -> Tensor:
        """(N, n)."""
        return self.known.abs() + self.apart.total


def softmax_error(
    part: ResidualChunk, rows: Rows, error: ForwardError, logit: LogitError, arithmetic: Arithmetic
) -> SoftmaxError:
    """From the errors of the forward pass and of the logits computed again."""
    by_stage, log_s = error.log_sum.by_stage, torch.log1p(rows.rest)
    recomputed = stages.recompute_logits(logit.capped.total)
    rounding = _own_rounding(part, rows, log_s, error, recomputed, arithmetic)
    kappa = error.lse_from_logits.shared(error.lse_signed.radius).merge(error.log_sum)
    own = Terms(by_stage).add("recompute_logits", logit.signed.radius).add("softmax", rounding)
    exact = (rows.maximum - part.logits).abs() + log_s
    known = logit.signed.middle - error.lse_signed.middle + arithmetic.skew(exact)
    # exp(b - D + e) - 1, taken apart without a rest.
    tame = (known.abs() + kappa.total + own.total < 1) & (part.softmax > 0)
    alike = torch.where(tame, part.softmax * torch.exp(known), 0.0)
    bound = torch.where(tame, alike * torch.exp(kappa.total) * torch.expm1(own.total), 0.0)
    own = own.shared(bound)
    if not bool(tame.all()):
        moved = Terms(by_stage).add("recompute_logits", recomputed)
        moved.merge(error.lse_from_logits).merge(error.log_sum).add("softmax", rounding)
        # Not capped at 1: a logit of 1e9 recomputed in other tiles may lie far above the maximum that forward found.
        grown = moved_softmax(part, rows.maximum + log_s, moved.total, logit.capped.total)
        own.merge(moved.shared(torch.where(tame, 0.0, grown)))
    return SoftmaxError(
        known=torch.where(tame, part.softmax * torch.expm1(known), 0.0),
        alike=alike,
        kappa=kappa.shared(torch.where(kappa.total < 1, torch.expm1(kappa.total), 0.0)),
        own=own.add("softmax", torch.full_like(part.softmax, EXP_UNDERFLOW)),
    )


def _own_rounding(
    part: ResidualChunk, rows: Rows, log_s: Tensor, error: ForwardError, recomputed: Tensor, arithmetic: Arithmetic
) -> Tensor:
    """(N, n) on the exponent, for the sizes of the operands as they may have been computed."""
    shifted, off = (rows.maximum - part.logits).abs(), recomputed + error.maximum
    exponent = shifted * (1 + 2.0**-23) + log_s + off + error.maximum + error.lse_signed.largest + error.log_sum.total
    smaller = torch.minimum(rows.maximum.abs(), part.logits.abs()) - off
    rounding: Tensor = stages.softmax(shifted + off, exponent, smaller, arithmetic)
    return rounding
