"""What executes the kernels of this process: a GPU, or Triton's interpreter (see `interpreter` for the choice)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from .launcher import Launcher
from .stack import with_room

IS_INTERPRETED: bool = isinstance(tl.sum, InterpretedFunction)
"""Whether this process interprets: what Triton's own library was built for, whatever the environment says now."""


def device_function(function: Callable[..., Any]) -> Any:
    """`triton.jit` for functions that kernels call.

    Triton's interpreter patches its library anew on every call of such a function, which takes longer than most tiles
    do. Inside a running kernel the library is patched already: here the rewritten function is called directly.
    """
    if not IS_INTERPRETED:
        return triton.jit(function)
    interpreted = InterpretedFunction(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return interpreted.rewrite()(*args, **kwargs)

    return call


TL_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
"""The storage dtypes, as kernels name them."""

STAGES: dict[str, str] = {}
"""Every place where the kernels round or drop: the function that does it, and its module. The error budgets follow
these (`ccelab.precision.stages`)."""


def stage(function: Callable[..., Any]) -> Any:
    """`device_function` for a helper that rounds or drops."""
    return device_function(host_stage(function))


def commits(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`device_function` for another helper that does what the stage `name` does."""
    assert name in STAGES, name
    return device_function


def host_stage(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function on the host that does."""
    STAGES[function.__name__] = function.__module__.rpartition(".")[2]
    return function


SIZES = (
    *("N", "V", "D", "samples", "ignore_index", "first", "tile", "block", "tiles", "blocks", "row_blocks"),
    *("tiles_per_split", "segments", "per_split", "whole_splits", "blocks_of_last_split", "at_once", "splits"),
    *("target_splits", "words", "width", "count", "rows", "members", "size", "parts", "spans", "owners", "room"),
)
"""Kernel arguments that Triton must not compile anew for where they are 1 or a multiple of 16.

It would also compute otherwise: for D = 1 it drops the loop over D, finds `dot(e, c, 0) + bias`, and hands the bias to
the tensor core, which truncates where an addition rounds (seen on an H100: losses a few ulp off those of D = 2 with a
column of zeros).
"""


def kernel(function: Callable[..., Any]) -> Any:
    """`triton.jit` for what is launched."""
    names = [name for name in SIZES if name in inspect.signature(function).parameters]
    launched: Any = triton.jit(function, do_not_specialize=names)
    if not IS_INTERPRETED:
        return Launcher(launched, of_any_value=names)
    launched.run = with_room(launched.run)
    return launched


def emulated_by(stand_in: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """As `device_function`, with `stand_in` in its place where the interpreter's arithmetic would be wrong."""
    return lambda function: wraps(function)(stand_in) if IS_INTERPRETED else triton.jit(function)


def require_device(device: torch.device) -> None:
    """Raises RuntimeError where the kernels of this process cannot reach tensors on `device`."""
    if device.type == ("cpu" if IS_INTERPRETED else "cuda"):
        return
    if IS_INTERPRETED:
        raise RuntimeError(
            f"the tensors are on {device}, but this process runs kernels in Triton's interpreter, on the CPU: "
            "move them to the CPU, or start the process without TRITON_INTERPRET=1 on a machine with a GPU"
        )
    if device.type == "cpu":
        raise RuntimeError(
            "the tensors are on the CPU, but this process compiles kernels for a GPU (triton was imported without "
            "TRITON_INTERPRET=1): set TRITON_INTERPRET=1 before starting Python, or import ccelab.kernels before triton"
        )
    raise RuntimeError(f"device {device} is not supported: use a CUDA GPU, or the CPU through Triton's interpreter")


def describe(device: torch.device) -> str:
    """What executes the kernels, for reports."""
    if IS_INTERPRETED:
        return f"Triton {triton.__version__} interpreter on the CPU"
    return f"{torch.cuda.get_device_name(device)}, Triton {triton.__version__}"
