"""Launches whose programs run in another order: the interpreter's stand-in for a race.

A GPU runs programs in any order; the interpreter runs them from the first to the last, so that a second run of a kernel
which depends on that order would repeat its bits all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ccelab.kernels.backend import IS_INTERPRETED


@contextmanager
def last_program_first() -> Iterator[None]:
    """Within it, the interpreter runs the programs of every launch from the last to the first.

    Raises:
        RuntimeError: kernels are compiled in this process, where nobody chooses the order.
    """
    if not IS_INTERPRETED:
        raise RuntimeError("the order of programs can only be chosen in Triton's interpreter")
    from triton.runtime.interpreter import interpreter_builder as builder

    in_order = builder.set_grid_idx

    def from_the_end(*place: int) -> None:
        in_order(*(size - 1 - i for size, i in zip(builder.grid_dim, place, strict=True)))

    builder.set_grid_idx = from_the_end
    try:
        yield
    finally:
        del builder.set_grid_idx  # the class has it
