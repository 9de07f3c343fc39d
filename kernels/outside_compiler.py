"""`outside_compiler`: a function that torch.compile calls as it is, between two graphs of what is around it.

Dynamo would trace the kernels' launches, and cannot. `torch.compiler.disable` as a decorator says the same, and imports
Dynamo for everyone: ccelab.kernels took twice as long to import.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def outside_compiler(f: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(f)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(f)(*args, **kwargs)  # type: ignore[no-any-return]
        return f(*args, **kwargs)

    return inner
