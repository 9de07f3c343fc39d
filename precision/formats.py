"""Floating-point formats by the numbers that bounds need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def half_ulp(self, size: Tensor) -> Tensor:
        """The largest error of rounding to nearest a number of at most `size` >= 0: half a unit in the last place.

        That is u 2^floor(log2 size), from u / 2 to u of the size (Higham, ASNA, 2.1). Underflow comes on top: half the
        smallest number, and nothing for sums, which are exact there (theorem 3.4.1 of Hauser, TOPLAS 18, 1996).
        """
        power = size / torch.frexp(size).mantissa / 2
        return torch.where(size == 0, 0.0, torch.where(size.isfinite(), self.u * power, size))

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.name)
        return dtype

    @property
    def is_fp32(self) -> bool:
        return self.u == U


FP32 = Format.of(torch.float32)
FP16 = Format.of(torch.float16)
