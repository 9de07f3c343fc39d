"""`Launcher`: a kernel that remembers what Triton compiled for which kinds of arguments.

Triton works that out anew at every launch, which takes a host longer than some launches take a GPU: of 97 launches the
backward pass of cce,order=mean_prob kept a host busy for 10 to 19 ms, and an H200 for 13 (N=8192, V=256000, D=2304).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor


class Launcher:
    """Launches as Triton does: `kernel[(programs,)](*arguments, **constants_and_options)`. What was compiled is found
    again by all that it may depend on: of arguments their kind, and of constants and options everything."""

    def __init__(self, kernel: JITFunction[Any], of_any_value: Collection[str]) -> None:
        self._kernel = kernel
        self._by_value = tuple(name not in of_any_value for name in kernel.arg_names)
        self._compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int], *args: Any, **named: Any) -> None:
        key = driver.active.get_current_device(), *map(kind_of, args, self._by_value), *named.items()
        if (known := self._compiled.get(key)) is not None:
            compiled, constants = known
            compiled[(*grid, 1, 1)](*args, *constants)
        elif (compiled := self._kernel[grid](*args, **named)) is not None:
            assert not any(parameter.is_constexpr for parameter in self._kernel.params[: len(args)])
            # What is compiled takes the constants as well, in the order of the kernel's parameters, and no options.
            constants = tuple(named[name] for name in self._kernel.arg_names[len(args) :])
            self._compiled[key] = compiled, constants


def kind_of(arg: Any, by_value: bool = True) -> Any:
    """What Triton may compile an argument for: its type, the alignment of its address, and of a whole number its width
    and, `by_value`, whether it is 1 or a multiple of 16."""
    kind = type(arg)
    if kind is int:
        width = 32 if -(2**31) <= arg < 2**31 else 64
        return (width, arg == 1, arg % 16 == 0) if by_value else width
    if arg is None or kind is float or kind is bool:
        return kind
    if kind is TensorDescriptor:
        return kind, arg.base.dtype, *arg.block_shape
    if issubclass(kind, tuple):
        return kind, *map(kind_of, arg)
    return arg.dtype, arg.data_ptr() % 16 == 0
