"""Which stages round: one mode per stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .order import ORDER, upstream

Mode = Literal["on", "off", "exact"]
"""on: the kernel's fp32 operation on fp32 operands. off: the same function in float64, which drops nothing. exact: what
the stage would give if no stage before it had rounded."""

_PLACE = {stage: i for i, stage in enumerate(ORDER)}
_UPSTREAM = {stage: tuple(_PLACE[name] for name in upstream(stage)) for stage in ORDER}


@dataclass(frozen=True, slots=True)
class Modes:
    """One mode per stage, in the order of ORDER."""

    modes: tuple[Mode, ...]

    def __getitem__(self, stage: str) -> Mode:
        return self.modes[_PLACE[stage]]

    def key(self, stage: str) -> tuple[Mode, ...]:
        """What the result of `stage` depends on: runs that agree in it share that result."""
        return _key(self, stage)

    def but(self, stages: Iterable[str], mode: Mode) -> Modes:
        """The same with the given stages in another mode."""
        places = {_place(stage) for stage in stages}
        return Modes(tuple(mode if i in places else m for i, m in enumerate(self.modes)))

    @classmethod
    def of(cls, modes: Modes | Mapping[str, Mode] | Callable[[str], Mode]) -> Modes:
        """From a function of the stage, or from a mapping; a stage that the mapping leaves out is off.

        Raises:
            ValueError: the mapping names an unknown stage.
        """
        if isinstance(modes, Modes):
            return modes
        if callable(modes):
            return cls(tuple(modes(stage) for stage in ORDER))
        for stage in modes:
            _place(stage)
        return cls(tuple(modes.get(stage, "off") for stage in ORDER))


@lru_cache(maxsize=4096)
def _key(modes: Modes, stage: str) -> tuple[Mode, ...]:
    return tuple(modes.modes[i] for i in _UPSTREAM[stage])


def _place(stage: str) -> int:
    if stage not in _PLACE:
        raise ValueError(f"unknown stage {stage!r}; legal: {', '.join(ORDER)}")
    return _PLACE[stage]


def all_off() -> Modes:
    """No stage rounds: the truth, but for float64's own rounding."""
    return Modes.of(lambda stage: "off")


def all_on() -> Modes:
    """The kernel."""
    return Modes.of(lambda stage: "on")


def only(*stages: str) -> Modes:
    """These stages round, no other does."""
    return all_off().but(stages, "on")


def all_but(*stages: str) -> Modes:
    """Every stage rounds but these."""
    return all_on().but(stages, "off")


def up_to(stage: str) -> Modes:
    """`stage` and those before it in execution order round."""
    return all_off().but(ORDER[: _place(stage) + 1], "on")


def exact(*stages: str) -> Modes:
    """Every stage rounds but these, whose results are replaced by the truth."""
    return all_on().but(stages, "exact")
