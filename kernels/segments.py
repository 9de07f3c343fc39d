"""Host side of granularity=segment: what rows keep, in lists; its residuals and dC of them. dE is that of `kept_words`.

Tried on an H100 (N=8192, V=256000, D=2304) and left out. For the products: blocks of 256 columns (2.2 ms for 1.7 of dC,
1.6 for 1.1 of dE), 4 warps (2.0, 1.3), steps of 32 (2.4, 1.8), a fourth stage (3.9 for 2.6, with segments of 256): two
programs must share a multiprocessor. No faster: programs that go through D together, so that the rows they gather stay
in the cache, and products on a stream beside the next group's residuals. Segments of 64 columns took as long as those
of 128, at twice the record and a larger error.

With all residuals at once (`borrowed`) blocks of 64 columns of dE, with 4 or 8 warps and 3 or 4 stages, are no faster
either (2.1 to 3.6 ms for 1.7, H200, gemma-web), nor are those of 256 (1.69 for 1.54 of the first of dC, 1.50 for 1.33
of dE), 2 stages or 4 warps (1.7 to 2.5), or tiles by turns, so that what few columns they gather stays in the cache
(1.54 to 1.85). Programs of 256 columns that go on to the next ones, with loops that Triton flattens, are faster alone
(1.37 for 1.52 with three to a program; 1.7 to 2.4 with 128 columns; with one loop and a condition, 2.7 to 5.4) and not
in a pass (1.668 products for 1.668): there the power limit of 700 W sets the clock, and what waits less draws more.

For the residuals of rows: chunks of 256 (2.1 ms for 1.8) or 64 rows (2.2), steps of 32 (2.1) or 128 (3.5), 8 warps
(2.4), or chunks of several tiles by turns (1.95 to 2.7 for 1.92). For those of words: chunks of 128 (1.37 for 1.29),
and a copy of E in the order of its blocks, which descriptors can load (1.27); or blocks that go through their words
together, whatever number of chunks they have (1.09 J a launch for 1.06, sustained on an H200), and for dE loads of
eight chunks' probabilities at once (1.06 J for 1.04), or columns by turns for all blocks (1.5 to 1.9 for 1.3).
Flattened programs of several chunks, no faster: they took 1.96 to 2.6 ms for 2.07 of rows on gemma-web and 1.33 to 1.9
for 1.22 on gemma-alpaca, with 128 or 256 rows, 4 or 8 warps and 2 to 4 stages; of words they spill (4.6 to 23 for 1.3).

What is kept is near the best of its kind. At as many segments, judged by their largest entry or by the root of their
sum of squares, dC's error of the filter is 14 % less and dE's the same; parts of 32 words, those with as many live rows
brought together in a segment, are 3 % fewer. Words of blocks that were chosen knowing every residual would leave dE 4 %
less (2048 rows of gemma-web, float32).

A tail of rank 2000, in which a row's dropped probability in a segment is spread over the segment's words as that of the
sampled rows is, costs two products of a 128th and gives no more back than rank 1: the filter's error in dC was 1.20e-3
for 1.22e-3, in dE 3.3e-3 for 3.4e-3 (eps=2^-14, gemma-web), and 2 to 5 % less at 2^-10 to 2^-15. Nor does a tail for
each of 4 to 32 clusters of rows: spread as all their rows lose it halves the error in dC, as 128 sampled rows do 14 %,
and that in dE falls by 5 % at best: what is dropped of a row is the row's own (2048 rows of the same head, float32).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .beside import Beside
from .borrowed import Borrowed, rounds
from .kept_words import KeptWords
from .launch import Call, matrix, operand, options
from .lists import Counted, Lists
from .live_segments import LiveSegments, joined
from .rank1 import Rank1
from .record import Record
from .row_segments import row_segments_kernel
from .sampling import sample_rows
from .scales import scale_of_all
from .schedule import ProductTiles
from .similar_rows import IN_BATCH, Permutation, similar_rows
from .statistics import Statistics
from .turns import most_chunks
from .upstream import Upstream


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


class _Tail(NamedTuple):
    """None where there is none, or nobody asks."""

    share: Tensor | None = None
    pull_c: Tensor | None = None
    pull_e: Tensor | None = None


class _Kept(NamedTuple):
    """What rows keep, and what all launches that form gradients of it share."""

    lists: Lists
    table: Tensor
    top: Tensor
    words: Tensor  # (row blocks, V) int8, where what has a live entry is marked
    order: Permutation  # of rows in the blocks of dE
    out: Tensor | None  # dC, where it is wanted
    tail: _Tail


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
        spacing = torch.finfo(self.dtype).eps
        self.eps, self.eps_e = call.variant.threshold(spacing), call.variant.threshold_e(spacing)
        self.tail = Rank1(call, row_max, log_sum, upstream)
        self.rows = self.live.rows
        self.beside, self.ordering = (Beside(self.device, goes_first=True, number=k) for k in range(2))

    def run(self, want_e: bool, want_c: bool) -> tuple[Tensor | None, Tensor | None]:
        """Three queues: one for what the counts of lists are needed for, and one for the order of rows, which go first;
        and one for the tail, and for products. A host that has waited for a count takes 0.6 ms to launch what needed
        it, and in that time the device forms the tail. With one queue for all but the order, residuals waited for the
        tail, and products for a host that had words counted: 1.448 products for 1.428 on gemma-alpaca, 1.675 for 1.667
        on gemma-web (H200, in turns). The order's own, which lists need not wait for, is 1.73 for 1.81 on gemma-alpaca
        at V=262144, D=640, and nothing at D=2304 (1.434 for 1.430). With the order in the queue of the tail, before
        it, 1.535 for 1.518 at D=1152: residuals then leave the tail no multiprocessors, and dC waits for it."""
        call, tiles = self.call, self.of_rows
        live, of_row, lost_in_splits = self.live.judge(self.eps)
        counted = Counted(live, tiles.block_n)
        sample = sample_rows(call.targets, call.ignore_index)
        words = self.live.words_in_record()
        d_classifier = torch.empty((self.v, self.d), dtype=self.dtype, device=self.device) if want_c else None
        top: Tensor = scale_of_all(self.rows, call.shape, call.ignore_index, self.dtype)  # type: ignore[no-untyped-call]
        with self.beside as beside, self.ordering as ordering:
            order, tail = IN_BATCH, _Tail()
            if want_e and call.variant.row_order == "similar" and self.live.row_blocks > 1:
                with ordering.launches(at_once=True):
                    order = similar_rows(call, of_row, sample, tiles)
            ordering.mark()
            lost = joined(lost_in_splits)
            if call.variant.tail == "rank1":
                share = self.tail.share(live, tiles, sample)
                pull_c = self.tail.of_rows(lost) if want_c else None
                tail = _Tail(share, pull_c, self.tail.of_words(share) if want_e else None)
            if self.stats is not None:
                self.stats.tail_share, self.stats.segments_c = tail.share, live
                self.stats.row_order = order.rows if want_e else None
            # Before a host waits: it is short of time when a count is there.
            found = KeptWords(call, self.live, order.rows, tail.pull_e) if want_e else None
            del live  # the other queue reads it still; nothing is written there before this one has waited for that
            with beside.launches(at_once=True):
                lists = counted.lists()
                kept = _Kept(lists, lists.table(), top, words, order, d_classifier, tail)
            borrowed = None
            if d_classifier is None:
                marked = self._marked(kept)
            else:
                self._count("c", lists, lost, self.live.segments * self.n)
                most = most_chunks(call, tiles)
                borrowed = Borrowed.of(d_classifier, lists.firsts, tiles.block_n, tiles.block_v, most)
                marked = self._in_groups(kept) if borrowed is None else self._all_at_once(kept, borrowed)
            with beside.launches(at_once=True):
                words_of_blocks = marked.lists() if want_e else None
            if self.stats is not None and want_e:
                self.stats.segments_e = words.clone()
        d_embeddings = None
        if found is not None and words_of_blocks is not None:
            room = None if borrowed is None else borrowed.room
            d_embeddings, lost_e = found.products(words_of_blocks, room)
            self._count("e", words_of_blocks, lost_e, self.live.row_blocks * self.v)
        if borrowed is not None:
            self._write_rest(kept, borrowed)
        return d_embeddings, d_classifier

    def _marked(self, kept: _Kept) -> Counted:
        """What residuals mark that nobody multiplies, being counted."""
        with self.beside.launches(at_once=True):
            self._residuals(kept, range(len(kept.table)), None)
            marked = Counted(kept.words, self.of_columns.block_v)
        self.beside.wait()
        return marked

    def _all_at_once(self, kept: _Kept, borrowed: Borrowed) -> Counted:
        """All residuals; has what they mark counted, while the device writes the first of dC."""
        with self.beside.launches(at_once=True):
            self._residuals(kept, range(len(kept.table)), borrowed.residuals)
        self.beside.wait()
        self._write_classifier(kept, borrowed.steps[0], borrowed.residuals, 0)
        with self.beside.launches(at_once=True):
            return Counted(kept.words, self.of_columns.block_v)

    def _write_rest(self, kept: _Kept, borrowed: Borrowed) -> None:
        """The rest of dC."""
        for step in borrowed.steps[1:]:
            self._write_classifier(kept, step, borrowed.residuals, 0)
        tiles, chunk = len(kept.lists.firsts) - 1, int(kept.lists.firsts[borrowed.rest])
        if borrowed.rest < tiles:
            moved = borrowed.residuals[chunk * self.of_rows.block_n :].clone()
            moved = moved if len(moved) else borrowed.residuals  # of which nothing is read
            self._write_classifier(kept, (borrowed.rest, tiles), moved, chunk)

    def _in_groups(self, kept: _Kept) -> Counted:
        """The same of a few tiles at a time, and all of dC."""
        firsts = kept.lists.firsts
        marked: Counted | None = None
        for tile, end, residuals in self._groups(kept):
            with self.beside.launches():
                self._residuals(kept, range(firsts[tile], firsts[end]), residuals)
                if marked is None and firsts[end] == firsts[-1]:  # all words are marked
                    marked = Counted(kept.words, self.of_columns.block_v)
            self.beside.wait()
            # Few tiles have few programs where D is small: 4.84 products for 5.10 (H200, N=65536, V=49152, D=576).
            product = self.product.spread((end - tile) * self.of_rows.block_v, self.d)
            self._write_classifier(kept, (tile, end), residuals, int(firsts[tile]), product)
        assert marked is not None
        return marked

    def _groups(self, kept: _Kept) -> Iterator[tuple[int, int, Tensor]]:
        """(first tile, the one after the last, room for their residuals): in memory of dC that is written later, while
        that is more than there is else."""
        tiles, lists, most, end = self.of_rows, kept.lists, most_chunks(self.call, self.of_rows), 0
        assert kept.out is not None
        for first, end, room in rounds(kept.out, lists.firsts, tiles.block_n, tiles.block_v, most):
            yield first, end, room
        groups = list(lists.groups(most, end))
        largest = max((chunks for *_, chunks in groups), default=0)
        own = torch.empty((max(1, largest) * tiles.block_n, tiles.block_v), dtype=self.dtype, device=self.device)
        for tile, count, _, _ in groups:
            yield tile, tile + count, own

    def _residuals(self, kept: _Kept, chunks: range, out: Tensor | None) -> None:
        self.live.residuals(
            kept.lists.members,
            kept.table,
            chunks,
            self.eps_e,
            kept.words,
            keep_targets=self.eps_e < 1,
            place=kept.order.place,
            top=None if out is None else kept.top,
            out=out,
            before_marks=lambda: self.beside.follow(self.ordering),
        )

    def _write_classifier(
        self, kept: _Kept, step: tuple[int, int], residuals: Tensor, first: int, product: ProductTiles | None = None
    ) -> None:
        """dC of some tiles, from `residuals` of the chunks from `first` on."""
        assert kept.out is not None
        product = product or self.product
        call, tiles, lists = self.call, self.of_rows, kept.lists
        rows = min(product.rows, tiles.block_v)
        g, g_descriptor = operand(residuals, (product.step(tiles.block_n), rows), call.schedule)
        tile, end = step
        slices = triton.cdiv(self.d, product.columns)
        row_segments_kernel[((end - tile) * (tiles.block_v // rows) * slices,)](
            g,
            matrix(call.embeddings),
            lists.members,
            lists.start,
            lists.first,
            kept.top,
            kept.tail.share,
            kept.tail.pull_c,
            matrix(kept.out),
            tile,
            first,
            self.v,
            self.d,
            TILES=tiles,
            ROWS=rows,
            PRODUCT=product,
            G_DESCRIPTOR=g_descriptor,
            **options(product, call.schedule),
        )

    def _count(self, name: str, lists: Lists, lost: Tensor, of_all: int) -> None:
        if self.stats is not None:
            setattr(self.stats, f"tiles_kept_{name}", lists.kept)
            setattr(self.stats, f"tiles_skipped_{name}", of_all - lists.kept)
            setattr(self.stats, f"filtered_mass_{name}", lost)
