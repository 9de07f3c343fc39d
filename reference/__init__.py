"""What is true: a problem, its solution, and the oracles that lead from one to the other."""

from __future__ import annotations

from collections.abc import Callable

from .bounds import double_error
from .double import ResidualChunk, double, forward_double, residual_chunks
from .exact import exact, settle
from .problem import Problem, Reduction, Solution

Oracle = Callable[[Problem], Solution]

ORACLES: dict[str, Oracle] = {"exact": exact, "double": double}

__all__ = [
    "ORACLES",
    "Oracle",
    "Problem",
    "Reduction",
    "ResidualChunk",
    "Solution",
    "double",
    "double_error",
    "exact",
    "forward_double",
    "residual_chunks",
    "settle",
]
