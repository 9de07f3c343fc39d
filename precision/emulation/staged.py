"""Results of stages, computed once for all runs that agree on the modes of everything upstream of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from .arithmetic import FLOAT64, Arithmetic
from .machine import Machine
from .modes import Modes, all_off

OFF = all_off()
T = TypeVar("T")


class Memo:
    """What a stretch of the computation has found so far."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.found: dict[Any, Any] = {}

    def arithmetic(self, modes: Modes, stage: str) -> Arithmetic:
        return self.machine if modes[stage] == "on" else FLOAT64


def staged(stage: str) -> Callable[[Callable[[Any, Modes, Arithmetic], T]], Callable[[Any, Modes], T]]:
    """For a method of a `Memo` that computes `stage` with the arithmetic it is handed: its result is kept, and a stage
    that is to be exact is computed as if nothing were on."""

    def decorate(method: Callable[[Any, Modes, Arithmetic], T]) -> Callable[[Any, Modes], T]:
        @wraps(method)
        def call(self: Memo, modes: Modes) -> T:
            modes = resolved(modes, stage)
            key = (method.__name__, modes.key(stage))
            if key not in self.found:
                self.found[key] = method(self, modes, self.arithmetic(modes, stage))
            result: T = self.found[key]
            return result

        return call

    return decorate


def resolved(modes: Modes, stage: str) -> Modes:
    """The modes under which `stage` is computed: none is on where it is to be exact."""
    return OFF if modes[stage] == "exact" else modes
