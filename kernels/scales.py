# mypy: ignore-errors
"""Scales that rows of a product share: rows of dC add up, so that all have the largest power of two among them, which
either factor can take: residuals, or in bf16, whose exponents are those of fp32, rows of E."""

import torch
import triton
import triton.language as tl

from .backend import TL_DTYPES, device_function, kernel
from .matrix import gather_rows, store_rows
from .residual import load_row_data
from .rounding import downcast, upcast

ALL_ROWS = 8192
"""That a program looks at together, where one looks at all."""


@kernel
def block_scale_kernel(
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Scale,  # (programs,) fp32
    blocks,
    N,
    ignore_index,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest scale of so many blocks of rows; one program each. fp32 needs none, and would lose rows that are
    2^126 below another."""
    top = tl.full((), 0.0, tl.float32)
    for block in range(tl.program_id(0) * blocks, (tl.program_id(0) + 1) * blocks):
        i = block * BLOCK + tl.arange(0, BLOCK)
        rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
        top = tl.maximum(top, tl.max(tl.where(rows.valid, rows.scale, 0.0), 0))
    if DTYPE == tl.float32:  # noqa: SIM300 - a dtype compared with a constexpr on its right is never equal
        top = tl.full((), 1.0, tl.float32)
    tl.store(Scale + tl.program_id(0), top)


@device_function
def relative_scale(scale, top):
    """scale / top for powers of two with scale <= top, by their exponents: exact, and 0 below 2^-126."""
    exponent = (scale.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    top_exponent = (top.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    biased = tl.maximum(127 + exponent - top_exponent, 0)
    return (biased.to(tl.uint32) << 23).to(tl.float32, bitcast=True)


@kernel
def scaled_rows_kernel(
    E,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Scale,  # (blocks,) fp32
    Out,  # (N, D)
    N,
    D,
    ignore_index,
    BLOCK: tl.constexpr,  # rows that share a scale
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """E, each row times its scale over that of its block, 0 in ignored rows: residuals at their rows' own scales
    make dC of it. Exact down to 2^-126. One program per (ROWS, COLUMNS)."""
    slices = tl.cdiv(D, COLUMNS)
    i = (tl.program_id(0) // slices) * ROWS + tl.arange(0, ROWS)
    d0 = (tl.program_id(0) % slices) * COLUMNS
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    relative = relative_scale(rows.scale, tl.load(Scale + i // BLOCK, mask=i < N, other=1.0))
    e = upcast(gather_rows(E, i, i < N, d0, COLUMNS)) * relative[:, None]
    store_rows(Out, i, i < N, d0, downcast(tl.where(rows.valid[:, None], e, 0.0), Out.ptr.dtype.element_ty))


def scale_of_all(rows, shape, ignore_index, dtype):
    """(1,) fp32, the power of two that all rows share."""
    return shared_scales(rows, shape, ALL_ROWS, max(1, triton.cdiv(shape[0], ALL_ROWS)), ignore_index, dtype)


def shared_scales(rows, shape, block, blocks, ignore_index, dtype):
    """(ceil(N / (block blocks)),) fp32 powers of two, one for so many `blocks` of `block` rows."""
    n = shape[0]
    scale = torch.empty(triton.cdiv(n, block * blocks), device=rows[1].device)
    block_scale_kernel[(len(scale),)](*rows, scale, blocks, n, ignore_index, DTYPE=TL_DTYPES[dtype], BLOCK=block)
    return scale
