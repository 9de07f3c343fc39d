"""`Turn`: what of dE's residuals is held at once, where memory is not for all.

All blocks of rows have some of their chunks in a turn, where there is room for their sums to wait in between; elsewhere
some blocks have all of theirs, which are few programs where D is small: on gemma-web at V=262144, D=640 nine blocks at
a time took 2.96 ms for the products, and all at once 1.1; 2.12 to 2.17 products for 2.58, both passes (H200).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from .launch import Call
from .lists import Lists
from .schedule import Tiles, room_of_rows

TURN_BYTES, TURN_BYTES_OF_A_ROW = 5 * 2**23, 2**13
"""Memory for the residuals that are held at once, where they cannot lie in that of dC; and for each row beyond 8192. A
turn of few chunks is of few tiles of dC, and of one chunk of each block: at N=65536, V=49152, D=576 40 MiB took 13.3
products on gemma-web and 4.7 on gemma-alpaca, 256 MiB 6.2 and 3.1, 512 MiB 5.4 and 2.9 (H200)."""


def most_chunks(call: Call, tiles: Tiles) -> int:
    """Of residuals, that are held at once in memory of their own: what so many rows have, or the schedule says."""
    n = call.shape[0]
    if (group := call.schedule.group) is not None:
        return int(group * triton.cdiv(n, tiles.block_n))
    room = room_of_rows(n, TURN_BYTES, TURN_BYTES_OF_A_ROW)
    return max(1, room // (tiles.block_n * tiles.block_v * call.embeddings.element_size()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Chunks of row blocks, by a list of those that each keeps."""

    block: int  # the first
    blocks: int
    begin: int  # chunks of each block that earlier turns had
    size: int  # and those of this turn, at most
    chunks: int  # of all blocks
    places: Tensor  # (any, row blocks + 1) int32
    row: int  # of those
    first: int

    @property
    def place(self) -> Tensor:
        """(row blocks + 1,) where each block's residuals are, in chunks, the first ones at `first`."""
        return self.places[self.row]


def turns_of_blocks(lists: Lists, most: int) -> Iterator[Turn]:
    """All chunks of some blocks, at most `most`, or of a single block."""
    places = lists.first[None]
    for block, blocks, first, chunks in lists.groups(most):
        size = int(np.diff(lists.firsts[block : block + blocks + 1]).max())
        yield Turn(block=block, blocks=blocks, begin=0, size=size, chunks=chunks, places=places, row=0, first=first)


def turns_of_chunks(lists: Lists, most: int) -> list[Turn]:
    """In each the same number of chunks of all blocks, as far as they have as many, and at most `most` in all; none
    where that is too few for one of each.

    A device has nothing to do meanwhile: with a view made of every turn at once, and the table in memory that is
    pinned, this took a host 379 us (H200)."""
    counts = np.diff(lists.firsts)
    blocks = np.bincount(counts)[::-1].cumsum()[::-1]  # that have so many
    blocks[0] = 0
    held = blocks.cumsum().tolist()  # the first so many of all of them
    ends = [0]
    while ends[-1] < len(held) - 1:
        ends.append(bisect_right(held, held[ends[-1]] + most) - 1)
        if ends[-1] == ends[-2]:
            return []
    begins, sizes = ends[:-1], np.diff(ends)
    places = np.zeros((len(begins), len(counts) + 1), np.int32)
    np.clip(counts - np.array(begins)[:, None], 0, sizes[:, None]).cumsum(1, out=places[:, 1:])
    # Of so few bytes that are not pinned a copy is made at once; of more than 64 KiB a host may wait for it.
    table = torch.from_numpy(places).to(lists.first.device, non_blocking=True)
    numbers = zip(begins, sizes.tolist(), places[:, -1].tolist(), strict=True)
    return [
        Turn(block=0, blocks=len(counts), begin=begin, size=size, chunks=chunks, places=table, row=row, first=0)
        for row, (begin, size, chunks) in enumerate(numbers)
    ]
