"""Which tiles a filter will keep, before any is computed again: the forward pass recorded how probable each row's
segments are, and the few that may hold a live entry tell which words have one.

At 2^-12 a tile of a trained head with 256000 words is live in 3 of 10 cases, one of its rows in 2 of 100. Looking for
the words in those costs a tenth of what computing the dead tiles would, and where words are sorted only they know which
tiles are live.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Call
from .lists import Counted
from .live_segments import LiveSegments
from .record import Record
from .upstream import Upstream

DENSE = 8
"""With more than one segment in so many live, most tiles are: nothing would be saved."""


class LookAhead:
    """Begins to count; `tiles` has the device look, and then waits for what was counted."""

    def __init__(self, call: Call, row_max: Tensor, log_sum: Tensor, record: Record, upstream: Upstream) -> None:
        self.segments = LiveSegments(call, row_max, log_sum, record, upstream)
        self.eps = call.variant.threshold(torch.finfo(call.embeddings.dtype).eps)
        self.keeps_targets = call.variant.tail == "rank1" and self.eps < 1
        self.words = self.segments.words()
        # A quarter less, for segments alone: rounding must not hide a live entry. The log of a recorded probability
        # is far less than 0.28 off, unless logits come to millions.
        live, *_ = self.segments.judge(0.75 * self.eps)
        self.counted = Counted(live, self.segments.tiles.block_n)

    def tiles(self, order: Tensor | None) -> Tensor | None:
        """(row blocks, vocabulary tiles) int8, 0 where a tile of the given order is dead, by the very residuals that it
        would have: an element's products are joined in the same steps. None where most are live, or may be; a tail has
        to know whatever it costs."""
        found, of_all = self.segments, self.segments.segments * self.segments.n
        # A host that waits before it launches this leaves the device idle: 1 of 27 ms of cce-no-sort, under a profiler
        # (H200, N=8192, V=256000, D=2304). What `DENSE` lets pass there is about what is marked at once.
        room = min(of_all // DENSE, max(0, found.at_once - found.segments) * found.tiles.block_n)
        members, table = self.counted.within(room)
        self._mark(members, table)
        if (kept := self.counted.kept()) > room:
            if found.call.variant.tail == "drop" and kept * DENSE > of_all:
                return None
            lists = self.counted.lists()
            self._mark(lists.members, lists.table())
        block = found.call.schedule.backward.block_v
        words = self.words if order is None else self.words.index_select(1, order)
        of_tiles: Tensor = torch.nn.functional.pad(words, (0, -found.v % block)).unflatten(1, (-1, block))
        del self.words, self.counted  # 32 MiB of what nobody asks any more
        return of_tiles.amax(2)

    def _mark(self, members: Tensor, table: Tensor) -> None:
        self.segments.residuals(
            members, table, range(len(table)), self.eps, self.words, keep_targets=self.keeps_targets
        )
