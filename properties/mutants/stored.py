"""Bugs of exponentials that the forward pass stores."""

from __future__ import annotations

from ..mutation import Mutant

MUTANTS = (
    Mutant(
        "exponentials are stored in bf16",
        "every_output_is_within_its_budget",
        "cce-stored",
        "exponentials:store_exponentials",
        "downcast(x * UNIT, tl.float16)",
        "downcast(downcast(x * UNIT, tl.bfloat16).to(tl.float32), tl.float16)",
    ),
    Mutant(
        "exponentials are stored as they are, and small ones vanish",
        "small_exponentials_are_stored_too",
        "cce-stored",
        "exponentials:store_exponentials",
        "downcast(x * UNIT, tl.float16)",
        "downcast(downcast(x, tl.float16).to(tl.float32) * UNIT, tl.float16)",
    ),
    Mutant(
        "stored exponentials are taken for those of the row's maximum",
        "more_than_two_tiles_everywhere",
        "cce-stored",
        "stored_residual:restore_softmax",
        "(shift - rows.max)",
        "(rows.max - rows.max)",
    ),
    Mutant(
        "every tile has the shift of the first",
        "any_schedule_is_within_its_own_budget",
        "cce-stored",
        "exponentials:keep_exponentials",
        "tl.cast(tile, tl.int64) * N",
        "tl.cast(0 * tile, tl.int64) * N",
    ),
    Mutant(
        "what is stored is used up by the first backward pass",
        "a_second_backward_pass_is_the_first_one_again",
        "cce-stored",
        "function:_TokenLoss",
        "if ctx.is_used_up:",
        "if False:",
    ),
)
