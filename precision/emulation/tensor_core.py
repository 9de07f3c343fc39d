"""Machines for GPUs: a tensor core's adder for products of 16-bit numbers, and the order in which threads add a tile.

Exact exponentials and logarithms, rounded once, stand for ex2.approx and the GPU's log, which are within 2 ulp of them.
fp32 operands, which no tensor core multiplies here, go through torch's fp32 product: same precision, another order.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant
from ccelab.kernels.launch import Call
from ccelab.kernels.probe import own_function, own_logits

from .adders import ADDERS
from .machine import INTERPRETER, Machine


class _Dot(Protocol):
    def __call__(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor: ...


class GpuMachine(Machine):
    """A GPU with the given product of tiles."""

    def __init__(self, name: str, dot: _Dot, warps: int = 8) -> None:
        super().__init__(name)
        self._dot, self.warps = dot, warps

    def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
        return (_torch_dot if storage == torch.float32 else self._dot)(a, b, acc, storage)

    def exp2(self, x: Tensor) -> Tensor:
        result = torch.exp2(x.double())
        return torch.where(result < 2.0**-126, 0.0, result).float()

    def log(self, x: Tensor) -> Tensor:
        return torch.log(x.double()).float()

    def top(self, x: Tensor) -> Tensor:
        return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1)  # max.f32 drops NaN

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        """As a tile that a tensor core made lies in registers: columns 8j + 2q and 8j + 2q + 1 of a row belong to
        thread q of four, which adds its own from left to right. Threads then exchange with the second next, and
        the next.
        Warps beyond those that the rows need (16 rows each) take a share of the columns."""
        across = max(1, 16 * self.warps // rows)
        across = across if x.shape[-1] % (8 * across) == 0 else 1
        own = x.unflatten(-1, (across, -1, 4, 2)).transpose(-3, -2).flatten(-2)
        total = own[..., 0]
        for column in range(1, own.shape[-1]):
            total = total + own[..., column]
        total = total[..., :2] + total[..., 2:]
        total = total[..., 0] + total[..., 1]
        warp: Tensor = total[..., 0]
        for other in range(1, across):
            warp = warp + total[..., other]
        return warp

    def sum_rows(self, x: Tensor) -> Tensor:
        return x.sum(-2)


def _torch_dot(a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
    product = a @ b
    return product if acc is None else product.add_(acc)


HOPPER = GpuMachine("hopper", ADDERS["hopper"].dot)
AMPERE = GpuMachine("ampere", ADDERS["ampere"].dot)  # published, and not verified on a GPU here


def fast() -> GpuMachine:
    """A GPU whose products are torch's in fp32, for shapes where integers take too long.

    Raises:
        RuntimeError: torch may multiply fp32 in TF32, which has 11 digits.
    """
    if torch.backends.cuda.matmul.allow_tf32:
        raise RuntimeError("torch multiplies fp32 in TF32 here: set torch.backends.cuda.matmul.allow_tf32 = False")
    return GpuMachine("gpu, fp32 products", _torch_dot)


def with_own_functions(base: GpuMachine) -> GpuMachine:
    """`base`, but for exp2 and log, which the GPU at hand computes: what no model describes is then measured."""
    return _OwnFunctions(f"{base.name}, GPU's own exp2 and log", base.dot, base.warps)


class _OwnFunctions(GpuMachine):
    def exp2(self, x: Tensor) -> Tensor:
        return own_function("exp2", x)

    def log(self, x: Tensor) -> Tensor:
        return own_function("log", x)


def with_own_logits(base: GpuMachine) -> GpuMachine:
    """`base`, but for its logits, which a kernel computes on the GPU at hand (`kernels.probe`): the stages dot_logits
    and recompute_logits are then measured, not emulated, and the name says so."""
    return _OwnLogits(base)


class _OwnLogits(GpuMachine):
    def __init__(self, base: GpuMachine) -> None:
        super().__init__(f"{base.name}, kernel's own logits", base.dot, base.warps)
        self.exp2, self.log = base.exp2, base.log  # type: ignore[method-assign]

    def logits(self, e: Tensor, c: Tensor, tiles: Tiles) -> Tensor:
        schedule = Schedule(forward=tiles, backward=tiles)
        targets = torch.zeros(len(e), dtype=torch.int64, device=e.device)
        call = Call(e, c, None, targets, -100, None, Variant(), schedule)
        return own_logits(call, 0, len(c))


def machine(name: str) -> Machine:
    """The machine of that name: "interpreter", "hopper" or "ampere".

    Raises:
        ValueError: there is none.
    """
    known: dict[str, Machine] = {m.name: m for m in (INTERPRETER, HOPPER, AMPERE)}
    if name not in known:
        raise ValueError(f"no machine {name!r}; legal: {', '.join(known)}")
    return known[name]
