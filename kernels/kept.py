# mypy: ignore-errors
"""`Kept`: lists of the tiles that the owners of a gradient's blocks take in."""

from typing import NamedTuple

import torch
import triton.language as tl

from .backend import device_function


class Kept(NamedTuple):
    """For each of `owners` blocks, and of the spans that its tiles are cut into, those that are not dropped; without
    lists it is all of them."""

    places: torch.Tensor | None  # (owners, spans, tiles of a span) int32, ascending, the first `count` of each
    count: torch.Tensor | None  # (owners, spans) int32

    def part(self, index: int | slice) -> "Kept":
        """Along the first dimension of lists."""
        return Kept(self.places[index], self.count[index])


ALL = Kept(None, None)


def kept_lists(live: torch.Tensor, width: int) -> Kept:
    """Of (..., owners, tiles), not 0 for what is kept, in spans of `width` tiles."""
    tiles = live.shape[-1]
    spans = torch.nn.functional.pad(live != 0, (0, -tiles % width)).unflatten(-1, (-1, width)).contiguous()
    places = torch.argsort(spans, dim=-1, descending=True, stable=True).int()
    places += torch.arange(0, tiles, width, dtype=torch.int32, device=live.device)[:, None]
    return Kept(places, spans.sum(-1, dtype=torch.int32))


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
