"""Gradient sums as they take in increments, by `Variant.accumulate`; beside them, sums that do not round."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Variant

from .arithmetic import fast_two_sum, round_to, two_sum
from .setup import HEADROOM


def cast_increment(v: Tensor, variant: Variant, dtype: torch.dtype) -> Tensor:
    """fp32 v as the sum takes it."""
    return round_to(v, dtype) if variant.accumulate in ("kahan", "storage") else v


def add_increment(
    s: Tensor, c: Tensor | None, v: Tensor, variant: Variant, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Sum and companion after the increment v, all fp32."""
    if c is None:
        return (s + v if variant.accumulate == "fp32" else round_to(s + v, dtype)), None
    if variant.accumulate == "kahan":
        return two_sum(s, round_to(c + v, dtype), dtype)
    if dtype == torch.float32:
        total, low = two_sum(s, v, dtype)
        return fast_two_sum(total, low + c)
    total = (s + c) + v
    high = round_to(total, dtype)
    return high, round_to(total - high, dtype)


def rescaled(s: Tensor, scale: Tensor) -> Tensor:
    """Sums of dE, in fp32 as the kernel has them or in float64, at the scale of the result; `scale` in float64."""
    if s.dtype == torch.float64:
        return s / HEADROOM * scale
    single = scale.float()
    return torch.where(single < 1, (s / HEADROOM) * single, (s * single) / HEADROOM)


class Sum:
    """One gradient, or a part of it, under one choice of modes."""

    def __init__(self, shape: tuple[int, ...], variant: Variant, dtype: torch.dtype, on: bool, device: torch.device):
        self.variant, self.dtype, self.on = variant, dtype, on
        self.sum = torch.zeros(shape, dtype=torch.float32 if on else torch.float64, device=device)
        carries = on and variant.accumulate in ("kahan", "hilo")
        self.companion = torch.zeros_like(self.sum) if carries else None

    def add(self, v: Tensor, live: Tensor | None) -> None:
        """Takes in v where `live`, which has as many dimensions."""
        if not self.on:
            self.sum += v if live is None else torch.where(live, v, 0.0)
            return
        s, c = add_increment(self.sum, self.companion, v.float(), self.variant, self.dtype)
        if live is not None:
            s = torch.where(live, s, self.sum)
            c = None if c is None or self.companion is None else torch.where(live, c, self.companion)
        self.sum, self.companion = s, c
