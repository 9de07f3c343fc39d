# mypy: ignore-errors
"""Vocabulary orders: by mean logit over the rows that have a target (paper, section 4.3 "vocabulary sorting"), or by
mean probability over a sample of them. Descending, ties in the natural order.

The mean of E C^T over rows is C @ mean(E): two small deterministic kernels in fp32, no atomics, whatever the tiles.
Threads add their fp32 sums up in fp64: how many there are and which holds what depends on how E and C lie in memory,
and a sum of 64 numbers within 2^23 of each other is exact there. In fp32 a transposed C once put two words of nearly
the same mean the other way round, and a tenth of Kahan's dE came out with other bits. A mean logit says little of a
mean probability, which is what the filter looks at: at 2^-12, N=8192, V=256000, D=2304 of a drawn head 128 rows leave
.24 of the tiles live, the mean logit of all rows .35, no order .54. On an H100 the sample costs 0.04 of a product, as
much as the mean logit.
"""

import torch
import triton
import triton.language as tl

from .backend import IS_INTERPRETED, kernel
from .logits import add_bias
from .matrix import gather_rows
from .rounding import upcast
from .sampled_softmax import sampled_softmax

BLOCK = 64


@kernel
def mean_rows_kernel(E, Target, Mean, N, D, ignore_index, BLOCK: tl.constexpr):
    """(D,) mean of the rows of E that are not ignored; one program per block of columns."""
    d0 = tl.program_id(0) * BLOCK
    parts = tl.full((BLOCK, BLOCK), 0.0, tl.float32)
    count = 0
    for row0 in range(0, N, BLOCK):
        rows = row0 + tl.arange(0, BLOCK)
        target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=rows < N, other=ignore_index)
        valid = target != ignore_index
        parts += upcast(gather_rows(E, rows, valid, d0, BLOCK))
        count += tl.sum(valid.to(tl.int32), 0)
    total = tl.sum(parts.to(tl.float64), 0).to(tl.float32)
    divisor = tl.full((BLOCK,), 1.0, tl.float32) * tl.maximum(count, 1)
    cols = d0 + tl.arange(0, BLOCK)
    tl.store(Mean + cols, tl.div_rn(total, divisor), mask=cols < D)


@kernel
def mean_logit_kernel(C, Bias, Mean, MeanLogit, V, D, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """(V,) C @ mean + bias; one program per ROWS of the vocabulary."""
    cols = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = cols < V
    parts = tl.full((ROWS, BLOCK), 0.0, tl.float32)
    for d in range(0, D, BLOCK):
        j = d + tl.arange(0, BLOCK)
        mean = tl.load(Mean + j, mask=j < D, other=0.0)
        parts += upcast(gather_rows(C, cols, mask, d, BLOCK)) * mean[None, :]
    total = tl.sum(parts.to(tl.float64), 1).to(tl.float32)
    tl.store(MeanLogit + cols, add_bias(total, Bias, cols, mask), mask=mask)


def mean_logit_order(E, C, Bias, Target, shape, ignore_index, fp_fusion):
    """(V,) int64 vocabulary ids by descending mean logit."""
    n, v, d = shape
    mean = torch.empty(d, dtype=torch.float32, device=E.ptr.device)
    mean_logit = torch.empty(v, dtype=torch.float32, device=E.ptr.device)
    options = {"BLOCK": BLOCK, "enable_fp_fusion": fp_fusion}
    mean_rows_kernel[(triton.cdiv(d, BLOCK),)](E, Target, mean, n, d, ignore_index, **options)
    # Rows of C are alike, and the interpreter's time goes by the number of programs.
    rows = min(1024, max(BLOCK, triton.next_power_of_2(v))) if IS_INTERPRETED else BLOCK
    mean_logit_kernel[(triton.cdiv(v, rows),)](C, Bias, mean, mean_logit, v, d, ROWS=rows, **options)
    return torch.sort(mean_logit, descending=True, stable=True).indices


@kernel
def mean_prob_kernel(
    E,
    C,
    Bias,
    RowMax,
    LogSum,
    Sample,  # (samples,) int64 row numbers
    MeanProb,  # (V,) fp32
    softcap,
    samples,
    V,
    D,
    TILES: tl.constexpr,
):
    """Mean softmax of the sampled rows; one program per block of the vocabulary."""
    place0 = tl.program_id(0) * TILES.block_v
    cols = place0 + tl.arange(0, TILES.block_v)
    col_mask = cols < V
    total = tl.full((TILES.block_v,), 0.0, tl.float32)
    for first in range(0, samples, TILES.block_n):
        _, mask, _, p = sampled_softmax(
            E, C, Bias, RowMax, LogSum, Sample, first, samples, place0, cols, col_mask, D, softcap, TILES
        )  # fmt: skip
        total += tl.sum(tl.where(mask[:, None], p, 0.0), 0)
    tl.store(MeanProb + cols, total / samples, mask=col_mask)


def mean_prob_order(E, C, Bias, RowMax, LogSum, sample, softcap, shape, tiles, options):
    """(V,) int64 vocabulary ids by descending mean probability over the sampled rows."""
    _, v, d = shape
    mean_prob = torch.empty(v, dtype=torch.float32, device=E.ptr.device)
    mean_prob_kernel[(triton.cdiv(v, tiles.block_v),)](
        E, C, Bias, RowMax, LogSum, sample, mean_prob, softcap, len(sample), v, d, TILES=tiles, **options
    )
    return torch.sort(mean_prob, descending=True, stable=True).indices
