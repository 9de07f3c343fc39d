"""What rounding alone costs: the least error that outputs, and residuals, in the storage format can have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.reference import Problem, Solution
from ccelab.reference.double import Stream

from .measure import ROWS_AT_ONCE


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Normwise relative errors of one gradient."""

    one_rounding: float  # the exact gradient, rounded once
    two_roundings: float  # the residual rounded once, then the gradient; everything else exact

    def times(self, error: float) -> float | None:
        """A normwise error over that of two roundings; None where those cost nothing."""
        return error / self.two_roundings if self.two_roundings else None


def floors(problem: Problem, truth: Solution) -> dict[str, Floor]:
    """The floors of dE and dC, by their names in `Solution`, for the storage format of the problem.

    The kernels cast the residual at a power-of-two scale of its row, which rounds alike unless it underflows.
    """
    dtype = problem.embeddings.dtype
    if truth.d_embeddings is None or truth.d_classifier is None:
        raise ValueError("floors need a truth with both gradients")
    stream = Stream(problem)
    d_embeddings, d_classifier = torch.zeros_like(truth.d_embeddings), torch.zeros_like(truth.d_classifier)
    scale = (stream.d_loss.abs() + stream.d_lse.abs()).clamp(min=2.0**-1000)
    scale = 2.0 ** torch.floor(torch.log2(scale))
    for part in stream.residuals(stream.rows()):
        # Through fp32, where the kernels have it: float64 to bf16 directly differs by double rounding at ties only.
        rounded = (part.residual / scale).to(dtype).double() * scale
        d_embeddings += rounded @ stream.classifier(part.columns)
        d_classifier[part.columns] = rounded.T @ stream.embeddings
    pairs = {"d_embeddings": (d_embeddings, truth.d_embeddings), "d_classifier": (d_classifier, truth.d_classifier)}
    return {
        name: Floor(one_rounding=_rounding_error(want, want, dtype), two_roundings=_rounding_error(twice, want, dtype))
        for name, (twice, want) in pairs.items()
    }


def _rounding_error(value: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    error = size = 0.0
    step = max(1, ROWS_AT_ONCE // value.shape[1])
    for v, w in zip(value.split(step), want.split(step), strict=True):
        error += float((v.to(dtype).double() - w).square().sum())
        size += float(w.square().sum())
    return (error / size) ** 0.5 if size else 0.0
