"""`Machine`: how elementary operations go where a stage is on. `INTERPRETER` does what Triton's interpreter does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccelab.kernels import Tiles, emulation, logits

from .arithmetic import divide

TANH_IS_1: float = logits.TANH_IS_1.value
LOG2_E = float(np.float32(1.4426950408889634))

# tanh's rational form, as in kernels/logits.py
_NUMERATOR = (1.3384118824649356e-08, 2.0635796859368456e-05, 3.497460671476601e-03, 1.338269137158877e-01, 1.0)
_DENOMINATOR = (7.790207445296303e-07, 3.2885189897149123e-04, 2.5884377229188578e-02, 4.6716012667581575e-01, 1.0)


class Machine:
    """fp32 operations. Operands of products are fp32 tensors that hold numbers of the storage dtype."""

    dtype = torch.float32

    def __init__(self, name: str) -> None:
        self.name = name

    def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
        """acc + a @ b for one step: (..., m, k), (..., k, n), (..., m, n). None is an accumulator of zeros."""
        raise NotImplementedError

    def exp2(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def log(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def top(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        raise NotImplementedError

    def sum_lanes(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def sum_rows(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def exp(self, x: Tensor) -> Tensor:
        return self.exp2(x * LOG2_E)

    def tanh(self, x: Tensor) -> Tensor:
        x = x.clamp(-TANH_IS_1, TANH_IS_1)
        square = (x * x).double()
        return (x * _polynomial(_NUMERATOR, square)) * self.reciprocal(_polynomial(_DENOMINATOR, square))

    def reciprocal(self, x: Tensor) -> Tensor:
        return divide(torch.ones_like(x), x)

    def logits(self, e: Tensor, c: Tensor, tiles: Tiles) -> Tensor:
        """(R, n) fp32 products of the rows of e (R, D) and c (n, D), both whole tiles in the storage dtype."""
        storage = e.dtype
        a, b = _padded(e, tiles).unflatten(0, (-1, 1, tiles.block_n)), _padded(c, tiles)
        b = b.unflatten(0, (-1, tiles.block_v))
        z: Tensor | None = None
        for d in range(0, a.shape[-1], tiles.block_d):
            span = slice(d, d + tiles.block_d)
            z = self.dot(a[..., span], b[..., span].mT, z, storage)
        assert z is not None
        return z.permute(0, 2, 1, 3).reshape(len(e), len(c))

    def product(self, g: Tensor, rows: Tensor, tiles: Tiles, before: Tensor | None = None) -> Tensor:
        """(..., m, D) fp32: `before` plus the product of a tile of residuals g (..., m, k) with rows (..., k, D), whose
        dtype is the storage dtype, in steps of BLOCK_D columns."""
        d = rows.shape[-1]
        b = _padded(rows, tiles)
        acc = None if before is None else torch.nn.functional.pad(before, (0, b.shape[-1] - d))
        spans = [slice(start, start + tiles.block_d) for start in range(0, b.shape[-1], tiles.block_d)]
        steps = [self.dot(g, b[..., s], None if acc is None else acc[..., s], rows.dtype) for s in spans]
        return (steps[0] if len(steps) == 1 else torch.cat(steps, -1))[..., :d]


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """In fp32, of float64 x: a multiplication and an addition are rounded once."""
    highest, *others = (float(np.float32(coefficient)) for coefficient in coefficients)
    total = torch.full_like(x, highest)
    for coefficient in others:
        total = (total * x + coefficient).float().double()
    return total.float()


def _padded(x: Tensor, tiles: Tiles) -> Tensor:
    """In fp32, the last dimension filled up with zeros to whole steps, as masked loads do."""
    return torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % tiles.block_d))


class _Interpreter(Machine):
    """numpy's operations on tiles of the interpreter's shapes: the same products, the same pairwise sums.

    `kernels/emulation.py` and triton/runtime/interpreter.py have what is repeated here: products are the former's, a
    sum is `np.sum`, a maximum over a dimension `np.nanmax`.
    """

    def dot(self, a: Tensor, b: Tensor, acc: Tensor | None, storage: torch.dtype) -> Tensor:
        product = emulation.product(a.numpy(), b.numpy(), split=storage == torch.float32)
        with np.errstate(all="ignore"):
            product += np.float32(0.0) if acc is None else acc.numpy()
        return torch.from_numpy(product)

    def exp2(self, x: Tensor) -> Tensor:
        return _numpy(np.exp2, x)

    def log(self, x: Tensor) -> Tensor:
        return _numpy(np.log, x)

    def top(self, x: Tensor) -> Tensor:
        return _numpy(np.nanmax, x, axis=-1)

    def sum_columns(self, x: Tensor, rows: int) -> Tensor:
        return _numpy(np.sum, _numpy(np.sum, x, axis=-1), axis=-1)

    def sum_lanes(self, x: Tensor) -> Tensor:
        return _numpy(np.sum, x, axis=-1)

    def sum_rows(self, x: Tensor) -> Tensor:
        return _numpy(np.sum, x, axis=-2)


def _numpy(function: Callable[..., Any], x: Tensor, **options: Any) -> Tensor:
    with np.errstate(all="ignore"):
        return torch.from_numpy(np.asarray(function(x.contiguous().numpy(), **options)))


INTERPRETER: Machine = _Interpreter("interpreter")
