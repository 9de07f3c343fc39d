"""bf16 in Triton's interpreter, where its own is wrong: the conversions of `rounding`, straight on numpy arrays.

The interpreter keeps bf16 as raw 16-bit patterns and computes on those, silently: its casts truncate, its sums and
products are of patterns. An upcast is a shift (exact), and a downcast the integer round-to-nearest-even of the pattern.
Written with Triton's operations instead of numpy's, the same conversions took a third of a report's time.

Products go through float64, where those of 16-bit numbers are exact and so, but for exponents far apart, are their
sums: the answer is rounded to fp32 once, and every machine gives the same. An fp32 product would be that of the
machine's BLAS: OpenBLAS's Haswell kernel adds up a row in another order where it stands at another place in the tile,
so that a law as plain as "tokens do not see each other" failed there and held elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

Array = np.ndarray[Any, Any]


def upcast(x: Any) -> Any:
    """As rounding.upcast."""
    return _tensor(_to_fp32(x.handle.data), tl.float32) if x.dtype == tl.bfloat16 else x.to(tl.float32)


def downcast(x: Any, dtype: Any) -> Any:
    """As rounding.downcast."""
    dtype = tl.core._unwrap_if_constexpr(dtype)
    return _tensor(_to_bf16(x.handle.data), tl.bfloat16) if dtype == tl.bfloat16 else x.to(dtype)


def round_to(x: Any, dtype: Any) -> Any:
    """As rounding.round_to."""
    dtype = tl.core._unwrap_if_constexpr(dtype)
    if dtype == tl.bfloat16:
        return _tensor(_to_fp32(_to_bf16(x.handle.data)), tl.float32)
    return x if dtype == tl.float32 else x.to(dtype).to(tl.float32)


def dot(a: Any, b: Any, acc: Any) -> Any:
    """As rounding.dot."""
    operands = (upcast(x).handle.data for x in (a, b))
    with np.errstate(invalid="ignore"):
        return _tensor(acc.handle.data + product(*operands, split=a.dtype == tl.float32), tl.float32)


def fast_log(x: Any) -> Any:
    """As rounding.fast_log, to the last digit."""
    with np.errstate(divide="ignore"):  # nothing but -inf in a segment is an answer here
        return tl.log(x)


def fma(x: Any, y: Any, z: Any) -> Any:
    """As rounding.fma. The product of two fp32 numbers is exact in float64; where its sum lies next to a tie of fp32's,
    once in 2^29, it may be rounded twice."""
    a, b, c = (np.asarray(v.handle.data if isinstance(v, tl.tensor) else np.float32(v), np.float64) for v in (x, y, z))
    with np.errstate(all="ignore"):
        return _tensor((a * b + c).astype(np.float32), tl.float32)


def reciprocal(x: Any) -> Any:
    """As rounding.reciprocal, to the last digit."""
    with np.errstate(all="ignore"):
        return _tensor(np.asarray(np.float32(1.0) / x.handle.data), tl.float32)


def product(a: Array, b: Array, *, split: bool) -> Array:
    """a @ b in fp32 for a (m, k) and b (k, n) in fp32. `split` is for operands of 24 bits: halves of 12 bits each have
    products of 24, whose sums are exact in float64 again."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are answers here
        if split:
            (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
            crossed = np.matmul(a_high, b_low) + np.matmul(a_low, b_high)
            exact = np.matmul(a_high, b_high) + (crossed + np.matmul(a_low, b_low))
        else:
            exact = np.matmul(a.astype(np.float64), b.astype(np.float64))
        rounded: Array = exact.astype(np.float32)
    return rounded


def _halves(x: Array) -> tuple[Array, Array]:
    """The upper 12 bits of the significands of `x` and the rest, in float64; an infinity or NaN has no rest."""
    wide = x.astype(np.float64)
    high = (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32).astype(np.float64)
    high = np.where(np.isfinite(wide), high, wide)  # the upper bits of a NaN may be those of an infinity
    return high, np.where(high == wide, 0.0, wide - high)


def _to_fp32(bits: Array) -> Array:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _to_bf16(x: Array) -> Array:
    """The patterns of fp32 `x` rounded to nearest even; 0x7FFF for every NaN, as the GPU's cvt.rn."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits  # a NaN may wrap around here
    rounded >>= 16
    nan = np.isnan(x)
    if nan.any():
        rounded[nan] = 0x7FFF
    return rounded.astype(np.uint16)


def _tensor(data: Array, dtype: Any) -> Any:
    return tl.tensor(TensorHandle(data, dtype), tl.block_type(dtype, list(data.shape)) if data.shape else dtype)
