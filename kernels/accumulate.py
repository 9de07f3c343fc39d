# mypy: ignore-errors
"""How a gradient sum takes in the increment of a tile. The owner of the output adds, nobody else: no locks."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function, stage
from .rounding import downcast, round_to, two_sum, upcast


class Accumulator(NamedTuple):
    """A sum and, for the schemes that carry one, its companion: (blocks, rows, columns), by blocks of the gradient."""

    sum: torch.Tensor
    companion: torch.Tensor | None


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
def add(s, c, v, VARIANT: tl.constexpr, DTYPE: tl.constexpr):
    """The pair of `load_sums` after the fp32 increment v. Between increments it is held in the dtypes of memory, which
    lose nothing and take half the registers."""
    high, low = add_increment(upcast(s), upcast(c), cast_increment(v, VARIANT, DTYPE), VARIANT, DTYPE)
    return downcast(high, s.dtype), downcast(low, c.dtype)


@device_function
def no_sums(ROWS: tl.constexpr, COLUMNS: tl.constexpr, VARIANT: tl.constexpr, DTYPE: tl.constexpr):
    """The pair of `load_sums` before anything is added."""
    zero = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    if VARIANT.accumulate == "fp32":
        return zero, zero
    else:
        return downcast(zero, DTYPE), downcast(zero, DTYPE)


@device_function
def load_sums(Acc, block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(s, c) of a block as memory holds them; c is 0 without a companion."""
    offsets = block_offsets(block, ROWS, COLUMNS)
    s = tl.load(Acc.sum + offsets)
    return s, tl.zeros_like(s) if Acc.companion is None else tl.load(Acc.companion + offsets)


@device_function
def store_sums(Acc, block, s, c):
    """Puts them back."""
    offsets = block_offsets(block, s.shape[0], s.shape[1])
    tl.store(Acc.sum + offsets, s)
    if Acc.companion is not None:
        tl.store(Acc.companion + offsets, c)


@device_function
def block_offsets(block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where the sums of a block lie: together, so that a thread needs one address, and not one for each number, which
    cost Kahan's sums a spill of 900 bytes."""
    start = tl.cast(block, tl.int64) * (ROWS * COLUMNS)
    return start + (tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :])


HEADROOM = tl.constexpr(0.125)


@device_function
def rescale(s, scale, DTYPE: tl.constexpr):
    """s times `scale` / HEADROOM, rounded to DTYPE: powers of two, exact above the subnormal numbers.

    Sums of dE are kept at the scale of a probability, where a companion in fp16 does not underflow: a row of residuals
    is at most 4 in sum, so that with HEADROOM they stay within half the largest entry of C. Large scales come first
    and small ones last, so that nothing on the way leaves fp32's range but the result."""
    s = tl.where(scale < 1, (s / HEADROOM) * scale, (s * scale) / HEADROOM)
    return round_to(s, DTYPE)
