# mypy: ignore-errors
"""The backward pass (paper, Algorithm 3): recompute a tile, form its residual, filter, multiply, accumulate.

Two kernels with the same tiles and the same decisions: programs of one own rows of dE, programs of the other own
rows of dC (and entries of dbias). Each output has one writer and a fixed order, so gradients repeat bit for bit.
"""

import triton.language as tl

from .accumulate import HEADROOM, accumulate, rescale
from .backend import device_function, kernel, stage
from .logits import add_bias, dot_logits, mask_columns, soft_cap
from .matrix import gather_rows
from .residual import cast_residual, is_live, load_row_data, logit_gradient, softmax
from .rounding import dot


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
def recompute_logits(E, C, Bias, i, row_mask, cols, col_mask, D, softcap, TILES: tl.constexpr):
    """(raw, z): a tile of logits once more, before and after the cap. Its products may be joined in other tiles than
    those of the forward pass."""
    raw = dot_logits(E, C, 0, i, row_mask, 0, cols, col_mask, D, TILES, False, False)
    raw = add_bias(raw, Bias, cols, col_mask)
    return raw, soft_cap(raw, softcap)


@device_function
def tile_gradient(E, C, Bias, i, row_mask, rows, cols, col_mask, col_end, V, D, softcap, TILES: tl.constexpr):
    """(g, p): the residual of one tile, divided by each row's scale, and its softmax."""
    raw, z = recompute_logits(E, C, Bias, i, row_mask, cols, col_mask, D, softcap, TILES)
    if col_end > V:  # the last tile alone
        z = mask_columns(z, col_mask)
    p = softmax(z, rows)
    return logit_gradient(p, raw, rows, cols, col_mask, V, softcap), p


@stage
def tile_product(a, b):
    """The fp32 product of a tile of residuals and rows of the other operand: an increment."""
    return dot(a, b, tl.full((a.shape[0], b.shape[1]), 0.0, tl.float32))


@stage
def sum_bias(dbias, g, rows):
    """dbias plus the columns of a tile of residuals, in fp32."""
    return dbias + tl.sum(g * rows.scale[:, None], 0)


@kernel
def embeddings_kernel(
    E,
    C,
    Bias,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Ordering,
    Acc,
    Kept,  # (row blocks,) int32 or None
    Mass,  # (N,) fp32 or None
    softcap,
    eps,
    N,
    V,
    D,
    ignore_index,
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
):
    """dE: one program per block of rows walks the vocabulary."""
    i = tl.program_id(0) * TILES.block_n + tl.arange(0, TILES.block_n)
    row_mask = i < N
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    kept = 0
    mass = tl.full((TILES.block_n,), 0.0, tl.float32)
    for tile in range(0, tl.cdiv(V, TILES.block_v)):
        cols, col_mask = vocabulary_tile(Ordering, tile, V, TILES.block_v)
        col_end = (tile + 1) * TILES.block_v
        g, p = tile_gradient(E, C, Bias, i, row_mask, rows, cols, col_mask, col_end, V, D, softcap, TILES)
        if is_live(g, rows, eps, VARIANT.filter_e):
            kept += 1
            g_storage = cast_residual(g, C.ptr.dtype.element_ty)
            for d in range(0, D, TILES.block_d):
                c = gather_rows(C, cols, col_mask, d, TILES.block_d)
                v = tile_product(g_storage, c)
                # An ignored row has g = 0, and 0 times a NaN in C is NaN.
                v = tl.where(rows.valid[:, None], v * HEADROOM, 0.0)
                j = d + tl.arange(0, TILES.block_d)
                offsets = i.to(tl.int64)[:, None] * Acc.columns + j[None, :]
                accumulate(
                    Acc, offsets, row_mask[:, None] & (j < Acc.columns)[None, :], v, VARIANT, C.ptr.dtype.element_ty
                )
            tl.debug_barrier()  # the next tile's loads of the sums may be made by other threads than these stores
        elif Mass is not None:
            mass += tl.sum(tl.where(rows.valid[:, None] & col_mask[None, :], p, 0.0), 1)
    # Sums are kept at the scale of a probability, where a companion in fp16 does not underflow: a row of residuals is
    # at most 4 in sum, so that with HEADROOM they stay within half the largest entry of C.
    for d in range(0, D, TILES.block_d):
        j = d + tl.arange(0, TILES.block_d)
        offsets = i.to(tl.int64)[:, None] * Acc.columns + j[None, :]
        rescale(Acc, offsets, row_mask[:, None] & (j < Acc.columns)[None, :], rows.scale[:, None])
    if Kept is not None:
        tl.store(Kept + tl.program_id(0), kept)
    if Mass is not None:
        tl.store(Mass + i, mass, mask=row_mask)


