# mypy: ignore-errors
"""Casts, sums and products that round alike on the GPU and, through `emulation`, in Triton's interpreter; and exp."""

import triton.language as tl
from triton.language.extra import libdevice

from . import emulation
from .backend import device_function, emulated_by


@emulated_by(emulation.upcast)
def upcast(x):
    """`x` in fp32, exactly."""
    return x.to(tl.float32)


@emulated_by(emulation.downcast)
def downcast(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to nearest, ties to even. A NaN becomes 0x7FFF in bf16, as by the GPU's cvt.rn."""
    return x.to(DTYPE)


@emulated_by(emulation.round_to)
def round_to(x, DTYPE: tl.constexpr):
    """fp32 `x` rounded to DTYPE and back to fp32."""
    return x.to(DTYPE).to(tl.float32)


@emulated_by(emulation.dot)
def dot(a, b, acc):
    """acc + a @ b with an fp32 accumulator; a and b in the storage dtype. fp32 operands are not reduced to TF32."""
    return tl.dot(a, b, acc, input_precision="ieee")


LOG2_E = tl.constexpr(1.4426950408889634)


@device_function
def exp(x):
    """e^x as 2^(x log2 e), which is what tl.exp comes to, but with ex2.approx.ftz: results under 2^-126 are 0.

    Without .ftz every exponential takes a branch for subnormal numbers, 0.07 of the forward pass.
    """
    return tl.exp2(x * LOG2_E)


@emulated_by(emulation.fast_log)
def fast_log(x):
    """ln x as lg2.approx.ftz: within 2^-22, or 2^-22 of it, in a tenth of the instructions of tl.log."""
    return libdevice.fast_logf(x)


@emulated_by(emulation.fma)
def fma(x, y, z):
    """x y + z, rounded once. Said by name: whether the compiler may contract is another question (`fp_fusion`)."""
    return tl.fma(x, y, z)


@emulated_by(emulation.reciprocal)
def reciprocal(x):
    """1 / x as rcp.approx.ftz: within an ulp, without the slow path of a division."""
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@device_function
def two_sum(a, b, DTYPE: tl.constexpr):
    """(s, t) with s = rn(a + b) and s + t = a + b exactly: Knuth's six operations in DTYPE.

    a and b are values of DTYPE held in fp32. An fp32 sum rounded to bf16 or fp16 is the correctly rounded sum, since
    24 >= 2p + 2 digits (Figueroa, "When is double rounding innocuous?"). The last four operations are exact in DTYPE
    (Knuth, TAOCP 2, 4.2.2, theorem B; tests/test_rounding.py tries a million pairs): in fp32 they need no rounding.
    """
    s = round_to(a + b, DTYPE)
    a_part = round_to(s - b, DTYPE)
    b_part = s - a_part
    return s, (a - a_part) + (b - b_part)


@device_function
def power_of_two(scale):
    """(k, 1/k) for scale >= 0: k is a power of two in [2^-126, 2^126], with scale / k in [1, 2) where it can be."""
    exponent = (scale.to(tl.uint32, bitcast=True) & 0x7FFFFFFF) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)
