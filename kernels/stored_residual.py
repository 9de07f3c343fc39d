# mypy: ignore-errors
"""The first half of the backward pass where exponentials are stored: residuals of them, in their own place."""

import triton.language as tl

from .backend import kernel, stage
from .exponentials import UNIT, stored_width
from .residual import cast_residual, gradient_of_block, load_row_data
from .rounding import exp, upcast
from .scales import relative_scale


@stage
def restore_softmax(x, shift, rows):
    """softmax of stored exponentials. An entry above 1/2 is the row's largest and was stored as 1, so that 1 - p is as
    good as p."""
    return (x * (1.0 / UNIT)) * exp((shift - rows.max) - rows.log_sum)[:, None]


@kernel
def stored_residual_kernel(
    From,  # Exponentials
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Out,
    tile,  # the first of this group
    parts,  # of it, of COLUMNS words
    N,
    V,
    ignore_index,
    FOR_E: tl.constexpr,  # whether residuals over the scales of their rows are wanted
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,  # of the backward pass
    TILE: tl.constexpr,  # columns of a tile of the forward pass
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per (SPAN rows, COLUMNS words), ROWS at a time; neighbours read on where one ends."""
    first_row = (tl.program_id(0) // parts) * SPAN
    block = first_row // TILES.block_n
    place0 = (tl.program_id(0) % parts) * COLUMNS
    column = tl.arange(0, COLUMNS)
    first = tile * TILES.block_v  # whose alignment the compiler sees
    width = stored_width(V, TILE)
    of_forward = (first + place0) // TILE
    bias = tl.full((COLUMNS,), 0.0, tl.float32)
    for step in range(0, SPAN, ROWS):
        row0 = first_row + step
        row = tl.arange(0, ROWS)
        i = row0 + row
        row_mask = i < N
        rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
        there = tl.cast(row0, tl.int64) * width + first + place0
        offsets = row[:, None] * width + column[None, :]
        x = upcast(tl.load(From.entries + there + offsets, mask=row_mask[:, None], other=0.0))
        shift = tl.load(From.shift + tl.cast(of_forward, tl.int64) * N + i, mask=row_mask, other=0.0)
        p = restore_softmax(x, shift, rows)
        g = gradient_of_block(p, p, rows, first + place0, V, DLse, None, COLUMNS)
        if Out.bias is not None:
            bias += tl.sum(g * rows.scale[:, None], 0)
        if FOR_E:
            residuals = From.entries.to(tl.pointer_type(DTYPE), bitcast=True) + there
            tl.store(residuals + offsets, cast_residual(g, DTYPE), mask=row_mask[:, None])
        if Out.for_c is not None:
            relative = relative_scale(rows.scale, tl.load(Out.scale + block))
            own = tl.cast(row0, tl.int64) * Out.width + place0
            own_offsets = row[:, None] * Out.width + column[None, :]
            tl.store(Out.for_c + own + own_offsets, cast_residual(g * relative[:, None], DTYPE), mask=row_mask[:, None])
    if Out.bias is not None:
        tl.store(Out.bias + tl.cast(block, tl.int64) * Out.width + place0 + column, bias)
