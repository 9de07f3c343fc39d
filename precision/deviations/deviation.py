"""`Deviation`: one difference from the plain operation, or from hardware, that is known and stays until somebody ends
it. After the registries of known deviations in XLA's tests, which fail when an entry no longer deviates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """What it should be, what it is, and why it is left so."""

    name: str
    truth: str  # what the operation, or the hardware, gives
    ours: str  # what is given in its place
    reason: str
    source: str  # where it is decided, documented or measured
    check: Callable[
        [], bool
    ]  # whether it still deviates: tried on the CPU, or read from the committed file that shows it
