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
from .compact import PIECE, compact_kernel, count_kernel


class Counted:
    """Members that each owner keeps of `live` (owners, members) int8, being counted."""

    def __init__(self, live: Tensor) -> None:
        self.live = live
        owners, members = live.shape
        count = torch.empty((owners, triton.cdiv(members, PIECE)), dtype=torch.int32, device=live.device)
        count_kernel[(count.numel(),)](live, count, members, PIECE=PIECE)
        self._start = count.view(-1).cumsum(0, dtype=torch.int32) - count.view(-1)
        self._count = Arriving(count)

    def lists(self, size: int) -> Lists:
        """In chunks of `size`."""
        count = self._count.wait().numpy().sum(1, dtype=np.int64)
        owners, chunks = len(count), -(-count // size)
        start, first = (np.concatenate([[0], x.cumsum()]) for x in (count, chunks))
        of_chunk = np.repeat(np.arange(owners), chunks)
        place = (np.arange(first[-1]) - first[of_chunk]) * size
        chunk = np.stack([of_chunk, start[of_chunk] + place, np.minimum(count[of_chunk] - place, size)], 1)
        table = torch.from_numpy(np.concatenate([start, first, chunk.reshape(-1)]).astype(np.int32))
        if self.live.device.type != "cpu":
            table = table.pin_memory().to(self.live.device, non_blocking=True)
        starts, firsts, of_chunks = table.split([owners + 1, owners + 1, chunk.size])
        members = torch.empty(max(int(start[-1]), 1), dtype=torch.int32, device=self.live.device)
        compact_kernel[(len(self._start),)](self.live, self._start, members, self.live.shape[1], PIECE=PIECE)
        return Lists(members, starts, firsts, of_chunks, kept=int(start[-1]), firsts=first.tolist())


@dataclass(frozen=True, slots=True)
class Lists:
    """int32 tensors."""

    members: Tensor  # those of an owner after those of the one before, ascending
    start: Tensor  # (owners + 1,) into `members`
    first: Tensor  # (owners + 1,) into the chunks
    chunk: Tensor  # (3 chunks,) owner, where its next members begin, how many they are
    kept: int
    firsts: list[int]  # `first` on the host

    def groups(self, most: int) -> Iterator[tuple[int, int, int, int]]:
        """(first owner, owners, first chunk, chunks) with at most `most` chunks, or a single owner."""
        owner, owners = 0, len(self.firsts) - 1
        while owner < owners:
            end = owner + 1
            while end < owners and self.firsts[end + 1] - self.firsts[owner] <= most:
                end += 1
            yield owner, end - owner, self.firsts[owner], self.firsts[end] - self.firsts[owner]
            owner = end
