"""What the kernels of peers lack in Triton's interpreter. Where kernels are compiled, nothing here does anything.

fp32 and fp16 are computed there as written. bf16 is not: the interpreter multiplies bit patterns, our own kernels
emulate it (`ccelab.kernels.emulation`), and those of peers do not. So peers are not judged in bf16 there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy
import torch
from torch import Tensor

from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.properties.promises import Unsupported

# isort: split
import triton.language as tl  # after ccelab.kernels: it chooses between GPU and interpreter
from triton.language.extra import libdevice
from triton.runtime.interpreter import TensorHandle

GUARD = 256
"""Elements of memory behind a buffer: more than a block of rows."""


def refuse_bf16(*tensors: Tensor | None) -> None:
    """Raises Unsupported for bf16 that the interpreter would compute wrongly."""
    if IS_INTERPRETED and any(x is not None and x.dtype == torch.bfloat16 for x in tensors):
        raise Unsupported("Triton's interpreter computes bf16 wrongly, and only our own kernels make up for it")


def number(x: float | None) -> float | None:
    """A float that also has the method `to` that an argument of a compiled kernel has."""
    return _Number(x) if IS_INTERPRETED and x is not None else x


class _Number(float):
    def to(self, dtype: Any) -> float:
        return self


@functools.cache
def prepare() -> None:
    """numpy's tanh and log1p for those of libdevice, which is GPU code. To be called before a peer is imported."""
    if IS_INTERPRETED:
        libdevice.tanh, libdevice.log1p = _elementwise(numpy.tanh), _elementwise(numpy.log1p)


def _elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(x: Any) -> Any:
        return tl.core.tensor(TensorHandle(function(x.handle.data), x.handle.dtype), x.type)

    return apply


@contextmanager
def eager() -> Iterator[None]:
    """torch.compile leaves functions as they are: for the import of a peer that decorates helpers of a line or two."""
    if not IS_INTERPRETED:
        yield
        return

    def plain(function: Any = None, **options: Any) -> Any:
        return (lambda f: f) if function is None else function

    with mock.patch.object(torch, "compile", plain):
        yield


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """For the call of a peer: torch says that bf16 is supported, and memory behind a filled buffer is nobody's.

    The second because Apple's 25.9.3 writes up to a block of rows beyond one of its buffers: the memory that a GPU's
    allocator rounds up to hides it there, here it is the heap's, and the process would abort.
    """
    if not IS_INTERPRETED:
        yield
        return
    new_full = Tensor.new_full

    def guarded(self: Tensor, size: Any, fill: Any, **options: Any) -> Tensor:
        if len(size) != 1:
            return new_full(self, size, fill, **options)
        return new_full(self, (size[0] + GUARD,), fill, **options)[: size[0]]

    with (
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(Tensor, "new_full", guarded),
    ):
        yield