@kernel
def classifier_kernel(
    E,
    C,
    Bias,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Ordering,
    Acc,  # its sum is None where only dbias is wanted
    DBias,  # (V,) fp32 or None
    Kept,  # (vocabulary blocks,) int32 or None
    Mass,  # (vocabulary blocks, N) fp32 or None
    softcap,
    eps,
    N,
    V,
    D,
    ignore_index,
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
):
    """dC and dbias: one program per block of the vocabulary walks the rows.

    dbias takes in every tile, filtered or not."""
    tile = tl.program_id(0)
    cols, col_mask = vocabulary_tile(Ordering, tile, V, TILES.block_v)
    col_end = (tile + 1) * TILES.block_v
    kept = 0
    dbias = tl.full((TILES.block_v,), 0.0, tl.float32)
    for row0 in range(0, N, TILES.block_n):
        i = row0 + tl.arange(0, TILES.block_n)
        row_mask = i < N
        rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
        g, p = tile_gradient(E, C, Bias, i, row_mask, rows, cols, col_mask, col_end, V, D, softcap, TILES)
        if DBias is not None:
            dbias = sum_bias(dbias, g, rows)
        if Acc.sum is not None:
            if is_live(g, rows, eps, VARIANT.filter_c):
                kept += 1
                # The rows of a tile add up, so they share one scale: the largest among them. fp32 needs none, and
                # would lose rows that are 2^126 below another.
                if E.ptr.dtype.element_ty == tl.float32:
                    scale = 1.0
                    g_storage = g * rows.scale[:, None]
                else:
                    scale = tl.max(tl.where(rows.valid, rows.scale, 0.0), 0)
                    g_storage = cast_residual(g * relative_scale(rows.scale, scale)[:, None], E.ptr.dtype.element_ty)
                for d in range(0, D, TILES.block_d):
                    # An ignored row may hold NaN, and 0 * NaN is NaN: it is not even loaded.
                    e = gather_rows(E, i, rows.valid, d, TILES.block_d)
                    v = tile_product(tl.trans(g_storage), e)
                    v = v * scale
                    j = d + tl.arange(0, TILES.block_d)
                    offsets = cols.to(tl.int64)[:, None] * Acc.columns + j[None, :]
                    mask = col_mask[:, None] & (j < Acc.columns)[None, :]
                    accumulate(Acc, offsets, mask, v, VARIANT, E.ptr.dtype.element_ty)
                tl.debug_barrier()  # as in embeddings_kernel
            elif Mass is not None:
                skipped = tl.sum(tl.where(rows.valid[:, None] & col_mask[None, :], p, 0.0), 1)
                tl.store(Mass + tile.to(tl.int64) * N + i, skipped, mask=row_mask)
    if DBias is not None:
        tl.store(DBias + cols, dbias, mask=col_mask)
    if Kept is not None:
        tl.store(Kept + tile, kept)


@device_function
def relative_scale(scale, top):
    """scale / top for powers of two with scale <= top, by their exponents: exact, and 0 below 2^-126."""
    exponent = (scale.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    top_exponent = (top.to(tl.uint32, bitcast=True) >> 23).to(tl.int32)
    biased = tl.maximum(127 + exponent - top_exponent, 0)
    return (biased.to(tl.uint32) << 23).to(tl.float32, bitcast=True)
