"""`linear_cross_entropy`: the public call."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from . import capture, gradients, launch
from .backend import host_stage, require_device
from .check import autocast, check_arguments, check_keywords, check_schedule, check_tensors
from .exponentials import Exponentials
from .outside_compiler import outside_compiler
from .record import Record
from .schedule import Schedule, default_schedule
from .statistics import Statistics
from .target_check import TargetCheck
from .upstream import Upstream
from .variant import Variant


class _TokenLoss(torch.autograd.Function):
    """Per-row loss and lse of flat rows; the reduction around it is torch's, so upstream gradients arrive per row."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        classifier: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        ignore_index: int,
        softcap: float | None,
        variant: Variant,
        schedule: Schedule,
        stats: Statistics | None,
        even: bool,
    ) -> tuple[Tensor, Tensor]:
        call = launch.Call(embeddings, classifier, bias, targets, ignore_index, softcap, variant, schedule)
        room = launch.room_for(call, tuple(ctx.needs_input_grad[:3]))
        loss, lse, row_max, log_sum = launch.forward(call, room)
        ctx.set_materialize_grads(False)
        left = room.record or room.exponentials or ()
        ctx.save_for_backward(embeddings, classifier, bias, targets, row_max, log_sum, *left)
        ctx.stores, ctx.is_used_up = room.exponentials is not None, False
        ctx.is_captured = capture.is_captured(embeddings.device)
        ctx.uses_up = ctx.stores or (room.record is not None and variant.granularity == "segment")
        ctx.options = (ignore_index, softcap, variant, schedule)
        ctx.stats, ctx.even = stats, even
        return loss, lse

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        embeddings, classifier, bias, targets, row_max, log_sum, *left = ctx.saved_tensors
        call = launch.Call(embeddings, classifier, bias, targets, *ctx.options)
        wanted = tuple(ctx.needs_input_grad[:3])
        if dloss is None and dlse is None:
            return (None,) * 10
        capture.check_capture(embeddings.device, call.variant, ctx.stats, ctx.uses_up and not ctx.is_captured)
        with torch.no_grad():
            dloss, dlse = (None if x is None else x.resolve_neg() for x in (dloss, dlse))
            upstream = Upstream(dloss=dloss, dlse=dlse, even=ctx.even and dlse is None)
            room = launch.NO_ROOM
            if left:
                room = launch.Room(exponentials=Exponentials(*left)) if ctx.stores else launch.Room(Record(*left))
            if ctx.is_used_up:  # a graph that was retained
                launch.forward_partial(call, room)
            ctx.is_used_up = ctx.uses_up
            found: tuple[Tensor | None, ...] = gradients.backward(
                call, row_max, log_sum, room, upstream, wanted, ctx.stats
            )
        if torch.is_grad_enabled():  # create_graph=True
            inputs = (embeddings, classifier, bias, dloss, dlse)
            found = tuple(g if g is None else _Once.apply(g, *inputs) for g in found)  # type: ignore[no-untyped-call]
        return (*found, *(None,) * 7)


