"""A problem laid out as the kernels see it: whole tiles, zeros beyond its edges."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Tiles, Variant, accumulate
from ccelab.reference import Problem

from ..stages import scales_rows, stores
from .machine import Machine

HEADROOM: float = accumulate.HEADROOM.value


class Factor(NamedTuple):
    """Of a product, the matrix that is not of residuals."""

    storage: Tensor
    double: Tensor


class Setup:
    """What all stages share. R is N filled up to whole row blocks of one pass; ignored rows read as E = 0.

    Raises:
        ValueError: the kernels have no such option (class weights, label smoothing), or the schedule contracts a*b+c,
            which is not emulated.
    """

    def __init__(self, problem: Problem, variant: Variant, schedule: Schedule, machine: Machine) -> None:
        if problem.target_weight is not None or problem.smoothing:
            raise ValueError("the kernels know neither target_weight nor smoothing: nothing to emulate")
        if schedule.fp_fusion and machine.name != "interpreter":
            raise ValueError("a schedule with fp_fusion is not emulated: which a*b+c the compiler contracts is unknown")
        self.problem, self.variant, self.schedule, self.machine = problem, variant, schedule, machine
        self.n, self.v, self.d = problem.shape
        self.dtype = problem.embeddings.dtype
        self.device = problem.embeddings.device
        eps = variant.threshold(torch.finfo(self.dtype).eps)
        self.eps = torch.tensor(eps, dtype=torch.float32, device=self.device)
        self.sum_dtype = torch.float32 if variant.accumulate == "fp32" else self.dtype

    def merged(self, output: str) -> int:
        """Tiles per increment of "e" or "c"."""
        return self.schedule.merged(output, self.variant, stores=self.stores)

    @property
    def stores(self) -> bool:
        """Whether the backward pass takes exponentials that the forward pass stored."""
        return stores(self.variant, self.problem)

    @property
    def scales_rows(self) -> bool:
        """Whether dC takes rows of E at their scales, and residuals without."""
        return scales_rows(self.variant, self.problem)

    @property
    def backward_tiles(self) -> Tiles:
        return self.schedule.row_segments if self.variant.granularity == "segment" else self.schedule.backward

    def rows(self, tiles: Tiles) -> Rows:
        return Rows(self, -(-self.n // tiles.block_n) * tiles.block_n)

    def columns(self, ids: Tensor) -> Columns:
        return Columns(self, ids)


class Rows:
    """The rows of E in whole row blocks."""

    def __init__(self, setup: Setup, padded: int) -> None:
        problem, missing = setup.problem, padded - setup.n
        self.valid = torch.nn.functional.pad(problem.valid, (0, missing))[:, None]  # (R, 1)
        clean = torch.where(problem.valid[:, None], problem.embeddings.detach(), 0.0)
        self.storage = torch.nn.functional.pad(clean, (0, 0, 0, missing))  # (R, D)
        self.double = self.storage.double()
        target = torch.where(problem.valid, problem.targets.long(), -1)
        self.target = torch.nn.functional.pad(target, (0, missing), value=-1)[:, None]  # (R, 1); -1: none

    def fill(self, x: Tensor) -> Tensor:
        """(N,) as (R, 1), zeros beyond."""
        return torch.nn.functional.pad(x, (0, len(self.valid) - len(x)))[:, None]


class Columns:
    """Some rows of C; `ids` (n,) below 0 or beyond V mean none."""

    def __init__(self, setup: Setup, ids: Tensor) -> None:
        self.ids = ids
        self.inside = (ids >= 0) & (ids < setup.v)  # (n,)
        here = torch.where(self.inside, ids, 0)
        self.storage = torch.where(self.inside[:, None], setup.problem.classifier.detach()[here], 0.0)  # (n, D)
        bias = setup.problem.bias
        self.bias = None if bias is None else torch.where(self.inside, bias.detach()[here].double(), 0.0)  # (n,)
        self._double: Tensor | None = None

    @property
    def double(self) -> Tensor:
        """(n, D) float64."""
        if self._double is None:
            self._double = self.storage.double()
        return self._double
