"""Host side of dE of granularity=segment: of the words that blocks of rows keep residuals, in turns, and products."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .backend import TL_DTYPES
from .carried import Carried
from .column_segments import column_residuals_kernel, column_segments_kernel
from .launch import Call, matrix, operand, options
from .lists import Lists
from .live_segments import LiveSegments
from .turns import Turn, most_chunks, turns_of_blocks, turns_of_chunks


class KeptWords:
    """Of one backward pass."""

    def __init__(
        self,
        call: Call,
        live: LiveSegments,
        order: Tensor | None,  # (N,) int64, of rows in blocks; None: as they are
        pull: Tensor | None,  # (D,) fp32, the tail's
    ) -> None:
        self.call, self.order, self.pull = call, order, pull
        self.bias, self.rows, self.spare = live.bias, live.rows, live.memory(call.embeddings.dtype)
        self.tiles, self.product = call.schedule.column_segments, call.schedule.product
        self.dtype, self.device = call.embeddings.dtype, call.embeddings.device
        self.n, self.v, self.d = call.shape
        self.classifier = matrix(call.classifier)
        if order is None:
            block = self.tiles.block_n, self.tiles.block_d
            self.embeddings, self.has_descriptor = operand(call.embeddings, block, call.schedule)
        else:
            self.embeddings, self.has_descriptor = matrix(call.embeddings), False

    def products(self, lists: Lists, borrowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """dE of the words in `lists`, and (N,) fp32 probability that rows lose; residuals lie in `borrowed` memory, if
        there is enough, or in the record's, which has lost what it held."""
        # Not earlier: what the device holds before is the most, 67 MiB for 47 (gemma-web, N=8192, V=256000, D=2304).
        out = torch.empty((self.n, self.d), dtype=self.dtype, device=self.device)
        lost = torch.empty(self.n, device=self.device)
        self.lists, self.probability = lists, torch.empty((lists.firsts[-1], self.tiles.block_n), device=self.device)
        turns, residuals, carried = self._turns(borrowed, out)
        for turn in turns:
            if turn.chunks:
                self._residuals(turn, residuals)
            self._multiply(turn, residuals, carried, out, lost)
        return out, lost

    def _turns(self, borrowed: Tensor | None, out: Tensor) -> tuple[list[Turn], Tensor, Carried | None]:
        """Those there are; room for the residuals of any; and for sums that wait for the next."""
        tiles, group = self.tiles, self.call.schedule.group
        entries = tiles.block_n * tiles.block_v
        most = most_chunks(self.call, tiles)
        if group is None:
            lent, spare = (0 if room is None else len(room) // entries for room in (borrowed, self.spare))
            if spare > lent and 4 * spare >= 3 * most:  # nearly as much as memory of its own would be
                borrowed, most = self.spare, spare
            else:
                most = max(most, lent)
        low, turns = 0, list[Turn]()
        if self.lists.firsts[-1] > most and self.dtype.itemsize == 2:
            low = triton.cdiv(out.numel(), entries)
            if group is not None:
                turns = turns_of_chunks(self.lists, most)
            elif 2 * low <= most:
                turns = turns_of_chunks(self.lists, most - low)
        waits = bool(turns)
        if not waits:
            low, turns = 0, list(turns_of_blocks(self.lists, most))
        needed = (low + max(1, *(turn.chunks for turn in turns))) * entries
        if borrowed is None or len(borrowed) < needed:
            borrowed = torch.empty(needed, dtype=self.dtype, device=self.device)
        room = borrowed[:needed]
        carried = None
        if waits:
            halves = out, room[: out.numel()].view(out.shape)
            carried = Carried(*(matrix(half.view(torch.int16)) for half in halves))
        return turns, room[low * entries :].view(-1, tiles.block_v), carried

    def _residuals(self, turn: Turn, out: Tensor) -> None:
        call, tiles, lists = self.call, self.tiles, self.lists
        column_residuals_kernel[(turn.blocks * turn.size,)](
            self.embeddings,
            self.classifier,
            self.bias,
            *self.rows,
            self.order,
            lists.members,
            lists.start,
            lists.first,
            turn.place,
            out,
            self.probability,
            call.cap,
            turn.block,
            turn.blocks,
            turn.begin,
            turn.first,
            self.n,
            self.v,
            self.d,
            call.ignore_index,
            DTYPE=TL_DTYPES[self.dtype],
            TILES=tiles,
            E_DESCRIPTOR=self.has_descriptor,
            **options(tiles, call.schedule),
        )

    def _multiply(self, turn: Turn, residuals: Tensor, carried: Carried | None, out: Tensor, lost: Tensor) -> None:
        call, tiles, lists = self.call, self.tiles, self.lists
        product = self.product.spread(turn.blocks * tiles.block_n, self.d)
        g, has_descriptor = operand(residuals, (tiles.block_n, product.step(tiles.block_v)), call.schedule)
        column_segments_kernel[(turn.blocks * triton.cdiv(self.d, product.columns),)](
            g,
            self.classifier,
            self.order,
            lists.members,
            lists.start,
            lists.first,
            turn.place,
            *self.rows,
            self.probability,
            self.pull,
            lost,
            matrix(out),
            carried,
            turn.block,
            turn.begin,
            turn.size,
            turn.first,
            self.n,
            self.v,
            self.d,
            call.ignore_index,
            TILES=tiles,
            PRODUCT=product,
            G_DESCRIPTOR=has_descriptor,
            **options(product, call.schedule),
        )
