"""Machines for GPUs: a tensor core's adder for products of 16-bit numbers, and the order in which threads add a tile.

That order and the logarithm were read from what Triton 3.6.0 compiles for sm_90. Exact exponentials, rounded once,
stand for ex2.approx, whose digits no source gives; it is within 2 ulp of them. fp32 operands, which no tensor core
multiplies here, go through torch's fp32 product: same precision, another order.
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
        return gpu_log(x)

    def top(self, x: Tensor) -> Tensor:
        return x.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(-1)  # max.f32 drops NaN

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        """As a tile that a tensor core made lies in registers: columns 8j + 2q and 8j + 2q + 1 of a row belong to
        thread q of four, which adds its own from left to right. Threads then exchange with the second next, and
        the next.
        Warps beyond those that the rows need (16 rows each) take a share of the columns."""
        across = max(1, 16 * self.warps // (rows * x.shape[-2]))
        across = across if x.shape[-1] % (8 * across) == 0 else 1
        own = x.unflatten(-1, (across, -1, 4, 2)).transpose(-3, -2).flatten(-2)
        return _left_to_right(_halves(_halves(_left_to_right(own), -1), -1))

    def sum_lanes(self, x: Tensor) -> Tensor:
        """Eight neighbouring columns belong to one thread, as for rows that can be loaded 16 bytes at a time. Where
        they cannot (D is no multiple of 8), the GPU's order is another."""
        return x.sum(-1) if x.shape[-1] % 8 else _halves(_left_to_right(x.unflatten(-1, (-1, 8))), -1)

    def sum_rows(self, x: Tensor) -> Tensor:
        """A thread holds rows r and r + 8 of its warp's 16; then threads exchange, the farthest first, and warps."""
        rows = x.shape[-2]
        if rows % 16 or rows > 16 * self.warps:
            return x.sum(-2)
        own = x.unflatten(-2, (-1, 2, 8))
        return _halves(_halves((own[..., 0, :, :] + own[..., 1, :, :]), -2), -2)


def _left_to_right(x: Tensor) -> Tensor:
    """The sum over the last dimension, one after the other."""
    total: Tensor = x[..., 0]
    for column in range(1, x.shape[-1]):
        total = total + x[..., column]
    return total


def _halves(x: Tensor, dim: int) -> Tensor:
    """The sum over `dim`, a power of two long: the second half onto the first, until one is left."""
    while x.shape[dim] > 1:
        first, second = x.chunk(2, dim)
        x = first + second
    return x.squeeze(dim)


_LOG = (0xBE055027, 0x3E1039F6, 0xBDF8CDCC, 0x3E0F2955, 0xBE2AD8B9, 0x3E4CED0B, 0xBE7FFF22, 0x3EAAAA78, 0xBF000000)
"""Coefficients of libdevice's logf, the highest power first, by their patterns: as in the PTX of `tl.log`."""
_LN_2, _TWO_TO_MINUS_23 = 0x3F317218, 0x34000000


def gpu_log(x: Tensor) -> Tensor:
    """log of fp32 x, operation by operation as a GPU takes it (libdevice's __nv_logf): x = m 2^e with m in [2/3, 4/3),
    a polynomial in m - 1 by fused multiply-adds."""
    small = x < 2.0**-126
    scaled = torch.where(small, x * 2.0**23, x)
    bits = scaled.view(torch.int32)
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    r = (bits - exponent).view(torch.float32) - 1.0
    start = torch.where(small, -23.0, 0.0)
    e = fma(exponent.float(), _from_bits(_TWO_TO_MINUS_23, x), start)
    poly = _from_bits(_LOG[0], x).expand_as(x)
    for pattern in _LOG[1:]:
        poly = fma(poly, r, _from_bits(pattern, x))
    found = fma(e, _from_bits(_LN_2, x), fma(r * poly, r, r))
    # Zero, negative numbers, infinity and NaN take a way of their own.
    usual = (x > 0) & x.isfinite()
    return torch.where(usual, found, torch.log(x))


def _from_bits(pattern: int, like: Tensor) -> Tensor:
    signed = pattern - 2**32 if pattern >= 2**31 else pattern
    return torch.tensor(signed, dtype=torch.int32, device=like.device).view(torch.float32)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a b + c in fp32, rounded once. float64 holds the product; its sum with c is rounded to odd, which makes the
    second rounding harmless (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008)."""
    product, c = torch.broadcast_tensors(a.double() * b.double(), c.double())
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    bits = total.view(torch.int64)
    away = torch.where((lost > 0) == (total > 0), 1, -1)
    odd = torch.where((lost != 0) & (bits & 1 == 0) & total.isfinite(), bits + away, bits)
    return odd.view(torch.float64).float()


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
    """`base`, but for exp2, log and reciprocals, which the GPU at hand computes: what no model describes is then
    measured."""
    return _OwnFunctions(f"{base.name}, GPU's own exp2 and log", base.dot, base.warps)


class _OwnFunctions(GpuMachine):
    def exp2(self, x: Tensor) -> Tensor:
        return own_function("exp2", x)

    def log(self, x: Tensor) -> Tensor:
        return own_function("log", x)

    def reciprocal(self, x: Tensor) -> Tensor:
        return own_function("reciprocal", x)


def with_own_logits(base: GpuMachine) -> GpuMachine:
    """`base`, but for its logits, which a kernel computes on the GPU at hand (`kernels.probe`): the stages dot_logits
    and recompute_logits are then measured, not emulated, and the name says so."""
    return _OwnLogits(base)


class _OwnLogits(GpuMachine):
    def __init__(self, base: GpuMachine) -> None:
        super().__init__(f"{base.name}, kernel's own logits", base.dot, base.warps)
        self.exp2, self.log, self.reciprocal = base.exp2, base.log, base.reciprocal  # type: ignore[method-assign]

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
