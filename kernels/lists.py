"""Lists of what owners keep, cut into chunks: as long as they must be; nothing overflows, nothing is cut off.

The host has to know how long. It asks, gives the device something else to do, and waits for the answer alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from .arriving import Arriving
from .compact import PIECE, bounds_kernel, chunks_kernel, compact_kernel, count_kernel

OWNERS, PARTS = 128, 32
"""Whose counts a program adds up at once, and of how many pieces each."""


class Counted:
    """Members that each owner keeps of `live` (owners, members) int8, being counted; for chunks of `size`."""

    def __init__(self, live: Tensor, size: int) -> None:
        self._live, self._size = live, size
        owners, members = live.shape
        self._count = torch.empty((owners, triton.cdiv(members, PIECE)), dtype=torch.int32, device=live.device)
        count_kernel[(self._count.numel(),)](live, self._count, members, PIECE=PIECE)
        self._bounds = torch.empty((2, owners + 1), dtype=torch.int32, device=live.device)  # `start` and `first`
        bounds_kernel[(1,)](
            self._count, self._bounds, *self._count.shape, size, OWNERS=OWNERS, PARTS=PARTS, num_warps=8
        )
        self._arriving = Arriving(self._bounds)

    def within(self, room: int) -> tuple[Tensor, Tensor]:
        """(members, table) as of `lists`, with room for so many members, which waits for nothing: where there are more
        they are incomplete, and chunks are of none there and past the last."""
        chunks = room // self._size + len(self._live)
        table = torch.zeros((chunks, 3), dtype=torch.int32, device=self._live.device)
        start, first = self._bounds
        return self._members(room), _cut(start, first, table, self._size, room)

    def kept(self) -> int:
        """How many there are. Waits for what was counted."""
        return int(self._arriving.wait()[0, -1])

    def lists(self) -> Lists:
        """What was counted. Waits for it."""
        starts, firsts = self._arriving.wait().numpy()
        members = self._members(int(starts[-1]))
        del self._live  # in the lists now
        start, first = self._bounds
        return Lists(members, start, first, int(starts[-1]), firsts, self._size)

    def _members(self, room: int) -> Tensor:
        members = torch.empty(max(room, 1), dtype=torch.int32, device=self._live.device)
        compact_kernel[(self._count.numel(),)](
            self._live, self._count, self._bounds[0], members, self._live.shape[1], room, PIECE=PIECE, PARTS=PARTS
        )
        return members


def _cut(start: Tensor, first: Tensor, table: Tensor, size: int, room: int) -> Tensor:
    """Fills a table of chunks (see `Lists.table`), where there was `room`."""
    chunks_kernel[(len(start) - 1,)](start, first, table, size, room, BLOCK=64)
    return table


@dataclass(frozen=True, slots=True)
class Lists:
    """int32 tensors."""

    members: Tensor  # those of an owner after those of the one before, ascending
    start: Tensor  # (owners + 1,) into `members`
    first: Tensor  # (owners + 1,) into the chunks
    kept: int
    firsts: np.ndarray  # `first` on the host
    size: int  # of a chunk

    def table(self) -> Tensor:
        """(chunks, 3): an owner, where its next members begin, how many they are."""
        table = torch.empty((int(self.firsts[-1]), 3), dtype=torch.int32, device=self.first.device)
        return _cut(self.start, self.first, table, self.size, self.kept)

    def groups(self, most: int, owner: int = 0) -> Iterator[tuple[int, int, int, int]]:
        """(first owner, owners, first chunk, chunks) with at most `most` chunks, or a single owner; from `owner` on."""
        owners = len(self.firsts) - 1
        while owner < owners:
            first = int(self.firsts[owner])
            end = max(owner + 1, int(np.searchsorted(self.firsts, first + most, side="right")) - 1)
            yield owner, end - owner, first, int(self.firsts[end]) - first
            owner = end
