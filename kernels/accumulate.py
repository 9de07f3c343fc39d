# mypy: ignore-errors
"""How a gradient sum takes in the increment of a tile. The owner of the output adds, nobody else: no locks."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function, stage
from .matrix import load_or_zero
from .rounding import downcast, round_to, two_sum, upcast


class Accumulator(NamedTuple):
    """A contiguous sum and, for the schemes that carry one, its companion. No sum where no gradient is wanted."""

    sum: torch.Tensor | None
    companion: torch.Tensor | None
    columns: int


@device_function
def fast_two_sum(a, b):
    """(s, t) with s = rn(a + b), s + t = a + b, in fp32 for |a| >= |b| (Dekker 1971)."""
    s = a + b
    return s, b - (s - a)


@stage
def cast_increment(v, VARIANT: tl.constexpr, DTYPE: tl.constexpr):
    """The fp32 increment v as the sum takes it: in the storage dtype DTYPE, or in fp32."""
    if VARIANT.accumulate == "kahan" or VARIANT.accumulate == "storage":
        return round_to(v, DTYPE)
    else:
        return v


@stage
def add_increment(s, c, v, VARIANT: tl.constexpr, DTYPE: tl.constexpr):
    """The sum s and its companion c after the increment v of `cast_increment`, all held in fp32."""
    if VARIANT.accumulate == "kahan":
        # Kahan (1965) as Knuth's TwoSum: every operation in the storage dtype.
        return two_sum(s, round_to(c + v, DTYPE), DTYPE)
    elif VARIANT.accumulate == "hilo":
        if DTYPE == tl.float32:  # noqa: SIM300 - a dtype compared with a constexpr on its right is never equal
            total, low = two_sum(s, v, DTYPE)
            return fast_two_sum(total, low + c)
        else:
            total = (s + c) + v
            high = round_to(total, DTYPE)
            return high, round_to(total - high, DTYPE)
    elif VARIANT.accumulate == "fp32":
        return s + v, c
    else:
        return round_to(s + v, DTYPE), c


@device_function
def load_sums(Acc, rows, row_mask, col0, COLUMNS: tl.constexpr):
    """(s, c) of a block, in fp32; c is 0 without a companion."""
    j = col0 + tl.arange(0, COLUMNS)
    offsets = rows.to(tl.int64)[:, None] * Acc.columns + j[None, :]
    mask = row_mask[:, None] & (j < Acc.columns)[None, :]
    s = upcast(load_or_zero(Acc.sum + offsets, mask))
    return s, tl.zeros_like(s) if Acc.companion is None else upcast(load_or_zero(Acc.companion + offsets, mask))


@device_function
def store_sums(Acc, rows, row_mask, col0, COLUMNS: tl.constexpr, s, c):
    """Puts them back, exactly: they are numbers of the dtypes that hold them."""
    j = col0 + tl.arange(0, COLUMNS)
    offsets = rows.to(tl.int64)[:, None] * Acc.columns + j[None, :]
    mask = row_mask[:, None] & (j < Acc.columns)[None, :]
    tl.store(Acc.sum + offsets, downcast(s, Acc.sum.dtype.element_ty), mask=mask)
    if Acc.companion is not None:
        tl.store(Acc.companion + offsets, downcast(c, Acc.companion.dtype.element_ty), mask=mask)


HEADROOM = tl.constexpr(0.125)


@device_function
def rescale(s, scale, DTYPE: tl.constexpr):
    """s times `scale` / HEADROOM, rounded to DTYPE: powers of two, exact above the subnormal numbers.

    Sums of dE are kept at the scale of a probability, where a companion in fp16 does not underflow: a row of residuals is
    at most 4 in sum, so that with HEADROOM they stay within half the largest entry of C. Large scales come first and
    small ones last, so that nothing on the way leaves fp32's range but the result."""
    s = tl.where(scale < 1, (s / HEADROOM) * scale, (s * scale) / HEADROOM)
    return round_to(s, DTYPE)
