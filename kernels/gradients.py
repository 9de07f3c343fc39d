"""Host side of the backward pass: groups of the vocabulary, what is stored of each, and who multiplies it."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .accumulate import Accumulator
from .backend import IS_INTERPRETED, TL_DTYPES
from .backward import Residuals, residual_kernel
from .beside import Beside
from .exponentials import Exponentials
from .groups import Group, groups
from .kept import ALL, Kept, kept_lists
from .launch import Call, Room, looks_ahead, matrix, operand, options, vector
from .look_ahead import LookAhead
from .products import bias_kernel, classifier_kernel, embeddings_kernel, finish_embeddings_kernel
from .rank1 import NO_TAIL, Rank1, TileTail, tail_of_tiles
from .scales import scaled_rows_kernel, shared_scales
from .schedule import WORKERS, group_bytes
from .segments import segment_gradients
from .statistics import Statistics
from .stored_residual import stored_residual_kernel
from .tile_lists import TileLists
from .upstream import Upstream
from .variant import Variant
from .vocabulary_order import places_of_targets, vocabulary_order

STORED_ROWS, STORED_WARPS = 16, 4
"""Of a program that makes residuals of what is stored: few registers, so that many wait for memory at once. 3 ms for 16
with 32 rows of 64 columns (H200, N=8192, V=256000)."""

SCALED_ROWS, SCALED_COLUMNS = 16, 256
"""Of a program that copies rows of E."""

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def backward(
    call: Call,
    row_max: Tensor,
    log_sum: Tensor,
    room: Room,
    upstream: Upstream,
    wanted: tuple[bool, bool, bool],
    stats: Statistics | None,
) -> Gradients:
    """dE, dC and dbias, each where `wanted` says so, of what the forward pass found; `room` may be used up."""
    outputs = (call.embeddings, call.classifier, call.bias)
    if call.shape[0] == 0 or not any(wanted):
        d_e, d_c, d_b = (
            torch.zeros_like(x) if x is not None and w else None for x, w in zip(outputs, wanted, strict=True)
        )
        return d_e, d_c, d_b
    if call.variant.granularity == "tile":
        ahead = None
        # What is counted has to be computed, but for a tail.
        counts = stats is not None and call.variant.tail == "drop"
        if room.record is not None and not counts and looks_ahead(call, wanted):
            ahead = LookAhead(call, row_max, log_sum, room.record, upstream)
        return _Backward(call, row_max, log_sum, upstream, wanted, stats, ahead, room.exponentials).run()
    d_e, d_c = None, None
    if wanted[0] or wanted[1]:
        assert room.record is not None
        d_e, d_c = segment_gradients(call, row_max, log_sum, room.record, upstream, wanted[:2], stats)
    # dbias is complete: it takes in every residual.
    of_bias = _Backward(call, row_max, log_sum, upstream, (False, False, True), None) if wanted[2] else None
    return d_e, d_c, None if of_bias is None else of_bias.run()[2]


class _Backward:
    """One backward pass."""

    def __init__(
        self,
        call: Call,
        row_max: Tensor,
        log_sum: Tensor,
        upstream: Upstream,
        wanted: tuple[bool, bool, bool],
        stats: Statistics | None,
        ahead: LookAhead | None = None,
        stored: Exponentials | None = None,
    ) -> None:
        self.call, self.stats, self.variant, self.stored = call, stats, call.variant, stored
        self.flags = self.variant.flags("accumulate")
        self.tiles, self.product = call.schedule.backward, call.schedule.product
        self.leaves_room = self.tiles.leaving_room
        self.want_e, self.want_c, self.want_bias = wanted
        self.dtype = call.embeddings.dtype
        self.n, self.v, self.d = call.shape
        self.row_blocks = triton.cdiv(self.n, self.tiles.block_n)
        # One copy of residuals serves both gradients, over the scales of their rows: of those rows of E that dC takes
        # make up for it, exactly, in bf16 alone. In fp32 they are left to increments of dE.
        self.scales_rows = self.dtype == torch.bfloat16 and not upstream.even
        self.shared = self.scales_rows or (upstream.even and self.dtype != torch.float32)
        self.order = vocabulary_order(call, row_max, log_sum)
        self.bias, self.target = vector(call.bias), vector(call.targets)
        self.rows = (self.target, row_max, log_sum, vector(upstream.dloss), vector(upstream.dlse))
        # What residuals know of rows: targets, and what marks ignored ones, in the vocabulary's order.
        places, self.ignored_place = places_of_targets(call, self.order)
        self.placed_rows = (vector(places), *self.rows[1:])
        self.merged = {
            name: min(tiles, call.schedule.merged(name, self.variant, stores=stored is not None))
            for name, tiles in (("e", triton.cdiv(self.v, self.tiles.block_v)), ("c", self.row_blocks))
        }
        wide = self.merged["e"] > 1, self.merged["c"] >= self.row_blocks > 1
        self.of = {name: self.product.wide(self.d) if x else self.product for name, x in zip("ec", wide, strict=True)}
        self.of["e"] = self.of["e"].spread(self.n, self.d)
        # Of the residuals of dC: one power of two for all row blocks of an increment.
        together = self.merged["c"]
        scale: Tensor = shared_scales(  # type: ignore[no-untyped-call]
            self.rows, call.shape, self.tiles.block_n, together, call.ignore_index, self.dtype
        )
        self.scale = scale.repeat_interleave(together)[: self.row_blocks]
        self.step = self._tiles_of_a_group()
        self._drops = {"e": self.want_e and self.variant.filter_e, "c": self.want_c and self.variant.filter_c}
        self.keeps_dead = (self.want_e, self.want_c) != tuple(self._drops.values())  # one gradient takes in all
        self.computes_all = self.keeps_dead or self.want_bias
        marks = None if ahead is None else ahead.tiles(self.order)
        self.at_once = call.schedule.blocks_in_cache(self.row_blocks)
        spans = {name: self._span(name) for name in "ec"}
        self.lists = None if marks is None else TileLists(marks, self.step, self.at_once, spans)
        self.judges = any(self._drops.values()) and self.lists is None
        self.tail: TileTail | None = None
        if ahead is not None and marks is not None and self.variant.tail == "rank1":
            self.tail = tail_of_tiles(Rank1(call, row_max, log_sum, upstream), ahead.segments, marks, self._drops)
        self._factors: dict[tuple[Any, ...], tuple[Any, bool]] = {}
        self.kept = {"e": 0, "c": 0}
        self.mass = {"e": torch.zeros(self.n, device=row_max.device), "c": torch.zeros(self.n, device=row_max.device)}

    def run(self) -> Gradients:
        call, device = self.call, self.call.embeddings.device
        acc = _accumulator(call.embeddings, self.variant, self._blocks_of_e()) if self.want_e else None
        d_embeddings = torch.empty((self.n, self.d), dtype=self.dtype, device=device) if self.want_e else None
        # Until its sums are complete, dE's memory holds what dC takes of E.
        embeddings = self._rows_that_count(d_embeddings) if self.want_c else None
        d_classifier = torch.empty((self.v, self.d), dtype=self.dtype, device=device) if self.want_c else None
        d_bias = (
            torch.empty(self.v, dtype=call.bias.dtype, device=device)
            if self.want_bias and call.bias is not None
            else None
        )
        rooms = [self._room() for _ in range(self._count_rooms())]
        remaining = groups(call.classifier, self.order, self.tiles.block_v, self.step)
        group = next(remaining, None)
        with Beside(device) as beside:
            while group is not None:
                rooms.reverse()
                found = self._residuals(group, rooms[0])
                with beside.launches():
                    following = next(remaining, None)
                    beside.mark()
                    if embeddings is not None and d_classifier is not None:
                        self._write_classifier(group, found, embeddings, d_classifier)
                if acc is not None:
                    self._add_embeddings(group, found, acc)
                if d_bias is not None:
                    self._write_bias(group, found, d_bias)
                beside.wait(for_all=len(rooms) == 1)
                group = following
        if acc is not None and d_embeddings is not None:
            self._finish_embeddings(acc, d_embeddings)
        if self.stats is not None:
            self._report(self.stats)
        return d_embeddings, d_classifier, d_bias

    def _tiles_of_a_group(self) -> int:
        block, sorts = self.tiles.block_v, self.order is not None
        copies = 1 if self.shared else max(1, self.want_e + self.want_c)
        # A group's residuals are (N, words), and its words, where they are gathered, (words, D).
        widest = max(self.n * copies, self.d if sorts else 0)
        fits = group_bytes(self.n) // (block * widest * self.call.embeddings.element_size())
        step = self.call.schedule.group or max(1, fits)
        if self.want_e and self.merged["e"] > 1:
            step = self.merged["e"] * self._increments(step)
        tiles: int = triton.cdiv(self.v, block)
        return max(1, min(step, tiles))

    def _increments(self, tiles: int) -> int:
        """Of dE in so many tiles. Wide blocks leave no registers for a sum beside an increment, and narrow ones are for
        few rows, where launches are what takes the time."""
        return 1 if self.of["e"].columns > self.product.columns else max(1, tiles // self.merged["e"])

    def _count_rooms(self) -> int:
        """With a second one, residuals of the next group do not wait for dC of this one. Of 128 MiB it is worth 0.14
        products of 1.61 where tiles are dropped, so that programs end at odd times, and 0.05 of 3.43 where none is
        (H200, N=8192, V=256000, D=2304). Where exponentials are stored it takes no memory."""
        return 2 if any(self._drops.values()) or self.stored is not None else 1

    def _room(self) -> Residuals:
        """For any group."""
        width, device = self.step * self.tiles.block_v, self.call.embeddings.device

        def buffer(wanted: bool, rows: int, dtype: torch.dtype) -> Tensor | None:
            return torch.empty((rows, width), dtype=dtype, device=device) if wanted else None

        return Residuals(
            for_e=buffer(self.stored is None and (self.want_e or (self.shared and self.want_c)), self.n, self.dtype),
            for_c=buffer(self.want_c and not self.shared, self.n, self.dtype),
            scale=self.scale,
            bias=buffer(self.want_bias, self.row_blocks, torch.float32),
            live=torch.empty(self.row_blocks * self.step, dtype=torch.int32, device=device) if self.judges else None,
            mass=torch.empty((self.step, self.n), device=device) if self.judges and self.stats is not None else None,
            width=width,
        )

    def _residuals(self, group: Group, room: Residuals) -> Residuals:
        if self.stored is not None:
            return self._residuals_in_place(group, room, self.stored)
        call, tiles, out = self.call, self.tiles, room
        if room.live is not None:
            live = room.live[: self.row_blocks * group.tiles].view(self.row_blocks, group.tiles)
            mass = None if room.mass is None else room.mass[: group.tiles].zero_()
            out = room._replace(live=live, mass=mass)
        e, e_descriptor = self._factor(call.embeddings, (tiles.block_n, tiles.block_d))
        c, c_descriptor = self._factor(group.classifier, (tiles.block_v, tiles.block_d))
        kept = ALL if self.lists is None or self.computes_all else self.lists.tiles(group.tile)
        blocks = None
        if out.for_e is not None:
            blocks, has_descriptor = self._factor(out.for_e, (tiles.block_n, tiles.block_v))
            blocks = blocks if has_descriptor else None
        programs = self.row_blocks * group.tiles
        # A second store spills registers there, and a filter's decision has the tensor core wait for every product: 842
        # ms for 17 (H100, N=8192, V=256000, D=2304). Of cce-exact it saves 0.04 of 4.45 products (H200). Gradients by
        # the lse spill, too: 4.43 products for 4.34 with two stores, not flattened. So does a softcap's slope.
        is_simple = out.for_c is None and self.rows[-1] is None and call.softcap is None
        flattened = blocks is not None and is_simple and not self.judges
        goes_on = flattened or kept is not ALL
        residual_kernel[(min(WORKERS, programs) if goes_on else programs,)](
            e,
            c,
            self.bias,
            *self.placed_rows,
            self.order,
            kept,
            out,
            blocks,
            call.cap,
            self.variant.threshold(torch.finfo(self.dtype).eps),
            group.tile,
            self._tiles_of_list(group, kept),
            self.at_once,
            self.n,
            self.v,
            self.d,
            self.ignored_place,
            FILTER=self.judges,
            KEEP_DEAD=self.keeps_dead,
            DTYPE=TL_DTYPES[self.dtype],
            TILES=tiles,
            FLATTENED=flattened,
            E_DESCRIPTOR=e_descriptor,
            C_DESCRIPTOR=c_descriptor,
            **options(self.leaves_room if goes_on and blocks is not None else tiles, call.schedule),
        )
        return out

    def _residuals_in_place(self, group: Group, room: Residuals, stored: Exponentials) -> Residuals:
        call, tiles, tile = self.call, self.tiles, self.call.schedule.forward.block_v
        columns = min(tiles.block_v, tile)
        rows = tiles.block_n if IS_INTERPRETED else min(tiles.block_n, STORED_ROWS)
        first, words = group.tile * tiles.block_v, len(group.classifier)
        span = rows if room.bias is None else tiles.block_n
        parts = triton.cdiv(words, columns)
        stored_residual_kernel[(triton.cdiv(self.n, span) * parts,)](
            stored,
            *self.rows,
            room,
            group.tile,
            parts,
            self.n,
            self.v,
            call.ignore_index,
            FOR_E=self.want_e or room.for_c is None,
            DTYPE=TL_DTYPES[self.dtype],
            TILES=tiles,
            TILE=tile,
            SPAN=span,
            ROWS=rows,
            COLUMNS=columns,
            num_warps=STORED_WARPS,
            num_stages=1,
            enable_fp_fusion=call.schedule.fp_fusion,
        )
        return room._replace(for_e=stored.entries.view(self.dtype)[:, first : first + words])

    def _filters(self, name: str) -> bool:
        return bool(getattr(self.variant, f"filter_{name}"))

    def _kept(self, group: Group, found: Residuals, name: str) -> Kept:
        """The tiles of a group that gradient `name` takes in, for every block of its rows; counted where asked for."""
        if self.lists is not None and self._filters(name):
            return self.lists.embeddings(group.tile) if name == "e" else self.lists.classifier(group.tile)
        if not self._filters(name) or found.live is None:
            self.kept[name] += self.row_blocks * group.tiles
            return ALL
        if self.stats is not None and found.mass is not None:
            self.kept[name] += int(found.live.sum())
            self.mass[name] += found.mass.sum(0)
        if name == "c":
            return kept_lists(found.live.T, self._span(name))
        return kept_lists(torch.nn.functional.pad(found.live, (0, self.step - group.tiles)), self._span(name))

    def _tiles_of_list(self, group: Group, kept: Kept) -> int:
        """A list has room for as many in the last group, which is shorter."""
        return group.tiles if kept is ALL else self.step

    def _span(self, name: str) -> int:
        """Tiles of a list: of an increment, or all of a group where increments are tiles."""
        of_all = self.step if name == "e" else self.row_blocks
        return self.merged[name] if self.merged[name] > 1 else of_all

    def _add_embeddings(self, group: Group, found: Residuals, acc: Accumulator) -> None:
        programs, rows, columns = self._blocks_of_e()
        step = self.of["e"].step(self.tiles.block_v)
        kept = self._kept(group, found, "e")
        g, g_descriptor = self._factor(found.for_e, (rows, step))
        c, c_descriptor = self._factor(group.classifier, (step, columns))
        embeddings_kernel[(programs,)](
            g,
            c,
            acc,
            self.target,
            kept,
            self._tiles_of_list(group, kept),
            len(group.classifier),
            self.n,
            self.d,
            self.call.ignore_index,
            **self._compiled(rows, "e"),
            AT_ONCE=self.merged["e"] >= group.tiles,
            G_DESCRIPTOR=g_descriptor,
            C_DESCRIPTOR=c_descriptor,
        )

    def _write_classifier(self, group: Group, found: Residuals, embeddings: Tensor, out: Tensor) -> None:
        product, rows = self.of["c"], min(self.product.rows, self.tiles.block_v)
        step = product.step(self.tiles.block_n)
        g, g_descriptor = self._factor(found.for_e if found.for_c is None else found.for_c, (step, rows))
        e, e_descriptor = self._factor(embeddings, (step, product.columns))
        blocks = group.tiles * self.tiles.block_v // rows
        classifier_kernel[(blocks * triton.cdiv(self.d, product.columns),)](
            g,
            e,
            found.scale,
            self.order,
            *(NO_TAIL if self.tail is None else self.tail.of_c),
            matrix(out),
            self._kept(group, found, "c"),
            self.row_blocks,
            group.tile * self.tiles.block_v,
            self.n,
            self.v,
            self.d,
            **self._compiled(rows, "c"),
            AT_ONCE=self.merged["c"] >= self.row_blocks,
            G_DESCRIPTOR=g_descriptor,
            E_DESCRIPTOR=e_descriptor,
        )

    def _write_bias(self, group: Group, found: Residuals, out: Tensor) -> None:
        block = self.tiles.block_v
        bias_kernel[(group.tiles,)](
            found.bias,
            self.order,
            out,
            group.tile * block,
            found.width,
            self.row_blocks,
            self.v,
            BLOCK=block,
            enable_fp_fusion=self.call.schedule.fp_fusion,
        )

    def _rows_that_count(self, out: Tensor | None) -> Tensor:
        """E in `out`, if any, with zeros in ignored rows: they may hold NaN, and 0 times NaN is NaN. At the scales that
        residuals do without."""
        embeddings = self.call.embeddings
        if self.scales_rows:
            out = torch.empty((self.n, self.d), dtype=self.dtype, device=embeddings.device) if out is None else out
            scaled_rows_kernel[(triton.cdiv(self.n, SCALED_ROWS) * triton.cdiv(self.d, SCALED_COLUMNS),)](
                matrix(embeddings),
                *self.rows,
                self.scale,
                matrix(out),
                self.n,
                self.d,
                self.call.ignore_index,
                BLOCK=self.tiles.block_n,
                ROWS=SCALED_ROWS,
                COLUMNS=SCALED_COLUMNS,
            )
            return out
        valid = self.call.targets != self.call.ignore_index
        return torch.where(valid[:, None], embeddings, embeddings.new_zeros(()), out=out)

    def _finish_embeddings(self, acc: Accumulator, out: Tensor) -> None:
        programs, rows, columns = self._blocks_of_e()
        finish_embeddings_kernel[(programs,)](
            acc,
            *self.rows,
            *(NO_TAIL if self.tail is None else self.tail.of_e),
            matrix(out),
            self.n,
            self.d,
            self.call.ignore_index,
            ROWS=rows,
            COLUMNS=columns,
            **options(self.of["e"], self.call.schedule),
        )

    def _blocks_of_e(self) -> tuple[int, int, int]:
        """(programs, rows, columns): dE as programs own it."""
        rows, columns = min(self.product.rows, self.tiles.block_n), self.of["e"].columns
        return triton.cdiv(self.n, rows) * triton.cdiv(self.d, columns), rows, columns

    def _factor(self, x: Tensor | None, block: tuple[int, int]) -> tuple[Any, bool]:
        """`operand`, made once of what all groups share."""
        assert x is not None
        key = x.data_ptr(), x.shape, x.stride(), block
        if key not in self._factors:
            self._factors[key] = operand(x, block, self.call.schedule)
        return self._factors[key]

    def _compiled(self, rows: int, name: str) -> dict[str, Any]:
        return {
            "MERGED": self.merged[name],
            "VARIANT": self.flags,
            "DTYPE": TL_DTYPES[self.dtype],
            "TILES": self.tiles,
            "ROWS": rows,
            "PRODUCT": self.of[name],
            **options(self.of[name], self.call.schedule),
        }

    def _report(self, stats: Statistics) -> None:
        of_all = self.row_blocks * triton.cdiv(self.v, self.tiles.block_v)
        stats.order = self.order
        if self.tail is not None:
            stats.tiles, stats.tail_share = self.tail.tiles, self.tail.share
            for name in "ec":
                if self._drops[name]:
                    self.kept[name], self.mass[name] = int((self.tail.tiles != 0).sum()), self.tail.lost
        if self.want_e:
            stats.tiles_kept_e, stats.tiles_skipped_e = self.kept["e"], of_all - self.kept["e"]
            stats.filtered_mass_e = self.mass["e"]
        if self.want_c:
            stats.tiles_kept_c, stats.tiles_skipped_c = self.kept["c"], of_all - self.kept["c"]
            stats.filtered_mass_c = self.mass["c"]


def _accumulator(output: Tensor, variant: Variant, shape: tuple[int, int, int]) -> Accumulator:
    dtype = torch.float32 if variant.accumulate == "fp32" else output.dtype
    total = torch.zeros(shape, dtype=dtype, device=output.device)
    return Accumulator(total, torch.zeros_like(total) if variant.accumulate in ("kahan", "hilo") else None)
