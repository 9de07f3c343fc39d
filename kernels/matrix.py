# mypy: ignore-errors
"""A matrix as one kernel argument, and the two ways to load a block of it; a vector likewise."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function


class Matrix(NamedTuple):
    """A strided matrix in device memory."""

    ptr: torch.Tensor
    stride_row: int
    stride_col: int
    columns: int  # Triton compiles for its alignment, so that masked loads are wide; loops take D, which is any number


class Vector(NamedTuple):
    """A strided vector in device memory."""

    ptr: torch.Tensor
    stride_row: int


@device_function
def load_or_zero(pointers, mask):
    """What `pointers` (2-d) point to, 0 outside the mask. The zero has their dtype: a float would be cast, one per
    element, which takes Triton's interpreter longer than the load."""
    return tl.load(pointers, mask=mask, other=tl.full((1, 1), 0, pointers.dtype.element_ty))


@device_function
def gather_rows(M, rows, row_mask, col0, BLOCK: tl.constexpr):
    """(len(rows), BLOCK) entries of the given rows, columns from col0 on; 0 outside the mask and the matrix."""
    cols = col0 + tl.arange(0, BLOCK)
    offsets = rows.to(tl.int64)[:, None] * M.stride_row + cols.to(tl.int64)[None, :] * M.stride_col
    return load_or_zero(M.ptr + offsets, row_mask[:, None] & (cols < M.columns)[None, :])


@device_function
def store_rows(M, rows, row_mask, col0, x):
    """Puts x where gather_rows finds it. As a matrix knows its alignment, 16 bytes at a time: with D for a bound every
    entry was stored alone, in a third of the instructions of dC's product of segments."""
    cols = col0 + tl.arange(0, x.shape[1])
    offsets = rows.to(tl.int64)[:, None] * M.stride_row + cols.to(tl.int64)[None, :] * M.stride_col
    tl.store(M.ptr + offsets, x, mask=row_mask[:, None] & (cols < M.columns)[None, :])


@device_function
def load_rows(M, row0, rows, row_mask, col0, BLOCK: tl.constexpr, DESCRIPTOR: tl.constexpr):
    """As gather_rows for rows = row0, row0 + 1, ...: by a tensor descriptor M or by pointers into a matrix M."""
    if DESCRIPTOR:
        return M.load([row0, col0])
    else:
        return gather_rows(M, rows, row_mask, col0, BLOCK)
