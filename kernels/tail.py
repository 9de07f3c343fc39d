# mypy: ignore-errors
"""tail=rank1: what rows lose to the filter is given back along one vector q over the vocabulary.

Dropped residuals R become m q^T, m their row sums, which are known, and q how the dropped probability of some sampled
rows is spread. dE then gains m (C^T q), dC gains q (E^T m): rows of residuals keep their sums, columns do as far as the
sample speaks for all. 128 rows serve dE as well as all rows do, and dC within a fifth (real heads, V = 49152, 262144).
Threads join their sums in fp64, as those of a mean logit do (`ordering`).

Targets are kept whatever they are: one that is all but certain would be most of what its row drops, and of q.
"""

import triton.language as tl

from .accumulate import HEADROOM
from .backend import device_function, kernel, stage
from .logits import soft_cap_slope
from .matrix import gather_rows
from .record import load_base, load_log_mass, share_of, split_and_rows
from .residual import load_row_data
from .rounding import upcast
from .sampled_softmax import sampled_softmax


@stage
def add_tail(v, m, q):
    """v + m q^T, in fp32: m of the result's rows, q of its columns, or the other way round."""
    return v + m[:, None] * q[None, :]


@device_function
def with_tail_of_e(v, lost, rows, Pull, j, columns):
    """Sums of dE, at HEADROOM over the scale of their rows, with what these lost. An ignored row has g = 0, and 0 times
    a NaN in C is NaN."""
    lost = tl.where(lost > 0, lost * (rows.dloss + rows.dlse) * HEADROOM, 0.0)
    return tl.where(rows.valid[:, None], add_tail(v, lost, tl.load(Pull + j, mask=j < columns, other=0.0)), 0.0)


@kernel
def lost_rows_kernel(
    Record,
    Target,
    RowMax,
    LogSum,
    DLoss,
    DLse,
    Live,  # (tiles, N) int8
    Lost,  # (splits, N) fp64, whatever the threads that add
    segments,
    per_split,  # of them
    per_tile,
    N,
    ignore_index,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The probability in the tiles that rows drop; one program per split of the forward pass and ROWS of them."""
    split, i = split_and_rows(N, ROWS)
    rows = load_row_data(Target, RowMax, LogSum, DLoss, DLse, i, N, ignore_index)
    base, end = load_base(Record, split, i, N), tl.minimum((split + 1) * per_split, segments)
    lost = tl.full((ROWS,), 0.0, tl.float64)
    for first in range(split * per_split, end, BLOCK):
        segment = first + tl.arange(0, BLOCK)
        mask = (segment < end)[:, None] & rows.valid[None, :]
        log_mass, _ = load_log_mass(Record, base, segment, i, mask, N)
        tile = (segment // per_tile).to(tl.int64)
        live = tl.load(Live + tile[:, None] * N + i[None, :], mask=mask, other=1)
        lost += tl.sum(tl.where(live == 0, share_of(log_mass, rows), 0.0).to(tl.float64), 0)
    tl.store(Lost + split.to(tl.int64) * N + i, lost, mask=i < N)


@kernel
def tail_share_kernel(
    E,
    C,
    Bias,
    RowMax,
    LogSum,
    Sample,  # (samples,) int64 row numbers
    Live,  # (segments or tiles, N) int8
    Share,  # (V,) fp32
    Lost,  # (segments or tiles,) fp32
    softcap,
    samples,
    N,
    V,
    D,
    TILES: tl.constexpr,
):
    """Softmax of the sampled rows in the segments or tiles that they drop, times the softcap's slope, summed over them;
    and without the slope, over words as well. One program per BLOCK_V words of the vocabulary."""
    place0 = tl.program_id(0) * TILES.block_v
    cols = place0 + tl.arange(0, TILES.block_v)
    col_mask = cols < V
    total = tl.full((TILES.block_v,), 0.0, tl.float32)
    lost = tl.full((TILES.block_v,), 0.0, tl.float32)
    for first in range(0, samples, TILES.block_n):
        rows, mask, raw, p = sampled_softmax(
            E, C, Bias, RowMax, LogSum, Sample, first, samples, place0, cols, col_mask, D, softcap, TILES
        )  # fmt: skip
        live = tl.load(Live + tl.program_id(0).to(tl.int64) * N + rows, mask=mask, other=1)
        dropped = (live == 0)[:, None] & col_mask[None, :]
        total += tl.sum(tl.where(dropped, soft_cap_slope(p, raw, softcap), 0.0), 0)
        lost += tl.sum(tl.where(dropped, p, 0.0), 0)
    tl.store(Share + cols, total, mask=col_mask)
    tl.store(Lost + tl.program_id(0), tl.sum(lost, 0))


@kernel
def pull_kernel(X, Weights, Parts, count, D, rows, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """(parts, D): X^T w over so many `rows` of X; one program per part and WIDTH columns. Formed by the programs that
    find the share, which have read their words once and need no weights, it takes no less: 0.92 to 1.04 ms for 0.41 and
    0.45 (H200, V=256000, D=2304)."""
    blocks = tl.cdiv(D, WIDTH)
    part = tl.program_id(0) // blocks
    d0 = (tl.program_id(0) % blocks) * WIDTH
    total = tl.full((BLOCK, WIDTH), 0.0, tl.float32)
    for first in range(part * rows, part * rows + rows, BLOCK):
        i = first + tl.arange(0, BLOCK)
        w = tl.load(Weights + i, mask=i < count, other=0.0)
        # 0 times an infinity of a row without weight would be NaN.
        x = tl.where((w != 0)[:, None], upcast(gather_rows(X, i, i < count, d0, WIDTH)), 0.0)
        total += x * w[:, None]
    j = d0 + tl.arange(0, WIDTH)
    total = tl.sum(total.to(tl.float64), 0).to(tl.float32)
    tl.store(Parts + part.to(tl.int64) * D + j, total, mask=j < D)
