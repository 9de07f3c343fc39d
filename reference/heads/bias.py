"""A bias for heads that have none, as few language models do today."""

from __future__ import annotations

import torch
from torch import Tensor

from .head import Head


def draw_bias(head: Head, seed: int = 0) -> Tensor:
    """(V,) Gaussian of standard deviation 1 in the head's dtype: the same numbers on every device."""
    drawn = torch.randn(head.shape[1], generator=torch.Generator().manual_seed(seed))
    return drawn.to(head.classifier.device, head.classifier.dtype)
