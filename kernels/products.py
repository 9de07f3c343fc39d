# mypy: ignore-errors
"""The second half of the backward pass: stored residuals times C, and transposed times E, into sums that programs own.

A program of one kernel owns a block of dE, one of the other a block of dC, and takes in the increments of its tiles one
by one and in order: no locks, no atomics, the same bits each time. Between groups of the vocabulary the sums of dE wait
in memory; those of dC are complete within a group.
"""

import triton.language as tl

from .accumulate import HEADROOM, add, load_sums, no_sums, rescale, store_sums
from .backend import IS_INTERPRETED, device_function, kernel, stage
from .kept import kept_count, kept_tile
from .matrix import load_rows, store_rows
from .residual import load_row_data
from .rounding import dot, downcast, upcast
from .tail import add_tail, with_tail_of_e

WHOLE = tl.constexpr(IS_INTERPRETED)
"""The interpreter rounds once for every step of a product, so there a product is one step. Tensor cores go through it
16 at a time whatever the step."""


@stage
def tile_product(
    v,
    G,
    M,
    k0,
    k_end,
    out0,
    d0,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
    M_DESCRIPTOR: tl.constexpr,
    out_end,
):
    """(ROWS, PRODUCT.columns) fp32: v plus the product of a tile of residuals, or of its transpose, and K rows of M, in
    the tensor core's own sum.

    Along K from k0 on, which is a column of G and a row of M, or, TRANSPOSED, a row of both; out0 is the tile's first
    row of the result and d0 its first column. Past `k_end`, and in rows of the result past `out_end`, are zeros."""
    STEP: tl.constexpr = K if WHOLE or PRODUCT.depth > K else PRODUCT.depth
    out = out0 + tl.arange(0, ROWS)
    for step in range(0, K, STEP):
        k = k0 + step + tl.arange(0, STEP)
        if TRANSPOSED:
            g = tl.trans(load_rows(G, k0 + step, k, k < k_end, out0, ROWS, G_DESCRIPTOR))
        else:
            g = load_rows(G, out0, out, out < out_end, k0 + step, STEP, G_DESCRIPTOR)
        v = dot(g, load_rows(M, k0 + step, k, k < k_end, d0, PRODUCT.columns, M_DESCRIPTOR), v)
    return v


@device_function
def merged_product(
    G,
    M,
    List,
    owner,
    span,
    count,
    tiles,
    k_end,
    out0,
    d0,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
    M_DESCRIPTOR: tl.constexpr,
    out_end,
):
    """As tile_product for all tiles that a span of MERGED keeps: one increment, one sum in the tensor core."""
    v = tl.full((ROWS, PRODUCT.columns), 0.0, tl.float32)
    for k in tl.range(0, count, flatten=True):
        tile = kept_tile(List, owner, span, k, tiles, MERGED)
        v = tile_product(
            v, G, M, tile * K, k_end, out0, d0, K, ROWS, TRANSPOSED, PRODUCT, G_DESCRIPTOR, M_DESCRIPTOR, out_end
        )  # fmt: skip
    return v


@device_function
def increment_of_e(v, valid):
    """What dE takes in of a product, at the scale of its sums. An ignored row has g = 0, and 0 times NaN is NaN."""
    return tl.where(valid[:, None], v * HEADROOM, 0.0)


@device_function
def increment_of_c(v, Scale, block):
    """What dC takes in of a product of residuals over the scale of this and the following row blocks."""
    return v * tl.load(Scale + block)


