"""Subjects with one mistake each, made of the right one: what the laws must not let pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import linear_cross_entropy
from ccelab.properties.promises import OURS


class _Changed(torch.autograd.Function):
    """The identity, whose gradient is changed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def wrong(
    *,
    de: Callable[[Tensor], Tensor] | None = None,
    dc: Callable[[Tensor], Tensor] | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Callable[..., Any]:
    """linear_cross_entropy with its gradients or its loss changed."""

    def subject(input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Any:
        if de is not None and input.requires_grad:
            input = _Changed.apply(input, de)  # type: ignore[no-untyped-call]
        if dc is not None and linear_weight.requires_grad:
            linear_weight = _Changed.apply(linear_weight, dc)  # type: ignore[no-untyped-call]
        result = linear_cross_entropy(input, linear_weight, target, **options)
        if loss is None:
            return result
        return (loss(result[0]), result[1]) if isinstance(result, tuple) else loss(result)

    subject.promises = OURS  # type: ignore[attr-defined]
    return subject


def _last_row_lost(x: Tensor) -> Tensor:
    return torch.where(torch.arange(len(x), device=x.device)[:, None] == len(x) - 1, 0.0, x).to(x.dtype)


zero_de = wrong(de=torch.zeros_like)
zero_dc = wrong(dc=torch.zeros_like)
flipped_de = wrong(de=torch.neg)
flipped_dc = wrong(dc=torch.neg)
scaled_de = wrong(de=lambda x: x * 1.03)
scaled_dc = wrong(dc=lambda x: x * 1.03)
row_of_dc_lost = wrong(dc=_last_row_lost)
loss_off = wrong(loss=lambda x: x + 1e-3)
loss_in_bf16 = wrong(loss=lambda x: x.bfloat16().float())
loss_negative = wrong(loss=lambda x: x - 2.0**-20)
EVERY = (
    "zero_de",
    "zero_dc",
    "flipped_de",
    "flipped_dc",
    "scaled_de",
    "scaled_dc",
    "row_of_dc_lost",
    "loss_off",
    "loss_in_bf16",
    "loss_negative",
)
