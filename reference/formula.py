"""The formula of the loss and of its residual, written once.

The functions below run unchanged on float64 tensors and on numpy arrays of mpmath numbers: a `Context` supplies the
few functions that are not operators. Rows have the shape (N, 1), classes are the last dimension, and sums over classes
may have been taken piecewise. Nothing is computed by subtracting nearly equal numbers that were rounded before:

* with the anchor a (the first class of maximal logit m) and ``rest = sum_{v != a} exp(z_v - m)``, the loss is
  ``(m - z_t) + log1p(rest)``: two non-negative terms, accurate also when the target has probability 1 - 1e-20;
* the residual at the target is ``-sum_{v != t} S_v`` and not ``S_t - 1``;
* the derivative of the softcap is ``4 e / (1 + e)^2`` with ``e = exp(-2 |y|)`` and not ``1 - tanh(y)^2``.

Special values are torch's. NaN poisons its row. A row of -inf has lse = -inf, loss and gradients NaN. A logit +inf
gives lse = +inf, loss = +inf (NaN where it is the target's) and NaN gradients. A class at -inf has softmax exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Array = Any  # a float64 tensor or a numpy array of mpf
Scalar = Any  # a float, or an mpf where the arrays hold mpf: Python would round 1 - smoothing to float64


@dataclass(frozen=True, kw_only=True)
class Context:
    """An arithmetic: the functions that the formula needs beside the operators."""

    exp: Callable[[Array], Array]
    log1p: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
    where: Callable[[Array, Array, Array], Array]
    isfinite: Callable[[Array], Array]
    total: Callable[[Array], Array]  # the sum over the last dimension, which is kept


FLOAT64 = Context(
    exp=torch.exp,
    log1p=torch.log1p,
    tanh=torch.tanh,
    where=torch.where,
    isfinite=torch.isfinite,
    total=lambda x: x.sum(dim=-1, keepdim=True),
)


def multiprecision(mp: Any) -> Context:
    """Over numpy arrays of `mp`'s numbers, at the precision of that mpmath context. A sum rounds once."""

    def total(x: Array) -> Array:
        sums = [mp.fsum(row) for row in x.reshape(-1, x.shape[-1])]
        return np.array([*sums, None], dtype=object)[:-1].reshape(*x.shape[:-1], 1)

    finite = np.frompyfunc(mp.isfinite, 1, 1)
    return Context(
        exp=np.frompyfunc(mp.exp, 1, 1),
        log1p=np.frompyfunc(mp.log1p, 1, 1),
        tanh=np.frompyfunc(mp.tanh, 1, 1),
        where=np.where,
        isfinite=lambda x: finite(x).astype(bool),
        total=total,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """What the formula keeps of each row of logits; every field is (N, 1)."""

    maximum: Array
    anchor: Array  # index of the first class that attains the maximum
    rest: Array  # sum of exp(z_v - maximum) over the classes other than the anchor
    target: Array  # index
    target_logit: Array
    gaps: Array  # sum of (maximum - z_v) over all classes; only smoothing looks at it


def cap(ctx: Context, raw: Array, softcap: Scalar | None) -> Array:
    return raw if softcap is None else ctx.tanh(raw / softcap) * softcap


def cap_derivative(ctx: Context, raw: Array, softcap: Scalar | None) -> Array:
    """d cap / d raw = sech(raw / softcap)^2."""
    if softcap is None:
        return 1.0
    e = ctx.exp(abs(raw / softcap) * -2)
    return e * 4 / ((e + 1) * (e + 1))


def log_total(ctx: Context, rows: Rows) -> Array:
    """lse - maximum; 0 beside an infinite maximum."""
    return ctx.where(ctx.isfinite(rows.maximum), ctx.log1p(rows.rest), 0.0)


def lse(ctx: Context, rows: Rows) -> Array:
    return ctx.where(ctx.isfinite(rows.maximum), rows.maximum + log_total(ctx, rows), rows.maximum)


def cross_entropy(ctx: Context, rows: Rows, smoothing: Scalar, vocabulary: int) -> Array:
    """lse - sum_v q_v z_v, not yet weighted: (N, 1)."""
    at_anchor = (rows.target == rows.anchor) & ctx.isfinite(rows.maximum)
    gap = ctx.where(at_anchor, 0.0, rows.maximum - rows.target_logit)
    if smoothing:  # with smoothing = 0 a masked class must not contribute 0 * inf
        gap = gap * (1 - smoothing) + rows.gaps / vocabulary * smoothing
    return gap + log_total(ctx, rows)


def total(ctx: Context, rows: Rows) -> Array:
    """sum_v exp(z_v - maximum), at least 1; NaN beside an infinite maximum, and with it the gradients of the row."""
    return ctx.where(ctx.isfinite(rows.maximum), rows.rest + 1, rows.maximum - rows.maximum)


def softmax(ctx: Context, logits: Array, rows: Rows) -> Array:
    """(N, any number of classes)."""
    return ctx.exp(logits - rows.maximum) / total(ctx, rows)


def others(ctx: Context, rows: Rows) -> Array:
    """1 - S_t = sum_{v != t} S_v. Where t is not the anchor the numerator is at least 1: nothing cancels."""
    without_target = rows.rest + 1 - ctx.exp(rows.target_logit - rows.maximum)
    return ctx.where(rows.target == rows.anchor, rows.rest, without_target) / total(ctx, rows)


def residual(
    ctx: Context,
    softmax: Array,  # (N, n)
    others: Array,  # (N, 1)
    is_target: Array,  # (N, n) bool
    d_loss: Array,  # (N, 1), the weight of the row included
    d_lse: Array,  # (N, 1)
    smoothing: Scalar,
    vocabulary: int,
) -> Array:
    """d_loss (S - q) + d_lse S, the derivative by the capped logits: (N, n)."""
    difference = ctx.where(is_target, -others, softmax)
    if smoothing:
        difference = difference * (1 - smoothing) + (softmax * smoothing - smoothing / vocabulary)
    return difference * d_loss + softmax * d_lse


def residual_magnitude(
    ctx: Context,
    softmax: Array,
    others: Array,
    is_target: Array,
    d_loss: Array,
    d_lse: Array,
    smoothing: Scalar,
    vocabulary: int,
) -> Array:
    """`residual` with every subtraction replaced by an addition: what its rounding errors are relative to."""
    size = ctx.where(is_target, others, softmax)
    if smoothing:
        size = size * (1 - smoothing) + (softmax * smoothing + smoothing / vocabulary)
    return size * abs(d_loss) + softmax * abs(d_lse)
