# mypy: ignore-errors
"""The paper's Algorithm 1: the target's logit as a dot product of its own, E_i . C_{x_i}."""

import triton.language as tl

from .backend import kernel, stage
from .logits import add_bias, soft_cap
from .matrix import gather_rows
from .rounding import upcast


@stage
def indexed_dot(E, C, rows, target, valid, D, TILES: tl.constexpr):
    """(BLOCK_N,) fp32 E_i . C_t: one partial sum per column of a D step, and one tree over those."""
    parts = tl.full((TILES.block_n, TILES.block_d), 0.0, tl.float32)
    for d in range(0, D, TILES.block_d):
        e = upcast(gather_rows(E, rows, valid, d, TILES.block_d))
        parts += e * upcast(gather_rows(C, target, valid, d, TILES.block_d))
    return tl.sum(parts, 1)


@kernel
def indexed_dot_kernel(E, C, Bias, Target, TargetLogit, softcap, N, V, D, ignore_index, TILES: tl.constexpr):
    """One program per block of rows."""
    rows = tl.program_id(0) * TILES.block_n + tl.arange(0, TILES.block_n)
    row_mask = rows < N
    target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=row_mask, other=ignore_index)
    # A target that is no class is refused in the end, and must not be read till then.
    valid = row_mask & (target != ignore_index) & (target >= 0) & (target < V)
    z = add_bias(indexed_dot(E, C, rows, target, valid, D, TILES), Bias, target, valid)
    tl.store(TargetLogit + rows, soft_cap(z, softcap), mask=row_mask)
