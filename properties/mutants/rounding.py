"""Bugs of casts and elementary functions, where the interpreter has its own of them."""

from __future__ import annotations

from ..mutation import Mutant

MUTANTS = (
    Mutant(
        "subnormal numbers are flushed on loading",
        "subnormal_numbers_count",
        "cce-exact",
        "emulation:_to_fp32",
        "return wide.view(np.float32)",
        "return np.where(np.abs(wide.view(np.float32)) < 2.0**-126, np.float32(0), wide.view(np.float32))",
    ),
    Mutant(
        "-0 is read as the number below it",
        "negative_zeros_are_zeros",
        "cce-exact",
        "emulation:_to_fp32",
        "wide <<= 16",
        "wide <<= 16\n    wide[wide == 0x80000000] = 0xBF800000",
    ),
    Mutant(
        "bf16 casts truncate",
        "one_tile_is_one_rounding",
        "cce-no-filter",
        "emulation:_to_bf16",
        "rounded += 0x7FFF",
        "rounded *= 0",
    ),
    Mutant(
        "bf16 casts send ties up",
        "every_gradient_is_rounded_to_nearest_even",
        "cce-exact",
        "emulation:_to_bf16",
        "rounded += 0x7FFF",
        "rounded += 0x8000 - rounded",
    ),
    Mutant(
        "bf16 casts round up",
        "one_tile_is_one_rounding",
        "cce-exact,accumulate=kahan",
        "emulation:_to_bf16",
        "rounded += 0x7FFF",
        "rounded += 0xFFFF",
    ),
    Mutant(
        "log2 e has three digits",
        "no_embedding_is_a_uniform_guess",
        "cce",
        "rounding:exp",
        "x * LOG2_E",
        "x * 1.44",
    ),
    Mutant(
        "exp(0) is not 1",
        "one_class_is_certain",
        "cce",
        "rounding:exp",
        "tl.exp2(x * LOG2_E)",
        "tl.exp2(x * LOG2_E) * 1.000001",
    ),
    Mutant(
        "powers of two are halves too large",
        "more_than_two_tiles_everywhere",
        "cce-kahan",
        "rounding:power_of_two",
        "return (exponent << 23)",
        "return ((exponent << 23) | 0x400000)",
    ),
)
