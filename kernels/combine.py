# mypy: ignore-errors
"""Joins the splits of the forward pass: `Partial` holds what each found, one kernel makes loss and lse of it."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import kernel, stage
from .logsumexp import finite_or_zero
from .rounding import exp


class Partial(NamedTuple):
    """What K shards of the vocabulary know of N rows: enough to combine them, on one device or across several."""

    max: torch.Tensor  # (K, N) fp32, the largest logit of the shard
    sum: torch.Tensor  # (K, N) fp32, sum of exp(z - max)
    target_logit: torch.Tensor  # (K, N) fp32, 0 in shards that do not hold the target; (1, N) from Algorithm 1


@stage
def join_splits(Max, Sum, rows, mask, N, splits):
    """(m, log s) of whole rows: the largest logit, and the log of the sum of exp(z - m)."""
    m = tl.full(rows.shape, float("-inf"), tl.float32)
    for k in range(0, splits):
        m = tl.maximum(m, tl.load(Max + k * N + rows, mask=mask, other=0.0))
    shift = finite_or_zero(m)
    s = tl.full(rows.shape, 0.0, tl.float32)
    for k in range(0, splits):
        part = tl.load(Max + k * N + rows, mask=mask, other=0.0)
        s += tl.load(Sum + k * N + rows, mask=mask, other=1.0) * exp(part - shift)
    return m, tl.log(s)


@stage
def token_loss(m, log_s, z_target, VARIANT: tl.constexpr):
    """lse - z_target, and lse. A fused target never exceeds m, and s >= 1: then the loss is a sum of two terms >= 0."""
    lse = m + log_s
    if VARIANT.target == "fused":
        return (m - z_target) + log_s, lse
    else:
        return lse - z_target, lse


@kernel
def combine_kernel(
    Max,
    Sum,
    TargetLogit,
    Target,
    Loss,
    Lse,
    RowMax,
    LogSum,
    N,
    splits,
    target_splits,
    ignore_index,
    VARIANT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and lse (0 at ignored rows), and the pair (max, log sum) that the backward pass subtracts one by one."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < N
    m, log_s = join_splits(Max, Sum, rows, mask, N, splits)
    z_target = tl.full((BLOCK,), 0.0, tl.float32)
    for k in range(0, target_splits):
        z_target += tl.load(TargetLogit + k * N + rows, mask=mask, other=0.0)
    target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=mask, other=ignore_index)
    valid = target != ignore_index
    # An all -inf row has s = 0 with shift 0; a row with +inf has s = inf: m + log s is -inf and inf, as it should be.
    loss, lse = token_loss(m, log_s, z_target, VARIANT)
    tl.store(Loss + rows, tl.where(valid, loss, 0.0), mask=mask)
    tl.store(Lse + rows, tl.where(valid, lse, 0.0), mask=mask)
    tl.store(RowMax + rows, m, mask=mask)
    tl.store(LogSum + rows, log_s, mask=mask)
