# mypy: ignore-errors
"""tail=rank1: what rows lose to the filter is given back along one vector q over the vocabulary.

Dropped residuals R become m q^T, m their row sums, which are known, and q how the dropped probability of some sampled
rows is spread. dE then gains m (C^T q), dC gains q (E^T m): rows of residuals keep their sums, columns do as far as the
sample speaks for all. 128 rows serve dE as well as all rows do, and dC within a fifth (real heads, V = 49152, 262144).
Threads join their sums in fp64, as those of a mean logit do (`ordering`).
"""

import triton.language as tl

from .backend import kernel, stage
from .backward import recompute_logits
from .logits import soft_cap_slope
from .matrix import gather_rows
from .residual import load_upstream
from .rounding import exp, upcast


@stage
def add_tail(v, m, q):
    """v + m q^T, in fp32: m of the result's rows, q of its columns, or the other way round."""
    return v + m[:, None] * q[None, :]


@kernel
def tail_share_kernel(
    E,
    C,
    Bias,
    RowMax,
    LogSum,
    Sample,  # (samples,) int64 row numbers
    Live,  # (tiles, N) int8
    Share,  # (V,) fp32
    softcap,
    samples,
    N,
    V,
    D,
    TILES: tl.constexpr,
):
    """Softmax of the sampled rows in the segments that they drop, times the softcap's slope, summed over them; one
    program per tile of the vocabulary."""
    place0 = tl.program_id(0) * TILES.block_v
    cols = place0 + tl.arange(0, TILES.block_v)
    col_mask = cols < V
    total = tl.full((TILES.block_v,), 0.0, tl.float32)
    for first in range(0, samples, TILES.block_n):
        place = first + tl.arange(0, TILES.block_n)
        rows = tl.load(Sample + place, mask=place < samples, other=0)
        raw, z = recompute_logits(
            E, C, Bias, 0, rows, place < samples, place0, cols, cols, col_mask, D, softcap, TILES, False, False
        )  # fmt: skip
        p = exp((z - tl.load(RowMax + rows)[:, None]) - tl.load(LogSum + rows)[:, None])
        live = tl.load(Live + tl.program_id(0).to(tl.int64) * N + rows, mask=place < samples, other=1)
        total += tl.sum(tl.where((live == 0)[:, None], soft_cap_slope(p, raw, softcap), 0.0), 0)
    tl.store(Share + cols, total, mask=col_mask)


@kernel
def pull_of_words_kernel(C, Share, Parts, V, D, words, BLOCK: tl.constexpr):
    """(parts, D): C^T q over some `words` of the vocabulary; one program per (part, block of columns)."""
    blocks = tl.cdiv(D, BLOCK)
    part = tl.program_id(0) // blocks
    d0 = (tl.program_id(0) % blocks) * BLOCK
    total = tl.full((BLOCK, BLOCK), 0.0, tl.float32)
    for v0 in range(part * words, part * words + words, BLOCK):
        v = v0 + tl.arange(0, BLOCK)
        q = tl.load(Share + v, mask=v < V, other=0.0)
        # 0 times an infinity of a word without a share would be NaN.
        c = tl.where((q != 0)[:, None], upcast(gather_rows(C, v, v < V, d0, BLOCK)), 0.0)
        total += c * q[:, None]
    j = d0 + tl.arange(0, BLOCK)
    total = tl.sum(total.to(tl.float64), 0).to(tl.float32)
    tl.store(Parts + part.to(tl.int64) * D + j, total, mask=j < D)


@kernel
def pull_of_rows_kernel(E, Target, DLoss, DLse, Lost, Parts, N, D, words, ignore_index, BLOCK: tl.constexpr):
    """(parts, D): E^T m over some rows, m what each lost times its upstream gradients."""
    blocks = tl.cdiv(D, BLOCK)
    part = tl.program_id(0) // blocks
    d0 = (tl.program_id(0) % blocks) * BLOCK
    total = tl.full((BLOCK, BLOCK), 0.0, tl.float32)
    for row0 in range(part * words, part * words + words, BLOCK):
        i = row0 + tl.arange(0, BLOCK)
        target = tl.load(Target.ptr + i.to(tl.int64) * Target.stride_row, mask=i < N, other=ignore_index)
        valid = (i < N) & (target != ignore_index)
        lost = tl.load(Lost + i, mask=valid, other=0.0)
        m = tl.where(lost > 0, lost * (load_upstream(DLoss, i, valid) + load_upstream(DLse, i, valid)), 0.0)
        e = tl.where((m != 0)[:, None], upcast(gather_rows(E, i, valid, d0, BLOCK)), 0.0)
        total += e * m[:, None]
    j = d0 + tl.arange(0, BLOCK)
    total = tl.sum(total.to(tl.float64), 0).to(tl.float32)
    tl.store(Parts + part.to(tl.int64) * D + j, total, mask=j < D)
