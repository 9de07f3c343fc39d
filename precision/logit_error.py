"""How far a computed logit can be from E_i . C_v + bias, capped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Tiles
from ccelab.reference import formula
from ccelab.reference.double import Stream
from ccelab.reference.formula import FLOAT64

from . import stages
from .arithmetic import DOUBLE_U, Arithmetic
from .enclosure import Enclosure
from .formats import Format
from .oracle_error import OracleLogitError
from .steepest_cap import steepest_cap
from .terms import Terms


@dataclass(frozen=True, eq=False)
class LogitError:
    """(N, n) bounds on the errors of logits in a tile by stage, inf where fp32 may overflow."""

    raw: Terms  # before the cap
    capped: Terms
    signed: Enclosure  # of the capped error: both bounds of one sign, or next to each other, where roundings are known
    oracle: OracleLogitError

    def computed(self, logits: Tensor) -> Enclosure:
        """Of the computed logits, which are fp32 numbers, from the exact capped ones."""
        return Enclosure(logits + self.signed.low, logits + self.signed.high).rounded()


def logit_error(
    stream: Stream,
    columns: Tensor,
    raw: Tensor,
    logits: Tensor,
    tiles: Tiles,
    arithmetic: Arithmetic,
    by_stage: bool,
) -> LogitError:
    """Bounds for logits computed in tiles of this shape; `raw` and `logits` (N, n) are the exact ones.

    A softcap passes an error on times its slope, the largest on the way from z to the computed z, and adds its own
    roundings: logits that are saturated have next to no error.
    """
    embeddings, classifier = stream.embeddings, stream.classifier(columns)
    fmt = Format.of(stream.problem.embeddings.dtype)
    products = arithmetic.logits(embeddings, classifier, tiles.block_d, fmt)
    oracle = OracleLogitError.of(stream, columns, raw, products.absolute)
    error = Terms(by_stage).add("dot_logits", stages.dot_logits(products))
    computed, bias = products.computed, stream.bias(columns)
    if bias is not None:
        # A bias of -inf masks any product, but one that overflows to +inf: their sum is NaN.
        error = error.masked((raw != -torch.inf) | error.total.isinf())
        error.add("add_bias", stages.add_bias(raw, error.total))
        computed = None if computed is None else computed.plus(Enclosure(bias, bias))
    if computed is None:
        signed = Enclosure(-error.total, error.total)
    else:
        own = (2 * embeddings.shape[1] + 4) * DOUBLE_U * products.absolute  # the oracle's
        signed = computed.error(raw)
        signed = Enclosure(signed.low - own, signed.high + own)
        signed = _or(signed, error.total)
        error = error.shared(signed.largest)
    softcap = stream.problem.softcap
    if softcap is None:
        return LogitError(error, error, signed, oracle)
    slope = steepest_cap(raw, error.total, softcap)
    passed = error.total * slope
    passed = torch.where((error.total == 0) | (slope == 0), 0.0, passed).clamp(max=2 * softcap)
    passed = torch.where(error.total == torch.inf, torch.inf, passed)  # infinities of both signs add up to NaN
    rounding = stages.soft_cap(logits, passed, softcap)
    capped = error.shared(passed).add("soft_cap", rounding)
    low, high = (formula.cap(FLOAT64, raw + x, softcap) - logits for x in signed)
    signed = _or(Enclosure(low - rounding, high + rounding), capped.total)
    return LogitError(error, capped, signed, oracle)


def _or(signed: Enclosure, error: Tensor) -> Enclosure:
    """`signed`, or the bound `error` where that is no number: of infinities, of masked classes."""
    known = signed.low.isfinite() & signed.high.isfinite()
    return Enclosure(torch.where(known, signed.low, -error), torch.where(known, signed.high, error))
