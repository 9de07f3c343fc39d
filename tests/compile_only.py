"""Compiles kernels for a GPU architecture on a machine without one: `python compile_only.py ARCH CASES VARIANT...`.

CASES are names from `CASES`, joined by commas.

A process of its own, because one that interprets cannot compile. The real launch code runs, on CPU tensors, with a
driver that names a target and owns no device, and every launch stops after compiling. Prints one line per variant.
"""

import os
import sys
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ccelab.kernels import Variant, default_schedule

ARCH, NAMES, VARIANTS = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
CASES = {  # dtype, D, every option of the call
    "options": (torch.bfloat16, 128, True),  # tensor descriptors
    "plain": (torch.bfloat16, 40, False),
    "pointers": (torch.float16, 37, True),  # rows that no descriptor can load
    "fp32": (torch.float32, 128, False),
}


class CompileOnlyDriver:
    """Enough of a driver for a launch that stops after compiling."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty


def main() -> None:
    triton.runtime.driver.set_active(CompileOnlyDriver())
    torch.cuda.get_device_capability = lambda device=None: divmod(ARCH, 10)
    compiled = []

    def compile_only(self: Any, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            compiled.append(self.run(*args, grid=grid, warmup=True, **kwargs))

        return launch

    JITFunction.__getitem__ = compile_only
    # Nothing is computed: what is allocated is what would be found, and all segments are live.
    for name in ("empty", "zeros"):
        setattr(torch, name, torch.ones)
    from ccelab.kernels import Statistics, gradients, launch
    from ccelab.kernels.upstream import Upstream

    for text in VARIANTS:
        for name in NAMES:
            dtype, d, optional = CASES[name]
            compiled.clear()
            embeddings, classifier = torch.zeros(256, d, dtype=dtype), torch.zeros(512, d, dtype=dtype)
            targets = torch.zeros(256, dtype=torch.int64)
            bias = torch.zeros(512, dtype=dtype) if optional else None
            call = launch.Call(
                embeddings,
                classifier,
                bias,
                targets,
                -100,
                30.0 if optional else None,
                Variant.parse(text),
                replace(default_schedule(dtype, 256, d), look_ahead=0),
            )
            room = launch.room_for(call, (True, True, optional))
            _, lse, row_max, log_sum = launch.forward(call, room)
            upstream = Upstream(dloss=lse, dlse=lse if optional else None, even=not optional)
            stats = Statistics() if optional else None
            gradients.backward(call, row_max, log_sum, room, upstream, (True, True, optional), stats)
            print(text, name, *sorted({k.metadata.name for k in compiled}))


if __name__ == "__main__":
    main()
