"""Groups of the vocabulary: the words whose residuals the backward pass holds at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A range of the vocabulary as a call orders it, whole tiles but for the last."""

    tile: int  # the first
    tiles: int
    classifier: Tensor  # its rows


def groups(classifier: Tensor, order: Tensor | None, block: int, step: int) -> Iterator[Group]:
    """Of `step` tiles of `block` words each; in an `order` (V,) their rows are gathered into blocks, since by pointers
    every product would wait for its loads."""
    v, d = classifier.shape
    tiles = triton.cdiv(v, block)
    # Two rooms, so that the next group's words are gathered while those of one are multiplied.
    rooms = [] if order is None else [classifier.new_empty((step * block, d)) for _ in range(2)]
    # At once, since every view takes a host's time.
    parts = (classifier if order is None else order).split(step * block)
    for first, part in zip(range(0, tiles, step), parts, strict=True):
        rows = part
        if order is not None:
            rooms.reverse()
            room = rooms[0] if len(part) == len(rooms[0]) else rooms[0][: len(part)]
            rows = torch.index_select(classifier, 0, part, out=room)
        yield Group(tile=first, tiles=min(step, tiles - first), classifier=rows)
