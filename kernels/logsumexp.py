# mypy: ignore-errors
"""The forward pass: a running (max, sum) pair per row and vocabulary split, and the target's logit from the same tile.

Neither locks nor atomics: each program owns its rows' partial results for one split. Paper, Algorithm 2, with the
pair of Milakov and Gimelshein ("Online normalizer calculation for softmax", 2018) instead of a logaddexp chain.
"""

import triton
import triton.language as tl

from .backend import device_function
from .logits import add_bias, dot_logits, mask_columns, soft_cap


@device_function
def finite_or_zero(m):
    """m, or 0 where m is infinite, so that z - m is not inf - inf for rows that are all -inf or hold +inf."""
    return tl.where(tl.abs(m) == float("inf"), 0.0, m)


@device_function
def fold_tile(m, s, z):
    """The pair (m, s), meaning s e^m, after a tile z (BLOCK_N, BLOCK_V). s >= 1 as soon as m is finite: the largest
    logit itself contributes exp(0) = 1. A NaN logit makes s NaN, though max ignores it."""
    top = tl.maximum(m, tl.max(z, 1))
    shift = finite_or_zero(top)
    return top, s * tl.exp(m - shift) + tl.sum(tl.exp(z - shift[:, None]), 1)


@device_function
def pick_target(z_target, z, target, cols, col0, VARIANT: tl.constexpr, TILES: tl.constexpr):
    """The target's logit where this tile holds it: the very number that enters the sum, so that m - z_target >= 0."""
    if VARIANT.target == "fused":
        here = (target >= col0) & (target < col0 + TILES.block_v)
        # Few tiles hold a target: at V = 256000 a block of 128 rows has at most 128 in 1000.
        if tl.max(here.to(tl.int32), 0) > 0:
            z_target += tl.sum(tl.where(cols[None, :] == target[:, None], z, 0.0), 1)
    return z_target


@triton.jit
def logsumexp_kernel(
    E,
    C,
    Bias,
    Target,
    Max,  # (splits, N) fp32, as are the next two
    Sum,
    TargetLogit,
    softcap,
    N,
    V,
    D,
    tiles_per_split,
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """One program per (split, block of rows). Programs that run together read the same rows of C."""
    row_blocks = tl.cdiv(N, TILES.block_n)
    row0 = (tl.program_id(0) % row_blocks) * TILES.block_n
    split = tl.program_id(0) // row_blocks
    rows = row0 + tl.arange(0, TILES.block_n)
    row_mask = rows < N
    target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=row_mask, other=-1)
    m = tl.full((TILES.block_n,), float("-inf"), tl.float32)
    s = tl.full((TILES.block_n,), 0.0, tl.float32)
    z_target = tl.full((TILES.block_n,), 0.0, tl.float32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(V, TILES.block_v))
    for tile in range(first, last):
        col0 = tile * TILES.block_v
        cols = col0 + tl.arange(0, TILES.block_v)
        col_mask = cols < V
        z = dot_logits(E, C, row0, rows, row_mask, col0, cols, col_mask, D, TILES, E_DESCRIPTOR, C_DESCRIPTOR)
        z = add_bias(z, Bias, cols, col_mask)
        z = soft_cap(z, softcap)
        z = mask_columns(z, col_mask, col0 + TILES.block_v, V)
        m, s = fold_tile(m, s, z)
        z_target = pick_target(z_target, z, target, cols, col0, VARIANT, TILES)
    out = split.to(tl.int64) * N + rows
    tl.store(Max + out, m, mask=row_mask)
    tl.store(Sum + out, s, mask=row_mask)
    if VARIANT.target == "fused":
        tl.store(TargetLogit + out, z_target, mask=row_mask)
