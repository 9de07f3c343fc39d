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
from .arithmetic import Arithmetic
from .formats import Format
from .terms import Terms


@dataclass(frozen=True, eq=False)
class LogitError:
    """(N, n) bounds on the errors of logits in a tile by stage, inf where fp32 may overflow."""

    raw: Terms  # before the cap
    capped: Terms


def steepest_cap(raw: Tensor, error: Tensor, softcap: float) -> Tensor:
    """The largest derivative of the softcap within `error` of the logits `raw`: that of the point nearest to 0."""
    nearest = torch.where(error == torch.inf, 0.0, (raw.abs() - error).clamp(min=0))
    slope: Tensor = formula.cap_derivative(FLOAT64, nearest, softcap)
    return slope


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
    d, fmt = embeddings.shape[1], Format.of(stream.problem.embeddings.dtype)
    absolute, partial, largest = (torch.zeros_like(raw) for _ in range(3))
    for start in range(0, d, tiles.block_d):
        e, c = embeddings[:, start : start + tiles.block_d], classifier[:, start : start + tiles.block_d]
        absolute.addmm_(e.abs(), c.abs().T)
        partial.addmm_(e, c.T)
        torch.maximum(largest, partial.abs(), out=largest)
    error = Terms(by_stage).add("dot_logits", stages.dot_logits(absolute, largest, d, tiles.block_d, fmt, arithmetic))
    if stream.problem.bias is not None:
        # A bias of -inf masks any product, but one that overflows to +inf: their sum is NaN.
        error = error.masked((raw != -torch.inf) | error.total.isinf())
        error.add("add_bias", stages.add_bias(raw, error.total))
    softcap = stream.problem.softcap
    if softcap is None:
        return LogitError(error, error)
    slope = steepest_cap(raw, error.total, softcap)
    passed = error.total * slope
    passed = torch.where((error.total == 0) | (slope == 0), 0.0, passed).clamp(max=2 * softcap)
    passed = torch.where(error.total == torch.inf, torch.inf, passed)  # infinities of both signs add up to NaN
    capped = error.shared(passed)
    return LogitError(error, capped.add("soft_cap", stages.soft_cap(logits, passed, softcap)))
