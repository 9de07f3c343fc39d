"""Host side of granularity=segment: what is kept, in lists; residuals of a group of it, and their products.

Tried on an H100 (N=8192, V=256000, D=2304) and left out. For the products: blocks of 256 columns (2.2 ms for 1.7 of dC,
1.6 for 1.1 of dE), 4 warps (2.0, 1.3), steps of 32 (2.4, 1.8), a fourth stage (3.9 for 2.6, with segments of 256): two
programs must share a multiprocessor. No faster: programs that go through D together, so that the rows they gather stay
in the cache, and products on a stream beside the next group's residuals. Smaller groups wait for their launches.
Segments of 64 columns took as long as those of 128, at twice the record and a larger error.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
from torch import Tensor

from .backend import TL_DTYPES
from .beside import Beside
from .column_segments import column_residuals_kernel, column_segments_kernel
from .launch import Call, matrix, operand, options
from .lists import Counted, Lists
from .live_segments import LiveSegments
from .rank1 import Rank1
from .record import Record
from .row_segments import row_segments_kernel
from .scales import shared_scales
from .schedule import Tiles
from .statistics import Statistics
from .upstream import Upstream

GROUP_BYTES = 5 * 2**23
"""Memory for the residuals that are held at once."""


def segment_gradients(
    call: Call,
    row_max: Tensor,
    log_sum: Tensor,
    record: Record,
    upstream: Upstream,
    wanted: tuple[bool, bool],
    stats: Statistics | None,
) -> tuple[Tensor | None, Tensor | None]:
    """dE and dC of granularity=segment, each where `wanted` says so."""
    return _Segments(call, row_max, log_sum, record, upstream, stats).run(*wanted)


class _Segments:
    """One backward pass."""

    def __init__(
        self,
        call: Call,
        row_max: Tensor,
        log_sum: Tensor,
        record: Record,
        upstream: Upstream,
        stats: Statistics | None,
    ) -> None:
        self.call, self.stats = call, stats
        self.live = LiveSegments(call, row_max, log_sum, record, upstream)
        self.of_rows, self.of_columns = self.live.tiles, call.schedule.column_segments
        self.product = call.schedule.product
        self.dtype, self.device = call.embeddings.dtype, call.embeddings.device
        self.n, self.v, self.d = call.shape
        self.product_e = self.product.spread(self.n, self.d)
        spacing = torch.finfo(self.dtype).eps
        self.eps, self.eps_e = call.variant.threshold(spacing), call.variant.threshold_e(spacing)
        self.softcap = call.softcap
        self.tail = Rank1(call, row_max, log_sum, upstream)
        self.bias, self.rows = self.live.bias, self.live.rows

    def run(self, want_e: bool, want_c: bool) -> tuple[Tensor | None, Tensor | None]:
        call = self.call
        words = self.live.words()
        live, lost = self.live.judge(self.eps, words if self.eps_e < 1 else None)
        top: Tensor = shared_scales(  # type: ignore[no-untyped-call]
            self.rows, call.shape, self.of_rows.block_n, 1, call.ignore_index, self.dtype
        )
        top = top.amax().reshape(1)
        counted = Counted(live, self.of_rows.block_n)
        # Till the count is there, and the host has made lists of it, the device does what needs none: all of the tail.
        # With dE's half of it after dC the device stood still for 0.4 ms here, under a profiler (H200).
        share = pull_c = pull_e = None
        with Beside(self.device) as beside:
            if call.variant.tail == "rank1":
                share = self.tail.share(live, self.of_rows)
                pull_c = self.tail.of_rows(lost) if want_c else None
                with beside.launches():  # which dE alone waits for: 0.02 of a product less
                    pull_e = self.tail.of_words(share) if want_e else None
            if self.stats is not None:
                self.stats.tail_share, self.stats.segments_c = share, live
            del live
            if want_e and self.stats is not None:
                self.stats.segments_e = words
            d_classifier, marked = self._classifier(counted, lost, top, share, pull_c, words, want_c)
        return self._embeddings(marked, pull_e) if want_e else None, d_classifier

    def _classifier(
        self,
        counted: Counted,
        lost: Tensor,
        top: Tensor,
        share: Tensor | None,
        pull: Tensor | None,
        words: Tensor,
        wanted: bool,
    ) -> tuple[Tensor | None, Counted]:
        """dC, where it is wanted; marks in `words` (row blocks, V) what has a live entry, and has that counted."""
        call, tiles = self.call, self.of_rows
        out = torch.empty((self.v, self.d), dtype=self.dtype, device=self.device) if wanted else None
        e = matrix(call.embeddings)
        step, rows = self.product.step(tiles.block_n), min(self.product.rows, tiles.block_v)
        slices = triton.cdiv(self.d, self.product.columns)
        residuals = self._room(self.live.row_blocks, tiles)
        bits = self.live.bits(len(residuals) // tiles.block_n)
        g, g_descriptor = operand(residuals, (step, rows), call.schedule)
        lists = counted.lists()
        table, groups = lists.table(), self._groups(lists, tiles)
        marked: Counted | None = None
        for tile, count, first, chunks in groups:
            if chunks:
                self.live.residuals(lists.members, table, first, chunks, self.eps_e, top, residuals, bits)
                self.live.mark(lists.members, table, first, chunks, bits, words)
            if marked is None and first + chunks == lists.firsts[-1]:  # all words are marked
                marked = Counted(words, self.of_columns.block_v)
            if out is not None:
                row_segments_kernel[(count * (tiles.block_v // rows) * slices,)](
                    g,
                    e,
                    lists.members,
                    lists.start,
                    lists.first,
                    top,
                    share,
                    pull,
                    matrix(out),
                    tile,
                    first,
                    self.v,
                    self.d,
                    TILES=tiles,
                    ROWS=rows,
                    PRODUCT=self.product,
                    G_DESCRIPTOR=g_descriptor,
                    **options(self.product, call.schedule),
                )
        assert marked is not None
        if wanted:
            self._count("c", lists, lost, self.live.segments * self.n)
        return out, marked

    def _embeddings(self, marked: Counted, pull: Tensor | None) -> Tensor:
        call, tiles = self.call, self.of_columns
        out = torch.empty((self.n, self.d), dtype=self.dtype, device=self.device)
        lost = torch.empty(self.n, device=self.device)
        e, e_descriptor = operand(call.embeddings, (tiles.block_n, tiles.block_d), call.schedule)
        c = matrix(call.classifier)
        step = tiles.block_n, self.product_e.step(tiles.block_v)
        residuals = self._room(1, tiles)
        g, g_descriptor = operand(residuals, step, call.schedule)
        lists = marked.lists()
        kept = torch.empty((lists.firsts[-1], tiles.block_n), device=self.device)
        groups = self._groups(lists, tiles)
        if (most := max(chunks for *_, chunks in groups)) > self._chunks(tiles):  # of a row block that keeps much
            del residuals, g
            residuals = self._room(most, tiles)
            g, g_descriptor = operand(residuals, step, call.schedule)
        for block, count, first, chunks in groups:
            if chunks:
                longest = int(np.diff(lists.firsts[block : block + count + 1]).max())
                column_residuals_kernel[(count * longest,)](
                    e,
                    c,
                    self.bias,
                    *self.rows,
                    lists.members,
                    lists.start,
                    lists.first,
                    residuals,
                    kept,
                    self.softcap,
                    block,
                    count,
                    first,
                    self.n,
                    self.v,
                    self.d,
                    call.ignore_index,
                    DTYPE=TL_DTYPES[self.dtype],
                    TILES=tiles,
                    E_DESCRIPTOR=e_descriptor,
                    **options(tiles, call.schedule),
                )
            column_segments_kernel[(count * triton.cdiv(self.d, self.product_e.columns),)](
                g,
                c,
                lists.members,
                lists.start,
                lists.first,
                *self.rows,
                kept,
                pull,
                lost,
                matrix(out),
                block,
                first,
                self.n,
                self.v,
                self.d,
                call.ignore_index,
                TILES=tiles,
                PRODUCT=self.product_e,
                G_DESCRIPTOR=g_descriptor,
                **options(self.product_e, call.schedule),
            )
        self._count("e", lists, lost, self.live.row_blocks * self.v)
        return out

    def _groups(self, lists: Lists, tiles: Tiles) -> list[tuple[int, int, int, int]]:
        return list(lists.groups(self._chunks(tiles)))

    def _chunks(self, tiles: Tiles) -> int:
        """As many as GROUP_BYTES hold."""
        return max(1, GROUP_BYTES // (tiles.block_n * tiles.block_v * self.dtype.itemsize))

    def _room(self, most: int, tiles: Tiles) -> Tensor:
        """For the residuals of a group, whose one owner has `most` chunks if it has more than others: made before
        anything is counted, like all that needs no lists, since the device waits for what the host does after that."""
        chunks = max(most, self._chunks(tiles))
        return torch.empty((chunks * tiles.block_n, tiles.block_v), dtype=self.dtype, device=self.device)

    def _count(self, name: str, lists: Lists, lost: Tensor, of_all: int) -> None:
        if self.stats is not None:
            setattr(self.stats, f"tiles_kept_{name}", lists.kept)
            setattr(self.stats, f"tiles_skipped_{name}", of_all - lists.kept)
            setattr(self.stats, f"filtered_mass_{name}", lost)
