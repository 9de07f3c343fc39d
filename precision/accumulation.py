"""Error bounds of a gradient sum as it takes in increments, one recursion per scheme, per output element."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import Format, U
from .logit_error import LARGEST_FP32


class Accumulation:
    """Runs along the exact partial sums s_t of increments v_t and carries a bound B_t on the computed sum's error."""

    def __init__(self, scheme: str, fmt: Format, like: Tensor, scale: Tensor | float = 1.0) -> None:
        """`scale`, a power of two, is what the sums are multiplied by in the end: till then they underflow later."""
        self.scheme = "fp32" if scheme == "storage" and fmt.is_fp32 else scheme
        self.fmt = fmt
        self.scale = scale
        self.half_tiny = fmt.tiny / 2 * scale
        self.sum = torch.zeros_like(like)
        self.error = torch.zeros_like(like)

    def add(self, v: Tensor, dv: Tensor) -> None:
        """One more increment, exactly v and computed within dv."""
        fmt, before = self.fmt, self.sum.abs() + self.error
        u, half_tiny = fmt.u, self.half_tiny
        self.sum = self.sum + v
        self.error = self.error + dv
        size = v.abs() + dv
        cast = 0.0 if fmt.is_fp32 else u * size + half_tiny
        if self.scheme == "storage":
            # |rn(s + x) - (s + x)| <= |x| too, since s itself is representable: a sum that stagnates loses x, no more.
            self.error = self.error + cast
            rounding = u * (self.sum.abs() + self.error) + half_tiny
            self.error = self.error + torch.minimum(rounding, size + cast)
        elif self.scheme == "kahan":
            # rn(c + rn(v)) rounds twice, c being at most u |s|; the TwoSum behind it is exact.
            size = size + cast
            self.error = self.error + cast + u * (size + u * before) + half_tiny
        elif self.scheme == "hilo":
            total = self.sum.abs() + self.error
            self.error = self.error + (4 * U * U if fmt.is_fp32 else 2 * U + u * u) * total + half_tiny
        else:
            self.error = self.error + U * (self.sum.abs() + self.error)
        limit = LARGEST_FP32 if self.scheme == "fp32" else fmt.largest
        size = torch.maximum(size, self.sum.abs() + self.error)
        self.error = torch.where(size <= limit * self.scale, self.error, torch.inf)

    def result(self) -> Tensor:
        """The bound on the value that is returned: the companion is dropped, or the fp32 buffer cast."""
        error = self.error + self.fmt.tiny
        if self.scheme != "storage" and not (self.scheme == "fp32" and self.fmt.is_fp32):
            error = error + self.fmt.u * (self.sum.abs() + self.error)
        return torch.where(self.sum.abs() + error < self.fmt.largest, error, torch.inf)
