# mypy: ignore-errors
"""The softmax of some sampled rows on a tile of the vocabulary."""

import triton.language as tl

from .backend import device_function
from .backward import recompute_logits
from .rounding import exp


@device_function
def sampled_softmax(
    E, C, Bias, RowMax, LogSum, Sample, first, samples, place0, cols, col_mask, D, softcap, TILES: tl.constexpr
):
    """(rows, mask, raw, p) of BLOCK_N rows of Sample from its place `first` on: their numbers, which of them there are,
    logits before the cap, and softmax."""
    place = first + tl.arange(0, TILES.block_n)
    mask = place < samples
    rows = tl.load(Sample + place, mask=mask, other=0)
    raw, z = recompute_logits(
        E, C, Bias, 0, rows, mask, place0, cols, cols, col_mask, D, softcap, TILES, False, False
    )  # fmt: skip
    m = tl.load(RowMax + rows, mask=mask, other=0.0)
    log_s = tl.load(LogSum + rows, mask=mask, other=0.0)
    return rows, mask, raw, exp((z - m[:, None]) - log_s[:, None])
