# mypy: ignore-errors
"""What the forward pass records for granularity=segment, and for filters of tiles that look ahead: the probability of
every segment.

In fp16, and so for twice the segments that fp32 would take the same memory for. A logit may be large where differences
of logits are not: what is rounded is the distance to a maximum that its row had in the same split.
"""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function
from .rounding import downcast, exp, fast_log, upcast


class Record(NamedTuple):
    """Of every row's segments, in the order of the vocabulary."""

    log_mass: torch.Tensor  # (segments, N) fp16: the log of the sum of exp(z) over a segment, less its `base`
    base: torch.Tensor  # (splits, N) fp32: the row's maximum after the first tile of the split


@device_function
def record_mass(Out, m, base, parts, segment, rows, N, V, SEGMENT: tl.constexpr):
    """Stores log masses of `segment` (segments,), from their `parts` (BLOCK_N, segments) of a running sum with the
    finite maximum m."""
    log_mass = (m - base)[:, None] + fast_log(parts)
    mask = (rows < N)[:, None] & (segment < tl.cdiv(V, SEGMENT))[None, :]
    offsets = segment.to(tl.int64)[None, :] * N + rows[:, None]
    tl.store(Out.log_mass + offsets, downcast(log_mass, tl.float16), mask=mask)


@device_function
def split_and_rows(N, ROWS: tl.constexpr):
    """(split of the forward pass, row numbers (ROWS,)) of a program; one for each pair."""
    blocks = tl.cdiv(N, ROWS)
    return tl.program_id(0) // blocks, (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)


@device_function
def load_base(From, split, rows, N):
    """(rows,) what log masses of a split are less than they are."""
    return tl.load(From.base + split.to(tl.int64) * N + rows, mask=rows < N, other=0.0)


@device_function
def load_log_mass(From, base, segment, rows, mask, N):
    """(log mass, one that is not below what was rounded) of a split's segments, (segments, rows); -inf out of mask."""
    at = segment.to(tl.int64)[:, None] * N + rows[None, :]
    distance = upcast(tl.load(From.log_mass + at, mask=mask, other=float("-inf")))
    log_mass = base[None, :] + distance
    # Half a unit in the last place of 11 digits; 2^-25 below 2^-14. -inf stays what it is.
    return log_mass, log_mass + (tl.minimum(tl.abs(distance), 65504.0) * 2.0**-11 + 2.0**-25)


@device_function
def share_of(log_mass, rows):
    """(segments, BLOCK_N) probability of each row."""
    return exp((log_mass - rows.max[None, :]) - rows.log_sum[None, :])
