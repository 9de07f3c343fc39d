"""The machine that this process runs our kernels on."""

from __future__ import annotations

from ccelab.kernels.backend import IS_INTERPRETED

from .machine import INTERPRETER, Machine
from .tensor_core import fast, with_own_functions, with_own_logits


def own_machine() -> Machine:
    """The interpreter, bit for bit; on a GPU a machine whose logits, exp2 and log are the GPU's own."""
    return INTERPRETER if IS_INTERPRETED else with_own_logits(with_own_functions(fast()))
