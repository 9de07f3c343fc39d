# mypy: ignore-errors
"""dE of what columns keep: a column segment is BLOCK_N rows of E and one word of the vocabulary, a column of a tile.

A word is kept for a block of rows if any of them has a live entry there, which the residuals of `row_segments` have
shown. Rows of a block share most of their words: at eps = 2^-14, 128 rows of a real head (V=49152) keep 14 % of the
words for 0.6 % of the entries. The words of a block are gathered, so that their products are dense tiles.
"""

import triton.language as tl

from .accumulate import HEADROOM, rescale
from .backend import device_function, kernel
from .backward import recompute_logits
from .carried import load_carried, store_carried
from .matrix import store_rows
from .products import cast_output
from .residual import cast_residual, load_row_data, logit_gradient, softmax
from .row_segments import segment_product
from .tail import with_tail_of_e


@device_function
def rows_of_block(Order, place, N):
    """The rows at `place` in their order; N, which is no row, past the last."""
    if Order is None:
        return place
    else:
        return tl.load(Order + place, mask=place < N, other=N)


@kernel
def column_residuals_kernel(
    E,
    C,
    Bias,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Order,  # (N,) int64 rows, those of a block after those of the one before; None: as they are
    Words,  # (pairs,) int32 words, those of a block of rows after those of the one before, ascending
    Start,  # (row blocks + 1,) int32 into Words
    First,  # (row blocks + 1,) int32 into the chunks
    Place,  # (row blocks + 1,) int32: where in Out each block's are, in chunks, the first ones at `first`
    Out,  # (chunks BLOCK_N, BLOCK_V)
    Kept,  # (chunks, BLOCK_N) fp32 probability, of those of all turns
    softcap,
    block,  # the first of this turn
    blocks,  # of it
    begin,  # chunks of each block that earlier turns had
    first,
    N,
    V,
    D,
    ignore_index,
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
):
    """Residuals of BLOCK_V words that one block of rows keeps; one program per chunk of them, the first chunks of all
    blocks before the second ones: neighbours have words in common, and find their rows of C in the cache."""
    block += tl.program_id(0) % blocks
    chunk = begin + tl.program_id(0) // blocks
    number = tl.load(First + block) + chunk
    if number >= tl.load(First + block + 1):
        return
    start = tl.load(Start + block) + chunk * TILES.block_v
    row0 = block * TILES.block_n
    i = rows_of_block(Order, row0 + tl.arange(0, TILES.block_n), N)
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    place = tl.arange(0, TILES.block_v)
    end = tl.load(Start + block + 1)
    mask = start + place < end
    cols = tl.load(Words + start + place, mask=mask, other=V)  # V is no word
    raw, z = recompute_logits(
        E, C, Bias, row0, i, i < N, 0, cols, cols, mask, D, softcap, TILES, E_DESCRIPTOR, False
    )  # fmt: skip
    p = softmax(z, rows)
    is_whole = start + TILES.block_v <= end
    if is_whole == 0:
        p = tl.where(mask[None, :], p, 0.0)
    kept = tl.where(rows.valid, tl.sum(p, 1), 0.0)
    tl.store(Kept + number * TILES.block_n + tl.arange(0, TILES.block_n), kept)
    g = logit_gradient(p, cols[None, :] == rows.target.to(tl.int32)[:, None], raw, rows, DLse, softcap)
    if is_whole == 0:
        g = tl.where(mask[None, :], g, 0.0)
    at = tl.load(Place + block) - first + chunk - begin
    out = (at.to(tl.int64) * TILES.block_n + tl.arange(0, TILES.block_n))[:, None] * TILES.block_v
    tl.store(Out + out + place[None, :], cast_residual(g, DTYPE))


@kernel
def column_segments_kernel(
    G,  # (chunks BLOCK_N, BLOCK_V) of this turn
    C,
    Order,
    Words,
    Start,  # (row blocks + 1,) int32 into Words
    First,  # (row blocks + 1,) int32 into the chunks
    Place,  # (row blocks + 1,) int32 into those of G, the first ones at `first`
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Kept,
    Pull,  # (D,) fp32; None without a tail
    Lost,  # (N,) fp32 probability in dropped words
    Out,  # (N, D) dE
    Carried,  # sums of a block that has chunks in several turns; None where none has
    block,  # the first of this turn
    begin,  # chunks of each block that earlier turns had
    size,  # and those of this turn, at most
    first,
    N,
    V,
    D,
    ignore_index,
    TILES: tl.constexpr,
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
):
    """dE of row blocks whose last chunks this turn has, or their sums so far; one program per (block, columns)."""
    slices = tl.cdiv(D, PRODUCT.columns)
    block += tl.program_id(0) // slices
    d0 = (tl.program_id(0) % slices) * PRODUCT.columns
    start, chunk, end = tl.load(Start + block), tl.load(First + block), tl.load(First + block + 1)
    count = tl.load(Start + block + 1) - start
    if Carried is not None:  # noqa: SIM102 - the condition outside is the compiler's
        if (begin > 0) & (begin >= end - chunk):  # an earlier turn had the last
            return
    here = tl.arange(0, TILES.block_n)
    place = block * TILES.block_n + here
    v = tl.full((TILES.block_n, PRODUCT.columns), 0.0, tl.float32)
    if Carried is not None:
        before = rows_of_block(Order, place, N)  # and again after the product, which leaves no registers for it
        v = load_carried(Carried, before, (before < N) & (begin > 0), d0, PRODUCT.columns)
    of_turn = tl.minimum(count - begin * TILES.block_v, size * TILES.block_v)
    v = segment_product(
        v, G, C, Words, start + begin * TILES.block_v, of_turn, tl.load(Place + block) - first, 0, d0, TILES.block_v,
        TILES.block_n, False, PRODUCT, G_DESCRIPTOR
    )  # fmt: skip
    i = rows_of_block(Order, place, N)
    if Carried is not None:  # noqa: SIM102
        if begin + size < end - chunk:
            store_carried(Carried, i, i < N, d0, v)
            return
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    kept = tl.full((TILES.block_n,), 0.0, tl.float32)
    for k in range(chunk, end):
        kept += tl.load(Kept + k * TILES.block_n + here)
    keeps_all = count == V
    lost = tl.where(rows.valid & (keeps_all == 0), tl.maximum(1.0 - kept, 0.0), 0.0)
    tl.store(Lost + i, lost, mask=i < N)
    # An ignored row has g = 0, and 0 times a NaN in C is NaN.
    v = tl.where(rows.valid[:, None], v * HEADROOM, 0.0)
    if Pull is not None:
        v = with_tail_of_e(v, lost, rows, Pull, d0 + tl.arange(0, PRODUCT.columns), Out.columns)
    v = rescale(v, rows.scale[:, None], tl.float32)
    store_rows(Out, i, i < N, d0, cast_output(v, Out.ptr.dtype.element_ty))
