# mypy: ignore-errors
"""`Kept`: lists of the tiles that the owners of a gradient's blocks take in."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .backend import IS_INTERPRETED, device_function, kernel


class Kept(NamedTuple):
    """For each of `owners` blocks, and of the spans that its tiles are cut into, those that are not dropped; without
    lists it is all of them."""

    places: torch.Tensor | None  # (owners, spans, tiles of a span) int32, ascending, the first `count` of each
    count: torch.Tensor | None  # (owners, spans) int32


ALL = Kept(None, None)


def kept_lists(live: torch.Tensor, width: int) -> Kept:
    """Of (..., owners, tiles), not 0 for what is kept, in spans of `width` tiles."""
    *owners, tiles = live.shape
    spans = triton.cdiv(tiles, width)
    live = live.reshape(-1, tiles).contiguous()
    places = torch.empty((*owners, spans, width), dtype=torch.int32, device=live.device)
    count = torch.empty((*owners, spans), dtype=torch.int32, device=live.device)
    rows = min(256, triton.next_power_of_2(len(live))) if IS_INTERPRETED else 1
    kept_kernel[(triton.cdiv(len(live), rows) * spans,)](
        live, places, count, len(live), tiles, spans, width, ROWS=rows, BLOCK=128
    )
    return Kept(places, count)


@kernel
def kept_kernel(
    Live,  # (owners, tiles)
    Places,  # (owners, spans, width)
    Count,  # (owners, spans)
    owners,
    tiles,
    spans,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per (ROWS owners, span). As a sort and a sum of torch's, with what goes with them, three lists were
    1.5 ms of small launches under a profiler (H200); the backward pass of cce takes 1.46 products either way."""
    owner = (tl.program_id(0) // spans) * ROWS + tl.arange(0, ROWS)
    span = tl.program_id(0) % spans
    mask = owner < owners
    total = tl.full((ROWS,), 0, tl.int32)
    for k0 in range(0, width, BLOCK):
        k = k0 + tl.arange(0, BLOCK)
        tile = span * width + k
        there = owner.to(tl.int64)[:, None] * tiles + tile[None, :]
        inside = mask[:, None] & (k < width)[None, :] & (tile < tiles)[None, :]
        live = (tl.load(Live + there, mask=inside, other=0) != 0).to(tl.int32)
        place = (owner.to(tl.int64) * spans + span)[:, None] * width + total[:, None] + tl.cumsum(live, 1) - live
        tl.store(Places + place, tl.broadcast_to(tile[None, :], (ROWS, BLOCK)), mask=live != 0)
        total += tl.sum(live, 1)
    tl.store(Count + owner * spans + span, total, mask=mask)


@device_function
def kept_count(List, owner, span, tiles, width):
    """How many of an owner's `tiles` are kept in a span of `width`."""
    if List.places is None:
        return tl.minimum(tiles - span * width, width)
    else:
        return tl.load(List.count + owner * tl.cdiv(tiles, width) + span)


@device_function
def kept_tile(List, owner, span, k, tiles, width):
    """The k-th of them."""
    if List.places is None:
        return span * width + k
    else:
        return tl.load(List.places + (owner * tl.cdiv(tiles, width) + span) * width + k)
