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
"""With one segment in so many live, or more, most tiles are: nothing would be saved."""

BITS = 2**25
"""Bytes for which entries are live, at once: enough for what `DENSE` lets pass at N=8192, V=256000."""


class LookAhead:
    """Begins to count; `tiles` waits for what was counted. In between the device may do something else."""

    def __init__(self, call: Call, row_max: Tensor, log_sum: Tensor, record: Record, upstream: Upstream) -> None:
        self.segments = LiveSegments(call, row_max, log_sum, record, upstream)
        self.eps = call.variant.threshold(torch.finfo(call.embeddings.dtype).eps)
        self.words = self.segments.words() if call.variant.tail == "rank1" and self.eps < 1 else None
        # A quarter less, for segments alone: rounding must not hide a live entry. The log of a recorded probability
        # is far less than 0.28 off, unless logits come to millions.
        live, _ = self.segments.judge(0.75 * self.eps, self.words)
        self.counted = Counted(live, self.segments.tiles.block_n)

    def tiles(self, order: Tensor | None) -> Tensor | None:
        """(row blocks, vocabulary tiles) int8, 0 where a tile of the given order is dead, by the very residuals that it
        would have: an element's products are joined in the same steps. None where most are live, or may be; a tail has
        to know whatever it costs, and keeps targets."""
        found, lists = self.segments, self.counted.lists()
        if found.call.variant.tail == "drop" and lists.kept * DENSE > found.segments * found.n:
            return None
        words, table = found.words() if self.words is None else self.words, lists.table()
        for _, _, first, chunks in lists.groups(max(1, 8 * BITS // (found.tiles.block_n * found.tiles.block_v))):
            if chunks:
                bits = found.bits(chunks)
                found.residuals(lists, table, first, chunks, self.eps, None, None, bits)
                found.mark(lists, table, first, chunks, bits, words)
        block = found.call.schedule.backward.block_v
        words = words if order is None else words.index_select(1, order)
        of_tiles: Tensor = torch.nn.functional.pad(words, (0, -found.v % block)).unflatten(1, (-1, block))
        return of_tiles.amax(2)
