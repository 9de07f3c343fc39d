# mypy: ignore-errors
"""Sums of dE between turns: fp32 in two halves, of which one lies where dE itself will be.

What a tensor core holds of a sum is fp32, so that a sum which waits in memory goes on as if it had not.
"""

from typing import NamedTuple

import triton.language as tl

from .backend import device_function
from .matrix import Matrix, gather_rows, store_rows


class Carried(NamedTuple):
    """(N, D) int16 each."""

    high: Matrix
    low: Matrix


@device_function
def load_carried(Carried, rows, row_mask, col0, COLUMNS: tl.constexpr):
    """(len(rows), COLUMNS) fp32; 0 outside the mask and the matrix."""
    high = gather_rows(Carried.high, rows, row_mask, col0, COLUMNS).to(tl.int32)
    low = gather_rows(Carried.low, rows, row_mask, col0, COLUMNS).to(tl.int32)
    return ((high << 16) | (low & 0xFFFF)).to(tl.float32, bitcast=True)


@device_function
def store_carried(Carried, rows, row_mask, col0, x):
    """Puts fp32 x where load_carried finds it."""
    bits = x.to(tl.int32, bitcast=True)
    store_rows(Carried.high, rows, row_mask, col0, (bits >> 16).to(tl.int16))
    store_rows(Carried.low, rows, row_mask, col0, bits.to(tl.int16))
