# mypy: ignore-errors
"""A matrix as one kernel argument, and the two ways to load a block of it."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function


class Matrix(NamedTuple):
    """A strided matrix in device memory."""

    ptr: torch.Tensor
    stride_row: int
    stride_col: int


@device_function
def gather_rows(M, rows, row_mask, col0, n_cols, BLOCK: tl.constexpr):
    """(len(rows), BLOCK) entries of the given rows, columns from col0 on; 0 outside the mask and the matrix."""
    cols = col0 + tl.arange(0, BLOCK)
    offsets = rows.to(tl.int64)[:, None] * M.stride_row + cols.to(tl.int64)[None, :] * M.stride_col
    return tl.load(M.ptr + offsets, mask=row_mask[:, None] & (cols < n_cols)[None, :], other=0.0)


@device_function
def load_rows(M, row0, rows, row_mask, col0, n_cols, BLOCK: tl.constexpr, DESCRIPTOR: tl.constexpr):
    """As gather_rows for rows = row0, row0 + 1, ...: through the tensor descriptor M, or by pointers into a matrix M."""
    if DESCRIPTOR:
        return M.load([row0, col0])
    else:
        return gather_rows(M, rows, row_mask, col0, n_cols, BLOCK)
