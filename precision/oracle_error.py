"""How far the oracle's own logits and residuals may be off: float64 rounds too, and large logits carry that into a
softmax."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccelab.reference.double import ResidualChunk, Stream

from .arithmetic import DOUBLE_U
from .steepest_cap import steepest_cap


class OracleLogitError(NamedTuple):
    """(N, n) each; 0 where logits are not finite."""

    raw: Tensor  # before the cap
    capped: Tensor

    @classmethod
    def of(cls, stream: Stream, columns: Tensor, raw: Tensor, absolute: Tensor) -> OracleLogitError:
        """From the exact logits before the cap and |E||C|^T, (N, n) each."""
        bias, softcap = stream.bias(columns), stream.problem.softcap
        size = absolute if bias is None else absolute + bias.abs()
        off = (2 * stream.embeddings.shape[1] + 8) * DOUBLE_U * torch.where(raw.isfinite(), size, 0.0)
        if softcap is None:
            return cls(off, off)
        slope = steepest_cap(raw, off, softcap)
        return cls(off, torch.where(slope > 0, off * slope, 0.0) + 8 * DOUBLE_U * softcap)


def oracle_residual_error(
    part: ResidualChunk, of_logit: OracleLogitError, of_lse: Tensor, softcap: float | None
) -> Tensor:
    """(N, n) of residuals, relatively: by the exponent, and the slope of a softcap, about 4 exp(-2 |z| / softcap)."""
    relative = 2 * (of_logit.capped + of_lse)
    if softcap is not None:
        relative = relative + 2 * of_logit.raw / softcap
    return torch.where(part.residual != 0, relative, 0.0)
