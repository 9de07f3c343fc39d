# mypy: ignore-errors
"""The coefficient of each logit in the gradient, g = dloss (softmax - onehot) + dlse softmax, and what counts in it."""

from typing import NamedTuple

import triton.language as tl

from .backend import device_function, stage
from .logits import soft_cap_slope
from .rounding import downcast, exp, power_of_two


class Rows(NamedTuple):
    """What the backward pass knows of each of BLOCK_N rows."""

    valid: tl.tensor  # False for ignored rows and rows past N
    target: tl.tensor
    max: tl.tensor
    log_sum: tl.tensor
    dloss: tl.tensor  # upstream gradients divided by `scale`, so that they lie within 2 in size
    dlse: tl.tensor
    scale: tl.tensor  # a power of two per row
    size: tl.tensor  # (abs(dloss) + abs(dlse)) / scale, in [1, 2) for ordinary rows


@stage
def load_upstream(Grad, rows, valid):
    """(BLOCK_N,) upstream gradients, 0 at ignored rows and where there is none. Autograd rounded them to fp32."""
    if Grad is None:
        return tl.full(rows.shape, 0.0, tl.float32)
    else:
        return tl.load(Grad.ptr + rows.to(tl.int64) * Grad.stride_row, mask=valid, other=0.0)


@device_function
def load_row_data(Target, RowMax, LogSum, DLoss, DLse, rows, N, ignore_index):
    """`Rows` for the given row numbers.

    Upstream gradients are split into a power of two and a rest near 1: the residual is cast at the scale of a
    probability, whatever 1/N or loss weight came from upstream (in fp16 a softmax times 1/N would vanish), and the
    power is put back on the fp32 increments, exactly.
    """
    mask = rows < N
    target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=mask, other=ignore_index)
    valid = mask & (target != ignore_index)
    dloss = load_upstream(DLoss, rows, valid)
    dlse = load_upstream(DLse, rows, valid)
    scale, inverse = power_of_two(tl.abs(dloss) + tl.abs(dlse))
    dloss = dloss * inverse
    dlse = dlse * inverse
    m = tl.load(RowMax + rows, mask=valid, other=0.0)
    log_s = tl.load(LogSum + rows, mask=valid, other=0.0)
    # A row that is all -inf or holds +inf has no softmax: NaN, as torch says, in every entry.
    m = tl.where(tl.abs(m) == float("inf"), float("nan"), m)
    return Rows(valid, target, m, log_s, dloss, dlse, scale, tl.abs(dloss) + tl.abs(dlse))


@stage
def softmax(z, rows):
    """exp((z - max) - log sum): the two parts are subtracted one by one, since their sum would be rounded at |lse|."""
    return exp((z - rows.max[:, None]) - rows.log_sum[:, None])


@device_function
def is_target(target, first, SIZE: tl.constexpr):
    """(BLOCK_N, SIZE) whether a word of first, first + 1, ... is its row's target. An int64 that is too large for int32
    is none: what it wraps to may be hit, for a row that is ignored."""
    return tl.arange(0, SIZE)[None, :] == (target - first).to(tl.int32)[:, None]


@stage
def residual(p, onehot, dloss, dlse):
    """dloss (p - onehot) + dlse p, each row with its own upstream gradients; without what is None."""
    g = (p if onehot is None else p - onehot) * dloss[:, None]
    if dlse is not None:
        g += p * dlse[:, None]
    return g


@device_function
def every_gradient(p, onehot, z, rows, DLse, softcap):
    """(BLOCK_N, BLOCK_V) residual / scale by the raw logits z, of rows that all count; onehot is None where no target
    is."""
    return soft_cap_slope(residual(p, onehot, rows.dloss, None if DLse is None else rows.dlse), z, softcap)


@device_function
def logit_gradient(p, hit, z, rows, DLse, softcap):
    """The same of any rows, with targets where `hit` says so: 0 at ignored rows."""
    return tl.where(rows.valid[:, None], every_gradient(p, hit.to(tl.float32), z, rows, DLse, softcap), 0.0)


@device_function
def gradient_of_block(p, z, rows, col0, V, DLse, softcap, SIZE: tl.constexpr):
    """The same for the SIZE words from col0 on; 0 outside the vocabulary. Most blocks are whole and of rows that count,
    none of whose targets is there: then no entry needs to be looked at, in a third of the instructions."""
    special = ((rows.target >= col0) & (rows.target < col0 + SIZE)) | (rows.valid == 0)
    if (col0 + SIZE <= V) & (tl.sum(special.to(tl.int32), 0) == 0):
        g = every_gradient(p, None, z, rows, DLse, softcap)
    else:
        g = logit_gradient(p, is_target(rows.target, col0, SIZE), z, rows, DLse, softcap)
        g = tl.where((col0 + tl.arange(0, SIZE) < V)[None, :], g, 0.0)
    return g


@stage
def cast_residual(g, DTYPE: tl.constexpr):
    """g in the storage dtype, which the tensor core multiplies."""
    return downcast(g, DTYPE)


@stage
def is_live(g, size, eps):
    """Whether entries of size g are not negligible beside their rows' upstream gradients. NaN is never negligible."""
    limit = eps * size
    limit = tl.where((size < float("inf")) & (limit == limit), limit, 0.0)  # eps = inf times no upstream is NaN
    return (g <= limit) == 0


@device_function
def is_tile_live(g, rows, eps, FILTER: tl.constexpr):
    """Whether a tile must be kept: some entry is live. They are counted, because a maximum would swallow NaN."""
    if FILTER:
        return tl.sum(tl.sum(is_live(tl.abs(g), rows.size[:, None], eps).to(tl.int32), 1), 0) > 0
    else:
        return True
