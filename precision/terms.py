"""`Terms`: a bound as a sum of what each stage contributes to it, or as one number where nobody asks which."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

TOGETHER = "all stages"


class Terms:
    """Non-negative tensors by stage, of shapes that broadcast together. Without `by_stage` all share one key, so that
    a budget is one piece of code and costs no more than its total."""

    def __init__(self, by_stage: bool, parts: dict[str, Tensor] | None = None) -> None:
        self.by_stage = by_stage
        self.parts = {} if parts is None else parts

    def add(self, stage: str, bound: Tensor) -> Terms:
        """Adds to a stage's term, out of place; returns itself."""
        key = stage if self.by_stage else TOGETHER
        self.parts[key] = self.parts[key] + bound if key in self.parts else bound
        return self

    def merge(self, other: Terms) -> Terms:
        for stage, bound in other.items():
            self.add(stage, bound)
        return self

    def items(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.parts.items()

    @property
    def total(self) -> Tensor:
        return functools.reduce(torch.add, self.parts.values())

    def times(self, factor: Tensor | float) -> Terms:
        """Every term times `factor`; an infinite term times 0 is 0."""
        return Terms(self.by_stage, {stage: _product(bound, factor) for stage, bound in self.items()})

    def masked(self, keep: Tensor) -> Terms:
        """Every term where `keep`, 0 elsewhere."""
        return Terms(self.by_stage, {stage: torch.where(keep, bound, 0.0) for stage, bound in self.items()})

    def clamped(self, largest: float) -> Terms:
        return Terms(self.by_stage, {stage: bound.clamp(max=largest) for stage, bound in self.items()})

    def shared(self, total: Tensor) -> Terms:
        """`total` given to the stages in proportion to their terms: what they come to after a function that is not
        linear. Infinite terms share it evenly."""
        if len(self.parts) == 1:
            return Terms(self.by_stage, dict.fromkeys(self.parts, total))
        whole = self.total
        infinite = sum(bound.isinf().double() for bound in self.parts.values())
        shares = {}
        for stage, bound in self.items():
            share = torch.where(whole.isinf(), bound.isinf().double() / infinite, bound / whole)
            shares[stage] = _product(total, torch.where(whole == 0, 1 / len(self.parts), share))
        return Terms(self.by_stage, shares)


def _product(a: Tensor, b: Tensor | float) -> Tensor:
    product = a * b
    return torch.where((a == 0) | (torch.as_tensor(b, device=a.device) == 0), 0.0, product)
