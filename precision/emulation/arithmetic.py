"""What a stage computes with: float64 where it is off, a `Machine` where it is on. Stages are written once for both."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Arithmetic(Protocol):
    """The elementary operations that differ."""

    dtype: torch.dtype

    def exp(self, x: Tensor) -> Tensor: ...

    def log(self, x: Tensor) -> Tensor: ...

    def tanh(self, x: Tensor) -> Tensor: ...

    def reciprocal(self, x: Tensor) -> Tensor: ...

    def top(self, x: Tensor) -> Tensor:
        """The largest of the last dimension."""

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        """The sum over the last two dimensions of a tile that has `rows` rows: each segment's columns, then those."""

    def sum_lanes(self, x: Tensor) -> Tensor:
        """The sum over the last dimension of what was loaded and multiplied without a tensor core."""

    def sum_rows(self, x: Tensor) -> Tensor:
        """The sum over the last dimension but one of a tile."""


class Float64:
    """Nothing rounds, as far as fp32 is concerned."""

    dtype = torch.float64

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def log(self, x: Tensor) -> Tensor:
        return torch.log(x)

    def tanh(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def reciprocal(self, x: Tensor) -> Tensor:
        return x.reciprocal()

    def top(self, x: Tensor) -> Tensor:
        return x.amax(-1)

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        return x.sum((-1, -2))

    def sum_lanes(self, x: Tensor) -> Tensor:
        return x.sum(-1)

    def sum_rows(self, x: Tensor) -> Tensor:
        return x.sum(-2)


FLOAT64 = Float64()


def round_to(x: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 `x` rounded to `dtype` and back to fp32."""
    return x if dtype == torch.float32 else x.to(dtype).float()


def finite_or_zero(m: Tensor) -> Tensor:
    """m, or 0 where it is infinite."""
    return torch.where(m.abs() == torch.inf, 0.0, m)


def soft_cap(a: Arithmetic, z: Tensor, softcap: float) -> Tensor:
    """softcap * tanh(z / softcap)."""
    return a.tanh(over_cap(a, z, softcap)) * torch.full((), softcap, dtype=a.dtype, device=z.device)


def over_cap(a: Arithmetic, z: Tensor, softcap: float) -> Tensor:
    """z / softcap, by its reciprocal."""
    one, cap = (torch.full((), x, dtype=a.dtype, device=z.device) for x in (1.0, softcap))
    return z * divide(one, cap)


def soft_cap_slope(a: Arithmetic, g: Tensor, raw: Tensor, softcap: float) -> Tensor:
    """g times the derivative of the cap at `raw`."""
    q = a.exp(over_cap(a, raw, softcap).abs() * -2.0)
    return g * ((4.0 * q) * a.reciprocal((1.0 + q) * (1.0 + q)))


def divide(x: Tensor, y: Tensor) -> Tensor:
    """x / y, rounded once. By a number, torch multiplies with its reciprocal (a Python number on CUDA, ``2.0 / y``)."""
    return x / y.expand_as(x)


def power_of_two(size: Tensor) -> Tensor:
    """(N,) float64: the largest power of two that is at most `size` >= 0, within [2^-126, 2^126]."""
    exponent = torch.frexp(size).exponent - 1
    exponent = torch.where(size == 0, -126, torch.where(size.isfinite(), exponent, 126)).clamp(-126, 126)
    return two_to(exponent)


def two_to(exponent: Tensor) -> Tensor:
    """float64 powers of two, for whole exponents from -1022 to 1023; torch.ldexp may go through fp32."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def two_sum(a: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Knuth's TwoSum in `dtype`, of values of that dtype held in fp32, as `kernels.rounding.two_sum`."""
    s = round_to(a + b, dtype)
    a_part = round_to(s - b, dtype)
    b_part = s - a_part
    return s, (a - a_part) + (b - b_part)


def fast_two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Dekker's, in fp32, for abs(a) >= abs(b)."""
    s = a + b
    return s, b - (s - a)