class _Once(torch.autograd.Function):
    """A gradient that says so when it is differentiated; torch's `once_differentiable` would let a penalty vanish."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "linear_cross_entropy has no second derivative: a penalty on its gradients needs torch's own"
        )


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    reduction: Literal["none", "mean", "sum"] = ...,
    ignore_index: int = ...,
    softcap: float | None = ...,
    shift: int = ...,
    return_lse: Literal[False] = ...,
    variant: str | Variant = ...,
    schedule: Schedule | None = ...,
    stats: Statistics | None = ...,
) -> Tensor: ...


@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = ...,
    reduction: Literal["none", "mean", "sum"] = ...,
    ignore_index: int = ...,
    softcap: float | None = ...,
    shift: int = ...,
    return_lse: Literal[True],
    variant: str | Variant = ...,
    schedule: Schedule | None = ...,
    stats: Statistics | None = ...,
) -> tuple[Tensor, Tensor]: ...


@outside_compiler
def linear_cross_entropy(
    input: Tensor,  # (..., D) bf16, fp16 or fp32
    linear_weight: Tensor,  # (V, D) same dtype
    target: Tensor,  # (...) integers in [0, V), or ignore_index
    *,
    linear_bias: Tensor | None = None,  # (V,) same dtype or fp32
    reduction: Literal["none", "mean", "sum"] = "mean",
    ignore_index: int = -100,
    softcap: float | None = None,
    shift: int = 0,
    return_lse: bool = False,
    variant: str | Variant = "cce",
    schedule: Schedule | None = None,
    stats: Statistics | None = None,
    **unknown: object,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of the logits ``input @ linear_weight.T + linear_bias``, without storing them.

    ``loss = logsumexp(logits) - logits[target]``; with `softcap`, logits become ``softcap * tanh(logits / softcap)``
    first. Parameter names are those of ``torch.nn.functional.linear_cross_entropy``.

    Args:
        reduction: "mean" divides by the number of targets that are not ignored. Where all are, mean and sum are 0 and
            so are the gradients (torch's mean is NaN).
        shift: pairs ``input[..., t, :]`` with ``target[..., t + shift]``; outputs per token have length T - shift.
        return_lse: also return the log-sum-exp, differentiable, in the shape of the (shifted) target.
        variant: a preset's name, a flag string such as ``"cce,accumulate=hilo,eps=2^-14"``, or a `Variant`.
        schedule: tiles and splits; None is `default_schedule`.
        stats: an empty `Statistics` that the backward pass fills.

    Returns:
        The loss in fp32, or (loss, lse). Loss and lse are 0 at ignored places, where any upstream gradient is ignored
        too. Gradients have their input's dtype and repeat bit for bit.

    Raises:
        ValueError: shapes, devices, options, the variant or a target value are illegal.
        TypeError: dtypes do not fit, or the keyword is one of torch's that is not supported yet.
        RuntimeError: the tensors are where the kernels of this process cannot run, or a CUDA graph captures what needs
            the host.

    In a CUDA graph, which nobody can stop, the loss is NaN where a target value is illegal; a backward pass of
    exponentials=stored may be run once for each forward pass. torch.compile leaves its graph for the call.

    Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025.
    """
    check_keywords(unknown)
    variant = Variant.of(variant)
    for name, value, kind in (("schedule", schedule, Schedule), ("stats", stats, Statistics)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a {kind.__name__} or None")
    check_tensors(input, linear_weight, target, linear_bias)
    require_device(input.device)
    if torch.is_autocast_enabled(input.device.type):
        input, linear_weight = autocast(input, "input"), autocast(linear_weight, "linear_weight")
        linear_bias = None if linear_bias is None else autocast(linear_bias, "linear_bias")
    check_arguments(input, linear_weight, target, linear_bias, reduction, ignore_index, softcap, shift)
    softcap = None if softcap is None else float(softcap)
    # Kernels read memory as it is, so a view that is negative by a flag alone is written out.
    input, linear_weight = input.resolve_neg(), linear_weight.resolve_neg()
    linear_bias = None if linear_bias is None else linear_bias.resolve_neg()
    shape = target[..., shift:].shape if target.ndim else target.shape
    targets = target.long()  # int64, so that any ignore_index compares
    if shift:  # torch's pad would take ignore_index through a double
        targets = torch.cat([targets[..., shift:], torch.full_like(targets[..., :shift], ignore_index)], -1)
    targets = targets.reshape(-1)
    checked = TargetCheck(targets, linear_weight.shape[0], ignore_index)
    embeddings = input.reshape(-1, input.shape[-1])
    schedule = schedule or default_schedule(embeddings.dtype, *embeddings.shape)
    check_schedule(variant, schedule)
    capture.check_capture(input.device, variant, stats)
    loss, lse = _TokenLoss.apply(  # type: ignore[no-untyped-call]
        embeddings,
        linear_weight,
        linear_bias,
        targets,
        ignore_index,
        softcap,
        variant,
        schedule,
        stats,
        reduction != "none",  # torch's sum hands every row the same gradient
    )
    if reduction != "none":
        loss = reduce_losses(loss, checked.count.clamp(min=1) if reduction == "mean" else 1)
    else:
        loss = _unshift(loss, target, shift).reshape(shape)
    loss = checked.passed(loss)
    return (loss, _unshift(lse, target, shift).reshape(shape)) if return_lse else loss


@host_stage
def reduce_losses(loss: Tensor, divisor: Tensor | float) -> Tensor:
    """The sum over `divisor`, rounded once: it is taken in float64, which costs nothing beside the logits."""
    return (loss.sum(dtype=torch.float64) / divisor).float()


def _unshift(rows: Tensor, target: Tensor, shift: int) -> Tensor:
    """Drops the last `shift` rows of each sequence, which have no target."""
    return rows.reshape(target.shape)[..., : target.shape[-1] - shift] if shift else rows
