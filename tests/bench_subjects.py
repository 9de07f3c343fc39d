"""Subjects for tests of `ccelab bench`: a right one, and one for every way to get no time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ccelab.precision.subjects import Unsupported


def right(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """Takes one option: the others are at their defaults, and must not reach it."""
    return F.cross_entropy((input @ linear_weight.T).float(), target, reduction=reduction)


def zeros(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    return (input.sum() + linear_weight.sum()).float() * 0


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient)


def zero_gradient(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The right loss, whose gradient of the classifier is left undone."""
    still: Tensor = _NoGradient.apply(linear_weight)  # type: ignore[no-untyped-call]
    return right(input, still, target, reduction=reduction)


class _EvenGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.mean().expand_as(gradient)


def even_gradient(input: Tensor, linear_weight: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """The right losses, whose upstream gradients are taken for one number."""
    loss: Tensor = _EvenGradient.apply(right(input, linear_weight, target, reduction=reduction))  # type: ignore[no-untyped-call]
    return loss


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
