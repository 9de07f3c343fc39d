"""The adders of tensor cores: some products and the accumulator at once, aligned to the largest exponent and truncated.

The model: products are exact. Each addend's exponent is the sum of its operands' (the significand of a product lies in
[1, 4)), a subnormal operand or accumulator has the smallest exponent of its format, a zero has none. Of every addend
the bits below 2^-`bits` of the largest exponent are dropped, the rest is added exactly, and the sum is truncated to
fp32. On an H100 all of 110,100,480 dots came out as here, whatever D, signs and magnitudes
(`studies/adder-cuda.json`), but where bf16 products and sums lie below 2^-126: there about one dot in 200 is expected
to be off (`EVIDENCE.md`).

Sources: Khattak and Mikaitis, "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004); MMA-Sim
(arXiv 2511.10909); Fasi, Higham, Mikaitis, Pranesh, "Numerical behavior of NVIDIA tensor cores" (PeerJ CS 2021).

Truncated addends are whole numbers of at most `bits` + 2 digits. float64 holds them and their sums exactly, and its
multiplication and truncation do in two operations what integers do in five.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .arithmetic import two_to

_SMALLEST = {torch.bfloat16: -126, torch.float16: -14, torch.float32: -126}
_ZERO = -1000  # below every exponent of a product
_LOWEST = -300  # where there is nothing but zeros


@dataclass(frozen=True, kw_only=True)
class BlockAdder:
    """`terms` products are added at once, with `bits` fractional bits."""

    name: str
    terms: int
    bits: int

    def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
        """acc + a @ b in fp32: a (..., m, k) and b (..., k, n) hold numbers of the storage dtype, acc (..., m, n) fp32.

        k is filled up with zeros to a multiple of `terms`, which adds nothing. An infinity or NaN among the operands
        gives what float64 gives.
        """
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        total = torch.zeros(shape, device=a.device) if acc is None else acc.float()
        missing = -a.shape[-1] % self.terms
        a, b = (
            torch.nn.functional.pad(a, (0, missing)).double(),
            torch.nn.functional.pad(b, (0, 0, 0, missing)).double(),
        )
        exponent_a, exponent_b = exponents(a, storage), exponents(b, storage)
        special = not (bool(a.isfinite().all()) and bool(b.isfinite().all()) and bool(total.isfinite().all()))
        for start in range(0, a.shape[-1], self.terms):
            span = range(start, start + self.terms)
            total = total.double()
            largest = exponents(total, torch.float32)
            for k in span:
                torch.maximum(largest, exponent_a[..., k, None] + exponent_b[..., None, k, :], out=largest)
            scale = two_to(self.bits - largest.clamp(min=_LOWEST))
            found = torch.trunc(total * scale)
            for k in span:
                found += torch.trunc((a[..., k, None] * b[..., None, k, :]).mul_(scale))
            found = truncate(found / scale)
            if special or not bool(found.isfinite().all()):
                plain = total + a[..., span.start : span.stop] @ b[..., span.start : span.stop, :]
                found = torch.where(plain.isfinite(), found, plain.float())
            total = found
        return total


def exponents(x: Tensor, dtype: torch.dtype) -> Tensor:
    """int32 exponents of float64 `x`, which holds numbers of `dtype`, as the adder reads them: floor(log2(abs(x)))
    for normal numbers."""
    exponent = (torch.frexp(x).exponent - 1).clamp(min=_SMALLEST[dtype])
    return torch.where(x == 0, _ZERO, exponent)


def truncate(x: Tensor) -> Tensor:
    """float64 `x` as fp32, rounded toward zero; what is too large becomes infinite."""
    subnormal = torch.trunc(x * 2.0**149) * 2.0**-149
    bits = x.view(torch.int64) >> 29 << 29  # the sign is a bit of its own: this shortens the magnitude
    return torch.where(x.abs() < 2.0**-126, subnormal, bits.view(torch.float64)).float()


@dataclass(frozen=True, kw_only=True)
class RoundedAdder:
    """One product at a time, each sum rounded to nearest: no tensor core, for comparison."""

    name: str

    def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
        """As BlockAdder.dot. A product and its addition round once, as an fma does: exactly so for 16-bit operands,
        and but for double rounding for fp32 ones."""
        shape = (*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        total = torch.zeros(shape, device=a.device) if acc is None else acc.float()
        a, b = a.double(), b.double()
        for k in range(a.shape[-1]):
            total = (total.double() + a[..., k, None] * b[..., None, k, :]).float()
        return total


ADDERS: dict[str, BlockAdder | RoundedAdder] = {
    adder.name: adder
    for adder in (
        BlockAdder(name="hopper", terms=16, bits=25),
        BlockAdder(name="ampere", terms=8, bits=24),  # published, and not verified on a GPU here
        RoundedAdder(name="nearest"),
    )
}


def dot(machine_name: str, a: Tensor, b: Tensor) -> Tensor:
    """(..., m, n) fp32 product of a (..., m, D) and b (..., D, n), both bf16 or fp16, in one chain over D.

    `machine_name` is "hopper" or "ampere" (the tensor core's adder) or "nearest" (one fused multiply-add per product).

    Raises:
        ValueError: there is no adder of that name.
        TypeError: operands are not of one 16-bit dtype.
    """
    if machine_name not in ADDERS:
        raise ValueError(f"no adder {machine_name!r}; legal: {', '.join(ADDERS)}")
    if a.dtype != b.dtype or a.dtype not in (torch.bfloat16, torch.float16):
        raise TypeError(f"operands are {a.dtype} and {b.dtype}; both must be bfloat16 or float16")
    return ADDERS[machine_name].dot(a, b, None, a.dtype)