@kernel
def embeddings_kernel(
    G,  # (N, width) residuals
    C,  # (rows, D) of this group
    Acc,
    Target,
    List,
    tiles,  # of the group, or of its lists
    words,  # of the group
    N,
    D,
    ignore_index,
    VARIANT: tl.constexpr,
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED: tl.constexpr,  # tiles of an increment
    AT_ONCE: tl.constexpr,  # whether those are the group
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """Adds a group of the vocabulary to dE, at the scale of a probability; a program per (block of rows, columns)."""
    slices = tl.cdiv(D, PRODUCT.columns)
    row0 = (tl.program_id(0) // slices) * ROWS
    d0 = (tl.program_id(0) % slices) * PRODUCT.columns
    i = row0 + tl.arange(0, ROWS)
    target = tl.load(Target.ptr + i.to(tl.int64) * Target.stride_row, mask=i < N, other=ignore_index)
    valid = target != ignore_index
    owner = row0 // TILES.block_n
    if MERGED > 1 and AT_ONCE:
        count = kept_count(List, owner, 0, tiles, MERGED)
        if count > 0:
            v = merged_product(
                G, C, List, owner, 0, count, tiles, words, row0, d0, TILES.block_v, ROWS, MERGED, False, PRODUCT,
                G_DESCRIPTOR, C_DESCRIPTOR, N
            )  # fmt: skip
            s, c = load_sums(Acc, tl.program_id(0), ROWS, PRODUCT.columns)
            s, c = add(s, c, increment_of_e(v, valid), VARIANT, DTYPE)
            store_sums(Acc, tl.program_id(0), s, c)
    elif MERGED > 1:
        s, c = load_sums(Acc, tl.program_id(0), ROWS, PRODUCT.columns)
        for span in range(0, tl.cdiv(tiles, MERGED)):
            count = kept_count(List, owner, span, tiles, MERGED)
            if count > 0:
                v = merged_product(
                    G, C, List, owner, span, count, tiles, words, row0, d0, TILES.block_v, ROWS, MERGED, False,
                    PRODUCT, G_DESCRIPTOR, C_DESCRIPTOR, N
                )  # fmt: skip
                s, c = add(s, c, increment_of_e(v, valid), VARIANT, DTYPE)
        store_sums(Acc, tl.program_id(0), s, c)
    else:
        zero = tl.full((ROWS, PRODUCT.columns), 0.0, tl.float32)
        s, c = load_sums(Acc, tl.program_id(0), ROWS, PRODUCT.columns)
        for k in tl.range(0, kept_count(List, owner, 0, tiles, tiles), flatten=True):
            tile = kept_tile(List, owner, 0, k, tiles, tiles)
            v = tile_product(
                zero, G, C, tile * TILES.block_v, words, row0, d0, TILES.block_v, ROWS, False, PRODUCT,
                G_DESCRIPTOR, C_DESCRIPTOR, N
            )  # fmt: skip
            s, c = add(s, c, increment_of_e(v, valid), VARIANT, DTYPE)
        store_sums(Acc, tl.program_id(0), s, c)


@kernel
def classifier_kernel(
    G,  # (N, width) residuals
    E,  # (N, D), zeros in ignored rows
    Scale,  # (row blocks,) fp32
    Ordering,
    Share,  # (V,) fp32, and
    Pull,  # (D,) fp32: the tail, in the natural order; None without one
    Out,  # (V, D) dC
    List,
    tiles,  # blocks of rows
    first,  # columns of the vocabulary before this group
    N,
    V,
    D,
    VARIANT: tl.constexpr,
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    MERGED: tl.constexpr,  # blocks of rows of an increment
    AT_ONCE: tl.constexpr,  # whether those are all
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
):
    """dC of a group of the vocabulary; one program per (block of the group, columns)."""
    slices = tl.cdiv(D, PRODUCT.columns)
    place0 = (tl.program_id(0) // slices) * ROWS
    d0 = (tl.program_id(0) % slices) * PRODUCT.columns
    owner = place0 // TILES.block_v
    s, c = no_sums(ROWS, PRODUCT.columns, VARIANT, DTYPE)
    if MERGED > 1 and AT_ONCE:
        v = merged_product(
            G, E, List, owner, 0, kept_count(List, owner, 0, tiles, MERGED), tiles, N, place0, d0, TILES.block_n, ROWS,
            MERGED, True, PRODUCT, G_DESCRIPTOR, E_DESCRIPTOR, N
        )  # fmt: skip
        s, c = add(s, c, increment_of_c(v, Scale, 0), VARIANT, DTYPE)
    elif MERGED > 1:
        for span in range(0, tl.cdiv(tiles, MERGED)):
            count = kept_count(List, owner, span, tiles, MERGED)
            if count > 0:
                v = merged_product(
                    G, E, List, owner, span, count, tiles, N, place0, d0, TILES.block_n, ROWS, MERGED, True, PRODUCT,
                    G_DESCRIPTOR, E_DESCRIPTOR, N
                )  # fmt: skip
                s, c = add(s, c, increment_of_c(v, Scale, span * MERGED), VARIANT, DTYPE)
    else:
        zero = tl.full((ROWS, PRODUCT.columns), 0.0, tl.float32)
        for k in tl.range(0, kept_count(List, owner, 0, tiles, tiles), flatten=True):
            block = kept_tile(List, owner, 0, k, tiles, tiles)
            v = tile_product(
                zero, G, E, block * TILES.block_n, N, place0, d0, TILES.block_n, ROWS, True, PRODUCT,
                G_DESCRIPTOR, E_DESCRIPTOR, N
            )  # fmt: skip
            s, c = add(s, c, increment_of_c(v, Scale, block), VARIANT, DTYPE)
    place = first + place0 + tl.arange(0, ROWS)
    mask = place < V
    cols = place if Ordering is None else tl.load(Ordering + place, mask=mask, other=0)
    total = upcast(s)
    if Share is not None:
        j = d0 + tl.arange(0, PRODUCT.columns)
        share = tl.load(Share + cols, mask=mask, other=0.0)
        total = add_tail(total + upcast(c), share, tl.load(Pull + j, mask=j < Out.columns, other=0.0))
    store_rows(Out, cols, mask, d0, cast_output(total, Out.ptr.dtype.element_ty))


@stage
def cast_output(total, DTYPE: tl.constexpr):
    """A complete sum in the dtype of its input. A companion of the sum is dropped, unless a tail took it in."""
    return downcast(total, DTYPE)


@kernel
def finish_embeddings_kernel(
    Acc,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Lost,  # (N,) fp32 probability in dropped tiles, and
    Pull,  # (D,) fp32: the tail; None without one
    Out,  # (N, D) dE
    N,
    D,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dE of complete sums: back to the scale of the result, and to its dtype. Programs as in embeddings_kernel."""
    DTYPE: tl.constexpr = Acc.sum.dtype.element_ty if Pull is None else tl.float32
    slices = tl.cdiv(D, COLUMNS)
    i = (tl.program_id(0) // slices) * ROWS + tl.arange(0, ROWS)
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    s, c = load_sums(Acc, tl.program_id(0), ROWS, COLUMNS)
    if Pull is not None:
        lost = tl.load(Lost + i, mask=i < N, other=0.0)
        j = (tl.program_id(0) % slices) * COLUMNS + tl.arange(0, COLUMNS)
        s = with_tail_of_e(upcast(s) + upcast(c), lost, rows, Pull, j, Out.columns)
    s = rescale(upcast(s), rows.scale[:, None], DTYPE)
    d0 = (tl.program_id(0) % slices) * COLUMNS
    store_rows(Out, i, i < N, d0, cast_output(s, Out.ptr.dtype.element_ty))


@stage
def sum_bias(dbias, part):
    """dbias plus the sum over a block of rows, in fp32."""
    return dbias + part


@kernel
def bias_kernel(
    Parts,  # (row blocks, width) fp32
    Ordering,
    Out,  # (V,) dbias
    first,
    width,
    row_blocks,
    V,
    BLOCK: tl.constexpr,
):
    """dbias of a group of the vocabulary."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = (place < width) & (first + place < V)
    dbias = tl.full((BLOCK,), 0.0, tl.float32)
    for block in range(0, row_blocks):
        dbias = sum_bias(dbias, tl.load(Parts + block * width + place, mask=mask, other=0.0))
    cols = first + place
    if Ordering is not None:
        cols = tl.load(Ordering + cols, mask=mask, other=0)
    tl.store(Out + cols, cast_output(dbias, Out.dtype.element_ty), mask=mask)
