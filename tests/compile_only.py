"""Compiles kernels for a GPU architecture on a machine without one: `python compile_only.py ARCH CASES VARIANT...`.

CASES are names from `CASES`, joined by commas.

A process of its own, because one that interprets cannot compile. The real launch code runs, on CPU tensors, with a
driver that names a target and owns no device, and what is compiled notes its arguments: three times, and each time they
must be those that Triton itself would hand over. Prints one line per variant and case.
"""

import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.tools.tensor_descriptor import TensorDescriptor

from ccelab.kernels import Statistics, Variant, default_schedule, gradients, launch
from ccelab.kernels.arriving import Arriving
from ccelab.kernels.launcher import Launcher
from ccelab.kernels.upstream import Upstream

ARCH, NAMES, VARIANTS = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
CASES = {  # dtype, D, every option of the call
    "options": (torch.bfloat16, 128, True),  # tensor descriptors
    "plain": (torch.bfloat16, 40, False),
    "pointers": (torch.float16, 37, True),  # rows that no descriptor can load
    "fp32": (torch.float32, 128, False),
}


launched: list[tuple[Any, ...]] = []


class Recorded:
    """In place of a compiled kernel: notes how it was launched."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.metadata = metadata

    def __call__(self, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        _packed, _metadata, _enter, _exit, *args = rest
        launched.append((self.metadata.name, self.metadata.hash, (x, y, z), tuple(map(described, args))))


def described(arg: Any) -> Any:
    """An argument but for its address."""
    if isinstance(arg, torch.Tensor):
        return arg.dtype, arg.shape, arg.stride()
    if isinstance(arg, TensorDescriptor):
        return described(arg.base), arg.shape, arg.strides, arg.block_shape
    return tuple(map(described, arg)) if isinstance(arg, tuple) else arg


class CompileOnlyDriver:
    """Enough of a driver for launches of what is compiled, which compute nothing."""

    launcher_cls = Recorded
    utils = SimpleNamespace(
        load_binary=lambda *args: (None, 0, 0, 0, 1024),
        get_device_properties=lambda device: {"max_shared_mem": 2**30},
    )

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def launches(text: str, dtype: torch.dtype, d: int, optional: bool) -> list[tuple[Any, ...]]:
    """Of both passes."""
    launched.clear()
    embeddings, classifier = torch.zeros(256, d, dtype=dtype), torch.zeros(600, d, dtype=dtype)
    call = launch.Call(
        embeddings,
        classifier,
        torch.zeros(600, dtype=dtype) if optional else None,
        torch.zeros(256, dtype=torch.int64),
        -100,
        30.0 if optional else None,
        Variant.parse(text),
        replace(default_schedule(dtype, 256, d), look_ahead=0, group=1),
    )
    room = launch.room_for(call, (True, True, optional))
    _, lse, row_max, log_sum = launch.forward(call, room)
    upstream = Upstream(dloss=lse, dlse=lse if optional else None, even=not optional)
    stats = Statistics() if optional else None
    gradients.backward(call, row_max, log_sum, room, upstream, (True, True, optional), stats)
    return list(launched)


def any_kernel(X, Pair, stride, size, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0) * stride + tl.arange(0, BLOCK)
    x = tl.load(X + place, mask=place < size, other=0)
    if Pair.scale is not None:
        x = x * Pair.scale
    tl.store(Pair.x + place, x if scale is None else x * scale, mask=place < size)


class Pair(NamedTuple):
    x: torch.Tensor
    scale: float | None


def of_every_kind(kernel: Any) -> list[tuple[Any, ...]]:
    """Launches whose arguments differ in one thing each that Triton may compile for."""
    launched.clear()
    x = torch.zeros(64)
    for of in (x, x[1:], x.to(torch.float16), x.to(torch.float16)[8:]):
        for out in (Pair(x, None), Pair(x[1:], None), Pair(x, 2.0)):
            for stride, size in ((1, 1), (16, 1), (7, 16), (2**33, 7)):
                for scale, block in ((None, 16), (0.5, 16), (0.5, 32)):
                    kernel[(1,)](of, out, stride, size, scale, BLOCK=block)
    return list(launched)


def main() -> None:
    triton.runtime.driver.set_active(CompileOnlyDriver())
    compiled = triton.jit(any_kernel, do_not_specialize=["size"])
    launcher = Launcher(compiled, of_any_value=["size"])
    assert of_every_kind(launcher) == of_every_kind(launcher) == of_every_kind(compiled)
    torch.cuda.get_device_capability = lambda device=None: divmod(ARCH, 10)
    # Nothing is computed: what is allocated is what would be found, and all segments are live.
    for name in ("empty", "zeros"):
        setattr(torch, name, torch.ones)
    counting: Any = Arriving
    counting.wait = lambda self: self._copy.cumsum(-1) - 1  # every owner has one
    launchers: Any = Launcher
    remembering = launchers.__getitem__
    by_triton: Any = lambda self, grid: self._kernel[grid]  # noqa: E731
    for text in VARIANTS:
        for name in NAMES:
            first, again = launches(text, *CASES[name]), launches(text, *CASES[name])
            launchers.__getitem__ = by_triton
            right = launches(text, *CASES[name])
            launchers.__getitem__ = remembering
            for what in (first, again):
                assert what == right, (text, name, [x for x, y in zip(what, right, strict=True) if x != y])
            print(text, name, *sorted({kernel for kernel, *_ in first}))


if __name__ == "__main__":
    main()
