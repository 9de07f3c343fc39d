"""Subjects for tests of `ccelab bench`: a right one, and one for every way to get no time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ccelab.precision.subjects import Unsupported


def right(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Takes one option: the others are at their defaults, and must not reach it."""
    return F.cross_entropy((input @ linear_weight.T).float(), target, reduction=reduction)


def zeros(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return (input.sum() + linear_weight.sum()).float() * 0


def _with(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """x, whose gradient is changed on its way back."""
    same = x.view_as(x)
    same.register_hook(change)
    return same


def zero_gradient(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The right loss, whose gradient of the classifier is left undone."""
    return right(input, _with(linear_weight, torch.zeros_like), target, reduction=reduction)


def even_gradient(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The right losses, whose upstream gradients are taken for one number."""
    return _with(right(input, linear_weight, target, reduction=reduction), lambda g: g.mean().expand_as(g))


def not_finite(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return right(input, linear_weight, target, reduction=reduction) * torch.nan


def per_token(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return right(input, linear_weight, target, reduction="none")


def mean(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return right(input, linear_weight, target)


def raises(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    raise KeyError("broken\nin a way that takes two lines")


def unsupported(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    raise Unsupported("it takes nothing")


def too_large(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24.00 GiB")


class LateFailure:
    """Right the first time, which is the check; it fails when it is timed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(input, linear_weight, target, reduction=reduction)


late_failure = LateFailure()
number = 7
