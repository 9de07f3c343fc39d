# mypy: ignore-errors
"""`row_order=similar`: rows that keep as much, and look the same way, share the blocks of dE of granularity=segment.

A block keeps a word if any of its rows has a live entry there: 128 rows keep 20 times as many words as one of them.
Of a real head (V=49152, 4096 tokens, eps=2^-14) they are 26 % of the words as rows lie in the batch and 16 % so, at an
error of dE that is 1 % smaller: what a row's neighbours keep for it is more often its own. Of drawn heads (V=256000,
8192 tokens), whose tokens resemble those beside them more, it is 3.3 and 2.9 % of one, 6.9 and 6.7 % of another, and
the error 3 % smaller (H200).

Of other orders, on that real head in float32, where a segment is kept by its largest entry: as they lie .237 of the
words, by how many segments they keep .182, by their targets .247, by the nearest of 16 rows .155, in four parts by the
nearest of 8 .143, and cut in halves along E's main axis, again and again, .129; which takes 60 launches more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .backend import kernel
from .launch import Call, matrix, options, vector
from .matrix import gather_rows
from .rounding import dot, upcast
from .schedule import Tiles

PARTS = 4
"""As many rows that keep much, less, little and least."""
PIVOTS = 8
"""Rows of the batch to which others are likened."""


class Permutation(NamedTuple):
    """Of the rows, and its inverse; None: as they are."""

    rows: torch.Tensor | None  # (N,) int64 rows, those of a block after those of the one before
    place: torch.Tensor | None  # (N,) int32 where a row is among them


IN_BATCH = Permutation(None, None)


@kernel
def likeness_kernel(
    E,
    Target,
    ByCount,  # (N,) int64 rows, those that keep the most first
    Sample,  # (samples,) int64 rows, at least PIVOTS, which are spread evenly over them
    samples,
    Key,  # (N,) int32
    N,
    D,
    ignore_index,
    PARTS: tl.constexpr,
    PIVOTS: tl.constexpr,
    TILES: tl.constexpr,
):
    """A row's part, and in it the pivot whose direction its own is nearest to; ignored rows come after all others. One
    program per BLOCK_N rows."""
    place = tl.program_id(0) * TILES.block_n + tl.arange(0, TILES.block_n)
    mask = place < N
    i = tl.load(ByCount + place, mask=mask, other=0)
    pivots = tl.load(Sample + samples // PIVOTS * tl.arange(0, PIVOTS))
    score = tl.full((TILES.block_n, PIVOTS), 0.0, tl.float32)
    square = tl.full((PIVOTS,), 0.0, tl.float32)
    for d in range(0, D, TILES.block_d):
        e = gather_rows(E, i, mask, d, TILES.block_d)
        pivot = gather_rows(E, pivots, pivots >= 0, d, TILES.block_d)
        score = dot(e, tl.trans(pivot), score)
        square += tl.sum(upcast(pivot) * upcast(pivot), 1)
    score = score * tl.rsqrt(square)[None, :]
    alike = tl.argmax(tl.where(score == score, score, float("-inf")), 1)
    target = tl.load(Target.ptr + i * Target.stride_row, mask=mask, other=ignore_index)
    key = (place.to(tl.int64) * PARTS // N).to(tl.int32) * PIVOTS + alike
    tl.store(Key + i, tl.where(target == ignore_index, PARTS * PIVOTS, key), mask=mask)


@kernel
def place_kernel(Rows, Place, N, BLOCK: tl.constexpr):
    """The inverse of a permutation."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Place + tl.load(Rows + k, mask=k < N, other=0), k, mask=k < N)


def similar_rows(call: Call, kept: torch.Tensor, sample: torch.Tensor, tiles: Tiles) -> Permutation:
    """By how many segments rows have `kept` (splits, N), and by which of some rows of the `sample` they resemble."""
    n, _, d = call.shape
    count = kept.sum(0, dtype=torch.int32)
    key, place = (torch.empty(n, dtype=torch.int32, device=kept.device) for _ in range(2))
    likeness_kernel[(triton.cdiv(n, tiles.block_n),)](
        matrix(call.embeddings),
        vector(call.targets),
        torch.sort(count, descending=True, stable=True).indices,
        sample,
        len(sample),
        key,
        n,
        d,
        call.ignore_index,
        PARTS=PARTS,
        PIVOTS=PIVOTS,
        TILES=tiles,
        **options(tiles, call.schedule),
    )
    rows = torch.sort(key, stable=True).indices
    place_kernel[(triton.cdiv(n, 1024),)](rows, place, n, BLOCK=1024)
    return Permutation(rows, place)
