# mypy: ignore-errors
"""dC of what rows keep: a row segment is one row of E and BLOCK_V columns of the vocabulary, here a row of a tile.

The forward pass recorded the probability of every segment. Where that is under eps no entry is above it, and nothing is
computed again; the rows that are left of a vocabulary tile are gathered, so that their products are dense tiles.
"""

import triton.language as tl

from .backend import commits, device_function, kernel
from .backward import recompute_logits
from .matrix import gather_rows, load_rows, store_rows
from .products import WHOLE, cast_output
from .record import load_base, load_log_mass, share_of, split_and_rows
from .residual import cast_residual, is_live, is_target, load_row_data, logit_gradient, softmax
from .rounding import dot
from .scales import relative_scale
from .tail import add_tail


@kernel
def live_rows_kernel(
    Record,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Live,  # (segments, N) int8
    Lost,  # (splits, N) fp64, whatever the threads that add
    Count,  # (splits, N) int32
    eps,
    segments,
    per_split,  # of them
    N,
    ignore_index,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    """Which segments are kept, how many those are, and the probability in the others; one program per split of the
    forward pass and ROWS of them.

    A segment's entries are at most its probability times their row's upstream gradients. Its target's may be as large
    as those, so that a target's segment is kept unless eps is 1 or more.
    """
    split, i = split_and_rows(N, ROWS)
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    of_target = (rows.target // SEGMENT).to(tl.int32)
    base, end = load_base(Record, split, i, N), tl.minimum((split + 1) * per_split, segments)
    lost, count = tl.full((ROWS,), 0.0, tl.float64), tl.full((BLOCK, ROWS), 0, tl.int32)
    for first in range(split * per_split, end, BLOCK):
        segment = first + tl.arange(0, BLOCK)
        mask = (segment < end)[:, None] & (i < N)[None, :]
        log_mass, above = load_log_mass(Record, base, segment, i, mask, N)
        mass, largest = share_of(log_mass, rows), share_of(above, rows)
        largest = tl.where(segment[:, None] == of_target[None, :], 1.0, largest)
        live = is_live(largest * rows.size[None, :], rows.size[None, :], eps) & rows.valid[None, :]
        tl.store(Live + segment.to(tl.int64)[:, None] * N + i[None, :], live.to(tl.int8), mask=mask)
        lost += tl.sum(tl.where(mask & rows.valid[None, :] & (live == 0), mass, 0.0).to(tl.float64), 0)
        count += (mask & live).to(tl.int32)  # summed in the end: in every round it took 0.06 ms beside 0.05 (H200)
    tl.store(Lost + split.to(tl.int64) * N + i, lost, mask=i < N)
    tl.store(Count + split.to(tl.int64) * N + i, tl.sum(count, 0), mask=i < N)


@kernel
def row_residuals_kernel(
    E,
    C,
    Bias,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Rows,  # (pairs,) int32 rows of E, those of a tile after those of the one before, ascending
    Chunk,  # (chunks, 3) int32: a tile of the vocabulary, where its next rows begin, how many they are
    Top,  # (1,) fp32 power of two, the scale of dC's residuals; None without Out
    Out,  # (chunks BLOCK_N, BLOCK_V); None where nobody multiplies them
    Live,  # (chunks BLOCK_N, BLOCK_V / 8) uint8: which entries are live, as pack_bits has them
    softcap,
    eps,
    first,
    N,
    V,
    D,
    ignore_index,
    KEEP_TARGETS: tl.constexpr,
    DTYPE: tl.constexpr,
    TILES: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """Residuals of BLOCK_N rows that one vocabulary tile keeps; one program per chunk of them, from `first` on.
    KEEP_TARGETS calls their targets live, however small their residuals are."""
    chunk = Chunk + 3 * (first + tl.program_id(0))
    tile, start, count = tl.load(chunk), tl.load(chunk + 1), tl.load(chunk + 2)
    if count == 0:
        return
    place = tl.arange(0, TILES.block_n)
    i = tl.load(Rows + start + place, mask=place < count, other=N)  # N is no row
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    col0 = tile * TILES.block_v
    cols = col0 + tl.arange(0, TILES.block_v)
    col_mask = cols < V
    raw, z = recompute_logits(
        E, C, Bias, 0, i, i < N, col0, cols, cols, col_mask, D, softcap, TILES, False, C_DESCRIPTOR
    )  # fmt: skip
    # Past V there are numbers, too, which nobody reads.
    hit = is_target(rows.target, col0, TILES.block_v)
    g = logit_gradient(softmax(z, rows), hit, raw, rows, DLse, softcap)
    live = is_live(tl.abs(g), rows.size[:, None], eps)
    if KEEP_TARGETS:
        live = live | (hit & rows.valid[:, None])
    line = (tl.program_id(0).to(tl.int64) * TILES.block_n + place)[:, None]
    if Out is not None:
        relative = rows.scale if DTYPE == tl.float32 else relative_scale(rows.scale, tl.load(Top))  # noqa: SIM300
        out = line * TILES.block_v + tl.arange(0, TILES.block_v)[None, :]
        tl.store(Out + out, cast_residual(g * relative[:, None], DTYPE))
    BYTES: tl.constexpr = TILES.block_v // 8
    tl.store(Live + line * BYTES + tl.arange(0, BYTES)[None, :], pack_bits(live))


@device_function
def pack_bits(x):
    """(n, k / 8) uint8 of (n, k) truths: a byte has every (k / 8)th of them, the first in the lowest bit, which one
    thread holds; eight in a row are spread over four."""
    bits = x.to(tl.int32) << (tl.arange(0, x.shape[1]) // (x.shape[1] // 8))[None, :]
    return tl.sum(tl.reshape(bits, (x.shape[0], 8, x.shape[1] // 8)), 1).to(tl.uint8)


@device_function
def unpack_bits(bits):
    """(n, 8 k) int8, 0 or 1 each."""
    x = (bits.to(tl.int32)[:, None, :] >> tl.arange(0, 8)[None, :, None]) & 1
    return tl.reshape(x, (bits.shape[0], 8 * bits.shape[1])).to(tl.int8)


@kernel
def mark_words_kernel(
    Live,  # (chunks BLOCK_N, BLOCK_V / 8) uint8 of this group
    Rows,
    Chunk,
    Place,  # (N,) int32 where rows are among those of all blocks; None: as they are
    Words,  # (row blocks, V) int8: of which words some row of a block has a live entry
    first,
    N,
    V,
    TILES: tl.constexpr,
    STEP: tl.constexpr,
):
    """Marks the words of what is live; one program per chunk. Beside the products it would spill their registers:
    5.1 ms for 1.8 (H200, N=8192, V=256000, D=2304). Programs may mark one word at a time, all with the same mark."""
    chunk = Chunk + 3 * (first + tl.program_id(0))
    tile, start, count = tl.load(chunk), tl.load(chunk + 1), tl.load(chunk + 2)
    if count == 0:
        return
    cols = tile * TILES.block_v + tl.arange(0, TILES.block_v)
    for k in range(0, TILES.block_n, STEP):
        place = k + tl.arange(0, STEP)
        i = tl.load(Rows + start + place, mask=place < count, other=0)
        BYTES: tl.constexpr = TILES.block_v // 8
        at = (tl.program_id(0) * TILES.block_n + place).to(tl.int64)[:, None] * BYTES
        live = unpack_bits(tl.load(Live + at + tl.arange(0, BYTES)[None, :]))  # nothing is, past `count`
        if Place is not None:
            i = tl.load(Place + i)
        words = Words + (i // TILES.block_n).to(tl.int64)[:, None] * V + cols[None, :]
        tl.store(words, live, mask=(live != 0) & (cols < V)[None, :])


@commits("tile_product")
def segment_product(
    v,
    G,
    M,
    List,
    start,
    count,
    first,
    out0,
    d0,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
):
    """(ROWS, PRODUCT.columns) fp32: v and kept residuals of an owner times the rows of M that its List names.

    One sum in the tensor core, from chunk to chunk. A chunk of G holds CHUNK of them: of columns (its rows are the
    result's), or, TRANSPOSED, of rows (its columns from `out0` on are the result's rows)."""
    STEP: tl.constexpr = CHUNK if WHOLE or PRODUCT.depth > CHUNK else PRODUCT.depth
    out = tl.arange(0, ROWS)
    ahead = tl.arange(0, STEP)
    here = tl.load(List + start + ahead, mask=ahead < count, other=0)
    for k0 in range(0, count, STEP):
        k = k0 + tl.arange(0, STEP)
        m = gather_rows(M, here, k < count, d0, PRODUCT.columns)
        ahead = k + STEP  # a gather that waits for its own numbers is fetched one step ahead at most
        here = tl.load(List + start + ahead, mask=ahead < count, other=0)
        if TRANSPOSED:
            place0 = first * CHUNK + k0
            g = tl.trans(load_rows(G, place0, place0 + tl.arange(0, STEP), k >= 0, out0, ROWS, G_DESCRIPTOR))
        else:
            place0 = (first + k0 // CHUNK) * ROWS
            g = load_rows(G, place0, place0 + out, out >= 0, k0 % CHUNK, STEP, G_DESCRIPTOR)
        v = dot(g, m, v)
    return v


@kernel
def row_segments_kernel(
    G,  # (chunks BLOCK_N, BLOCK_V) of this group
    E,
    Rows,
    Start,  # (tiles + 1,) int32 into Rows
    First,  # (tiles + 1,) int32 into the chunks
    Top,
    Share,  # (V,) fp32, and
    Pull,  # (D,) fp32: the tail; None without one
    Out,  # (V, D) dC
    tile,  # the first of this group
    first,  # its first chunk
    V,
    D,
    TILES: tl.constexpr,
    ROWS: tl.constexpr,
    PRODUCT: tl.constexpr,
    G_DESCRIPTOR: tl.constexpr,
):
    """dC of a group of vocabulary tiles; one program per (tile, ROWS of its words, columns)."""
    slices = tl.cdiv(D, PRODUCT.columns)
    PARTS: tl.constexpr = TILES.block_v // ROWS
    tile += tl.program_id(0) // slices // PARTS
    out0 = (tl.program_id(0) // slices % PARTS) * ROWS
    d0 = (tl.program_id(0) % slices) * PRODUCT.columns
    start, chunk = tl.load(Start + tile), tl.load(First + tile)
    v = tl.full((ROWS, PRODUCT.columns), 0.0, tl.float32)
    v = segment_product(
        v, G, E, Rows, start, tl.load(Start + tile + 1) - start, chunk - first, out0, d0, TILES.block_n, ROWS, True,
        PRODUCT, G_DESCRIPTOR
    )  # fmt: skip
    v = v * tl.load(Top)
    cols = tile * TILES.block_v + out0 + tl.arange(0, ROWS)
    if Share is not None:
        j = d0 + tl.arange(0, PRODUCT.columns)
        share = tl.load(Share + cols, mask=cols < V, other=0.0)
        v = add_tail(v, share, tl.load(Pull + j, mask=j < Out.columns, other=0.0))
    store_rows(Out, cols, cols < V, d0, cast_output(v, Out.ptr.dtype.element_ty))
