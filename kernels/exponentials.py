# mypy: ignore-errors
"""exponentials=stored: the forward pass keeps exp(z - shift) of every entry, and the backward pass makes residuals of
them where they lie: no logit is computed twice, three products for four.

The shift is the row's running maximum, so that entries lie in [0, 1]. They are stored as fp16, times 2^15: with 11
digits from 2^-29 to 1, where bf16 has 8.
"""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function, stage
from .rounding import downcast

UNIT = tl.constexpr(2.0**15)
"""What an entry of 1 is stored as."""


class Exponentials(NamedTuple):
    """Of every row, in the order of the vocabulary."""

    entries: torch.Tensor  # (N, whole tiles) fp16
    shift: torch.Tensor  # (tiles, N) fp32


@device_function
def stored_width(V, BLOCK: tl.constexpr):
    """Of a row of entries."""
    return tl.cdiv(V, BLOCK) * BLOCK


@stage
def store_exponentials(x):
    """exp(z - shift) as it is kept."""
    return downcast(x * UNIT, tl.float16)


@device_function
def keep_exponentials(Out, Blocks, x, shift, row0, tile, N, V, TILES: tl.constexpr):
    """Keeps a tile of the forward pass, by `Blocks`, a descriptor of the entries, where there is one."""
    place = tl.arange(0, TILES.block_n)
    mask = row0 + place < N
    tl.store(Out.shift + tl.cast(tile, tl.int64) * N + row0 + place, shift, mask=mask)
    entries = store_exponentials(x)
    if Blocks is not None:
        Blocks.store([row0, tile * TILES.block_v], entries)
    else:
        width = stored_width(V, TILES.block_v)
        there = Out.entries + tl.cast(row0, tl.int64) * width + tile * TILES.block_v
        offsets = place[:, None] * width + tl.arange(0, TILES.block_v)[None, :]
        tl.store(there + offsets, entries, mask=mask[:, None])
