# mypy: ignore-errors
"""Casts, sums and products that round alike on the GPU and in Triton's interpreter.

The interpreter keeps bf16 as raw 16-bit patterns and computes on those, silently: its casts truncate, its sums and
products are of patterns. Here bf16 is upcast by a shift (exact), downcast by integer round-to-nearest-even, and
multiplied after an upcast (bf16 products are exact in fp32).
"""

import triton.language as tl

from .backend import IS_INTERPRETED, device_function

INTERPRETED = tl.constexpr(IS_INTERPRETED)


@device_function
def upcast(x):
    """`x` in fp32, exactly."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@device_function
def downcast(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to nearest, ties to even. A NaN becomes 0x7FFF in bf16, as by the GPU's cvt.rn."""
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300 - as in accumulate.add_increment
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FFF, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@device_function
def round_to(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to DTYPE and back to fp32."""
    return upcast(downcast(x, DTYPE))


@device_function
def dot(a, b, acc):
    """acc + a @ b with an fp32 accumulator; a and b in the storage dtype. fp32 operands are not reduced to TF32."""
    if INTERPRETED:
        return tl.dot(upcast(a), upcast(b), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@device_function
def two_sum(a, b, DTYPE: tl.constexpr):
    """(s, t) with s = rn(a + b) and s + t = a + b exactly: Knuth's six operations, each rounded to DTYPE.

    a and b are values of DTYPE held in fp32. An fp32 sum rounded to bf16 or fp16 is the correctly rounded sum, since
    24 >= 2p + 2 digits (Figueroa, "When is double rounding innocuous?").
    """
    s = round_to(a + b, DTYPE)
    a_part = round_to(s - b, DTYPE)
    b_part = round_to(s - a_part, DTYPE)
    return s, round_to(round_to(a - a_part, DTYPE) + round_to(b - b_part, DTYPE), DTYPE)


@device_function
def power_of_two(scale):
    """(k, 1/k) for scale >= 0: k is a power of two in [2^-126, 2^126], with scale / k in [1, 2) where it can be."""
    exponent = (scale.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)
