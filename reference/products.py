"""Matrix products that are exact, or that say by how much they are not.

A float64 product of two matrices is exact when every term, hence every partial sum in any order and with or without
fused multiply-add, is a multiple of a power of two ``2^lsb`` and smaller than ``2^(53 + lsb)``. Data of 8 significant
bits nearly always passes, of 11 often. Where it does not pass, a dot product of length D has an error of at most
``D u |a|.|b|`` in any order (Jeannerod and Rump 2013), which Cauchy-Schwarz turns into norms of rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Integers = Any  # numpy object array of Python ints, for which numpy has no type

U = 2.0**-53  # unit roundoff of float64
TINIEST = 2.0**-1074  # what one underflow can lose
_NO_BITS = 1 << 30  # "the lowest bit" of a zero: above every other
_PRECISION = 53


def lsb_exponent(x: Tensor) -> Tensor:
    """The exponent of the lowest set bit of each float64 entry, int64; `_NO_BITS` for 0, inf and NaN."""
    mantissa, exponent = torch.frexp(torch.where(torch.isfinite(x), x, 0.0))
    significand = torch.ldexp(mantissa, torch.tensor(_PRECISION, device=x.device)).long()
    lowest = (significand & -significand).double()
    trailing = torch.frexp(lowest).exponent.long() - 1
    return torch.where(significand == 0, _NO_BITS, exponent.long() - _PRECISION + trailing)


@dataclass(frozen=True, eq=False)
class RowScale:
    """What a bound on products needs to know about the rows of a matrix; non-finite entries count as 0."""

    lsb: Tensor  # (R,) int64: every entry of the row is a multiple of 2^lsb
    norm: Tensor  # (R,) float64: Euclidean

    @classmethod
    def of(cls, x: Tensor) -> RowScale:
        """`x` is float64, (R, D). The norm is scaled, so that squares neither overflow nor vanish."""
        finite = torch.where(torch.isfinite(x), x, 0.0)
        largest = finite.abs().amax(dim=1)
        unit = torch.where(largest == 0, 1.0, largest)
        norm = unit * torch.linalg.vector_norm(finite / unit[:, None], dim=1)
        return cls(lsb_exponent(finite).amin(dim=1), norm)

    @classmethod
    def cat(cls, parts: list[RowScale]) -> RowScale:
        return cls(torch.cat([p.lsb for p in parts]), torch.cat([p.norm for p in parts]))

    def __getitem__(self, index: Any) -> RowScale:
        return RowScale(self.lsb[index], self.norm[index])


def magnitude(a: RowScale, b: RowScale, bias: Tensor | None) -> Tensor:
    """At least ``|a| . |b| + |bias|``, up to the roundings of this bound itself; non-finite biases count as 0."""
    size = a.norm * b.norm
    return size if bias is None else size + torch.where(torch.isfinite(bias), bias, 0.0).abs()


def product_error(a: RowScale, b: RowScale, length: int, bias: Tensor | None = None) -> Tensor:
    """Bound on the error of the float64 ``a . b + bias`` with dot products of `length`: 0 where certified exact.

    The scales and the float64 `bias` broadcast: give ``a[:, None]`` and ``b[None, :]`` for a matrix of bounds.
    """
    size = magnitude(a, b, bias)
    lsb = a.lsb + b.lsb
    rounded = length * U * (a.norm * b.norm) + length * TINIEST
    if bias is not None:
        lsb = torch.minimum(lsb, lsb_exponent(bias))
        rounded = rounded + U * size
    # The margin covers the roundings of `size` and of the logarithm, many times over.
    exact = (torch.log2(size) + 2.0**-20 < _PRECISION + lsb) & (lsb >= -1074)
    return torch.where(exact, 0.0, rounded)


@dataclass(frozen=True, eq=False)
class Fixed:
    """The exact matrix ``units * 2^exponent`` of Python integers."""

    units: Integers
    exponent: int

    @classmethod
    def of(cls, x: Tensor) -> Fixed:
        """Exactly the float64 `x`; inf and NaN count as 0 (see `nonfinite_product`)."""
        lsb = lsb_exponent(x)
        used = lsb[lsb != _NO_BITS]
        exponent = int(used.min()) if used.numel() else 0
        mantissa, high = np.frexp(np.where(np.isfinite(x.numpy()), x.numpy(), 0.0))
        significand = np.ldexp(mantissa, _PRECISION).astype(np.int64)
        trailing = np.where(significand == 0, 0, lsb.numpy() - (high - _PRECISION))
        shift = np.where(significand == 0, 0, lsb.numpy() - exponent)
        return cls(np.left_shift((significand >> trailing).astype(object), shift.astype(object)), exponent)

    def __matmul__(self, other: Fixed) -> Fixed:
        return Fixed(self.units @ other.units, self.exponent + other.exponent)

    def __add__(self, other: Fixed) -> Fixed:
        exponent = min(self.exponent, other.exponent)
        left = self.units * (1 << (self.exponent - exponent))
        return Fixed(left + other.units * (1 << (other.exponent - exponent)), exponent)

    def __abs__(self) -> Fixed:
        return Fixed(abs(self.units), self.exponent)

    @property
    def transposed(self) -> Fixed:
        return Fixed(self.units.T, self.exponent)

    @property
    def bits(self) -> int:
        """Every entry is smaller than ``2^bits``."""
        return self.exponent + max((abs(int(x)).bit_length() for x in self.units.flat), default=0)


def nonfinite_product(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where ``a @ b`` meets inf or NaN in IEEE arithmetic, the inf or NaN it gives; some finite value elsewhere.

    Finite magnitudes cannot matter, so that they are replaced by signs, which cannot overflow.
    """
    left, right = (np.where(np.isfinite(x), np.sign(x), x) for x in (a, b))
    if np.isfinite(left).all() and np.isfinite(right).all():
        return np.zeros((a.shape[0], b.shape[1]))
    with np.errstate(invalid="ignore"):
        product: np.ndarray[Any, Any] = np.einsum("ik,kj->ij", left, right)
    return product


def nearest_double(units: int, exponent: int) -> float:
    """``units * 2^exponent`` correctly rounded, subnormals and overflow included."""
    top = units.bit_length() + exponent
    if top > 1024:
        return math.copysign(math.inf, units)
    if top < -1074:
        return math.copysign(0.0, units)
    try:
        # int -> float and int / int are correctly rounded in CPython.
        return float(units << exponent) if exponent >= 0 else units / (1 << -exponent)
    except OverflowError:
        return math.copysign(math.inf, units)
