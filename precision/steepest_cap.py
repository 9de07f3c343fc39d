"""The largest derivative of a softcap near logits that are known but for an error."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.reference import formula
from ccelab.reference.formula import FLOAT64


def steepest_cap(raw: Tensor, error: Tensor, softcap: float) -> Tensor:
    """The largest derivative of the softcap within `error` of the logits `raw`: that of the point nearest to 0."""
    nearest = torch.where(error == torch.inf, 0.0, (raw.abs() - error).clamp(min=0))
    slope: Tensor = formula.cap_derivative(FLOAT64, nearest, softcap)
    return slope
