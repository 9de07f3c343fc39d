"""The kernels, emulated stage by stage: each stage's rounding switched on or off, or its result replaced by the truth.

On Triton's interpreter an emulation with every stage on is the kernel bit for bit. On GPUs it follows a model of the
tensor core's adder (`adders`).
"""

from .adders import dot
from .emulation import Emulation, Piece, emulate
from .machine import INTERPRETER, Machine
from .modes import Mode, Modes, all_but, all_off, all_on, exact, only, up_to
from .order import ORDER, stages_of
from .own import own_machine
from .tensor_core import AMPERE, HOPPER, GpuMachine, fast, machine, with_own_functions, with_own_logits

__all__ = [
    "AMPERE",
    "HOPPER",
    "INTERPRETER",
    "ORDER",
    "Emulation",
    "GpuMachine",
    "Machine",
    "Mode",
    "Modes",
    "Piece",
    "all_but",
    "all_off",
    "all_on",
    "dot",
    "emulate",
    "exact",
    "fast",
    "machine",
    "only",
    "own_machine",
    "stages_of",
    "up_to",
    "with_own_functions",
    "with_own_logits",
]
