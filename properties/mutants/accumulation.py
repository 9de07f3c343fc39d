"""Bugs of the gradient sums."""

from __future__ import annotations

from ..mutation import Mutant

ADD = "accumulate:add_increment"
STORAGE = "round_to(s + v, DTYPE), c"
KAHAN = "two_sum(s, round_to(c + v, DTYPE), DTYPE)"

MUTANTS = (
    Mutant(
        "increments are rounded before an fp32 sum",
        "one_tile_is_one_rounding",
        "cce-exact",
        "accumulate:cast_increment",
        "return v",
        "return round_to(v, DTYPE)",
    ),
    Mutant(
        "the sum called fp32 is held in storage precision",
        "smaller_tiles_cost_accurate_sums_little",
        "cce-exact",
        ADD,
        "return s + v, c",
        "return round_to(s + v, DTYPE), c",
    ),
    Mutant(
        "Kahan's companion is stale",
        "compensated_sums_do_not_grow_with_the_number_of_tiles",
        "cce-exact,accumulate=kahan",
        ADD,
        KAHAN,
        "two_sum(s, v, DTYPE)",
    ),
    Mutant(
        "hilo forgets its low part",
        "compensated_sums_do_not_grow_with_the_number_of_tiles",
        "cce-exact,accumulate=hilo",
        ADD,
        "(s + c) + v",
        "s + v",
    ),
    Mutant(
        "hilo subtracts its error",
        "sum_and_companion_hold_what_fits",
        "cce-exact,accumulate=hilo",
        ADD,
        "round_to(total - high, DTYPE)",
        "round_to(high - total, DTYPE)",
    ),
    Mutant(
        "the storage sum is kept in fp32",
        "storage_sums_do_grow",
        "cce-no-filter",
        ADD,
        STORAGE,
        "s + v, c",
    ),
    Mutant(
        "negative increments are lost",
        "signs_of_e_and_c_cancel",
        "cce-no-filter",
        ADD,
        STORAGE,
        "round_to(s + tl.maximum(v, 0.0), DTYPE), c",
    ),
    Mutant(
        "fp32 increments pass through fp16",
        "fp32_storage_is_fp32",
        "cce-no-filter",
        ADD,
        STORAGE,
        "round_to(s + v.to(tl.float16).to(tl.float32), DTYPE), c",
    ),
    Mutant(
        "the error of a sum has the wrong sign",
        "kahan_beats_storage",
        "cce-exact,accumulate=kahan",
        "rounding:two_sum",
        "(a - a_part) + (b - b_part)",
        "-((a - a_part) + (b - b_part))",
    ),
    Mutant(
        "the companion is never stored",
        "smaller_tiles_cost_accurate_sums_little",
        "cce-exact,accumulate=kahan",
        "accumulate:store_sums",
        "tl.store(Acc.companion + offsets, c)",
        "tl.store(Acc.companion + offsets, tl.zeros_like(c))",
    ),
    Mutant(
        "the sum is overwritten by the increment",
        "more_than_two_tiles_everywhere",
        "cce-kahan",
        "accumulate:add",
        "add_increment(upcast(s),",
        "add_increment(upcast(s) * 0.0,",
    ),
    Mutant(
        "headroom is not given back",
        "any_schedule_is_within_its_own_budget",
        "cce",
        "accumulate:rescale",
        "(s * scale) / HEADROOM",
        "s * scale",
    ),
)
