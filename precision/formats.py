"""Floating-point formats by the numbers that bounds need."""

from __future__ import annotations

from dataclasses import dataclass

import torch

U = 2.0**-24
"""Unit roundoff of fp32, in which every kernel computes."""


@dataclass(frozen=True)
class Format:
    """A storage format with round-to-nearest: ``|rn(x) - x| <= max(u |x|, tiny / 2)``."""

    name: str
    u: float  # unit roundoff
    tiny: float  # smallest positive subnormal
    largest: float
    digits: int  # significand bits, the implicit one included

    @classmethod
    def of(cls, dtype: torch.dtype) -> Format:
        info = torch.finfo(dtype)
        digits = round(1 - torch.tensor(info.eps, dtype=torch.float64).log2().item())
        return cls(str(dtype).removeprefix("torch."), info.eps / 2, info.tiny * info.eps, info.max, digits)

    @property
    def is_fp32(self) -> bool:
        return self.u == U
