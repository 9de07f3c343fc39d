"""`Chain`: a product whose terms come some at a time, and go into one accumulator so many at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .machine import Machine


class Chain:
    """Sums g (m, k) times rows (k, D) along k, over what has been added."""

    def __init__(self, machine: Machine | None, step: int) -> None:
        """`step` terms at a time in the machine's arithmetic, or in float64 where there is none."""
        self.machine, self.step = machine, step
        self.waiting: tuple[Tensor, Tensor] | None = None
        self.sum: Tensor | None = None

    def add(self, g: Tensor, rows: Tensor, kept: Tensor | None) -> Chain:
        """Only terms that are `kept` (k,); returns itself."""
        if kept is not None:
            places = kept.nonzero()[:, 0]
            g, rows = g[:, places], rows[places]
        if self.machine is None:
            product = g.double() @ rows.double()
            self.sum = product if self.sum is None else self.sum + product
            return self
        if self.waiting is not None:
            g, rows = torch.cat([self.waiting[0], g], 1), torch.cat([self.waiting[1], rows])
        whole = g.shape[1] - g.shape[1] % self.step
        for start in range(0, whole, self.step):
            self._take(g[:, start : start + self.step], rows[start : start + self.step])
        self.waiting = g[:, whole:], rows[whole:]
        return self

    def result(self) -> Tensor:
        """(m, D), after all terms."""
        if self.machine is not None and self.waiting is not None:
            g, rows = self.waiting
            missing = self.step - g.shape[1]
            if self.sum is None or g.shape[1]:
                pad = torch.nn.functional.pad
                self._take(pad(g, (0, missing)), pad(rows, (0, 0, 0, missing)))
            self.waiting = None
        assert self.sum is not None
        return self.sum

    def _take(self, g: Tensor, rows: Tensor) -> None:
        assert self.machine is not None
        self.sum = self.machine.dot(g.float(), rows.float(), self.sum, rows.dtype)
