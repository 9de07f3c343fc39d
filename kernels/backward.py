# mypy: ignore-errors
"""The first half of the backward pass (paper, Algorithm 3): recompute a tile of logits, form its residual, filter.

The residuals of a group of vocabulary tiles are stored once, and `products` multiplies them into both gradients: a tile
of logits is recomputed once for dE and dC.
"""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function, kernel, stage
from .kept import kept_count, kept_tile
from .logits import add_bias, dot_logits, soft_cap
from .residual import cast_residual, gradient_of_block, is_tile_live, load_row_data, softmax
from .scales import relative_scale
from .swizzle import swizzled


class Residuals(NamedTuple):
    """Of one group of vocabulary tiles, with room for the widest. What is None is not wanted."""

    for_e: torch.Tensor | None  # (N, width) in the storage dtype, each row over its own scale
    for_c: torch.Tensor | None  # the same over the scale of the row block; None: `for_e` serves
    scale: torch.Tensor  # (row blocks,) fp32, what increments of dC are multiplied by
    bias: torch.Tensor | None  # (row blocks, width) fp32 sums over the rows of a block
    live: torch.Tensor | None  # (row blocks, tiles) int32, flat in a room; None without a filter, or where known
    mass: torch.Tensor | None  # (tiles of the group, N) fp32 softmax mass of dead tiles
    width: int  # of the widest group, whole tiles: Triton compiles for its alignment


@device_function
def vocabulary_tile(Ordering, tile, V, BLOCK: tl.constexpr):
    """(columns, mask) of one tile of the vocabulary, in the given order or as it is."""
    place = tile * BLOCK + tl.arange(0, BLOCK)
    mask = place < V
    if Ordering is None:
        return place, mask
    else:
        return tl.load(Ordering + place, mask=mask, other=0), mask


@stage
def recompute_logits(
    E,
    C,
    Bias,
    row0,
    rows,
    row_mask,
    place0,
    places,
    cols,
    col_mask,
    D,
    softcap,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """(raw, z): a tile of logits once more, before and after the cap. Its products may be joined in other tiles than
    those of the forward pass. Rows `places` of C are the columns `cols`; a descriptor takes those from `place0` on."""
    raw = dot_logits(E, C, row0, rows, row_mask, place0, places, col_mask, D, TILES, E_DESCRIPTOR, C_DESCRIPTOR)
    raw = add_bias(raw, Bias, cols, col_mask)
    return raw, soft_cap(raw, softcap)


@device_function
def residual_tile(
    E,
    C,
    Bias,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Ordering,
    Out,
    Blocks,
    block,
    tile,
    softcap,
    eps,
    first,
    tiles,
    N,
    V,
    D,
    ignore_index,
    FILTER: tl.constexpr,
    KEEP_DEAD: tl.constexpr,
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """Stores what a block of rows has in a tile of the group. Sums for dbias take in every tile, filtered or not."""
    i = block * TILES.block_n + tl.arange(0, TILES.block_n)
    row_mask = i < N
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    cols, col_mask = vocabulary_tile(Ordering, first + tile, V, TILES.block_v)
    place0 = tile * TILES.block_v
    place = place0 + tl.arange(0, TILES.block_v)
    raw, z = recompute_logits(
        E, C, Bias, block * TILES.block_n, i, row_mask, place0, place, cols, col_mask, D, softcap, TILES,
        E_DESCRIPTOR, C_DESCRIPTOR
    )  # fmt: skip
    p = softmax(z, rows)
    g = gradient_of_block(p, raw, rows, (first + tile) * TILES.block_v, V, DLse, softcap, TILES.block_v)
    if Out.bias is not None:
        tl.store(Out.bias + block.to(tl.int64) * Out.width + place, tl.sum(g * rows.scale[:, None], 0))
    live = is_tile_live(g, rows, eps, FILTER)
    if Out.live is not None:
        tl.store(Out.live + block * tiles + tile, live.to(tl.int32))
    if KEEP_DEAD or live:
        offsets = i.to(tl.int64)[:, None] * Out.width + place[None, :]
        if Blocks is not None:
            Blocks.store([block * TILES.block_n, place0], cast_residual(g, DTYPE))
        elif Out.for_e is not None:
            tl.store(Out.for_e + offsets, cast_residual(g, DTYPE), mask=row_mask[:, None])
        if Out.for_c is not None:
            relative = rows.scale
            if DTYPE != tl.float32:  # noqa: SIM300
                relative = relative_scale(rows.scale, tl.load(Out.scale + block))
            tl.store(Out.for_c + offsets, cast_residual(g * relative[:, None], DTYPE), mask=row_mask[:, None])
    if Out.mass is not None:
        dead = tl.sum(tl.where(rows.valid[:, None] & col_mask[None, :], p, 0.0), 1)
        tl.store(Out.mass + tile * N + i, dead, mask=row_mask & (live == 0))


@kernel
def residual_kernel(
    E,
    C,  # the rows of this group, in the order of the vocabulary
    Bias,
    Target,  # their places in that order
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Ordering,
    List,  # of the one owner of all pairs (`swizzled`): those that are kept, where it is known
    Out,
    Blocks,  # a descriptor of Out.for_e, if any
    softcap,
    eps,
    first,  # tiles of the vocabulary before this group
    tiles,  # of this group, or of its list
    at_once,  # blocks of rows
    N,
    V,
    D,
    ignore_index,
    FILTER: tl.constexpr,
    KEEP_DEAD: tl.constexpr,  # for the gradient that is not filtered
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    FLATTENED: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """Any number of programs, each of which goes through pairs (tile of the group, block of rows).

    Not FLATTENED, and without a list, a program has one pair: the tensor core would wait for the first product of every
    other, and a store by a descriptor takes memory of a stage's."""
    row_blocks = tl.cdiv(N, TILES.block_n)
    # Of a list with one owner and one span, whose width says nothing.
    count = row_blocks * tiles if List.places is None else kept_count(List, 0, 0, 0, 1)
    if FLATTENED or List.places is not None:
        for k in tl.range(tl.program_id(0), count, tl.num_programs(0), flatten=FLATTENED):
            place = k if List.places is None else kept_tile(List, 0, 0, k, 0, 1)
            block, tile = swizzled(place, row_blocks, tiles, at_once)
            residual_tile(
                E, C, Bias, Target, RowMax, LogSum, DLoss, DLse, Ordering, Out, Blocks, block, tile, softcap, eps,
                first, tiles, N, V, D, ignore_index, FILTER, KEEP_DEAD, DTYPE, TILES, E_DESCRIPTOR, C_DESCRIPTOR
            )  # fmt: skip
    else:
        block, tile = swizzled(tl.program_id(0), row_blocks, tiles, at_once)
        residual_tile(
            E, C, Bias, Target, RowMax, LogSum, DLoss, DLse, Ordering, Out, Blocks, block, tile, softcap, eps,
            first, tiles, N, V, D, ignore_index, FILTER, KEEP_DEAD, DTYPE, TILES, E_DESCRIPTOR, C_DESCRIPTOR
        )  # fmt: skip
