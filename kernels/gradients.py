"""Host side of the backward pass: groups of the vocabulary, what is stored of each, and who multiplies it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from .accumulate import Accumulator
from .backend import TL_DTYPES
from .backward import Residuals, residual_kernel
from .launch import Call, matrix, operand, options, vector
from .ordering import mean_logit_order, mean_prob_order
from .products import Kept, bias_kernel, classifier_kernel, embeddings_kernel, finish_embeddings_kernel
from .record import Record
from .sampling import sample_rows
from .scales import shared_scales
from .schedule import GROUP_BYTES
from .segments import segment_gradients
from .statistics import Statistics
from .upstream import Upstream
from .variant import Variant

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A range of the vocabulary as this call orders it, whole tiles but for the last."""

    tile: int  # the first
    tiles: int
    classifier: Tensor  # its rows


def backward(
    call: Call,
    row_max: Tensor,
    log_sum: Tensor,
    record: Record | None,
    upstream: Upstream,
    wanted: tuple[bool, bool, bool],
    stats: Statistics | None,
) -> Gradients:
    """dE, dC and dbias, each where `wanted` says so. `record` is what the forward pass left for segments."""
    outputs = (call.embeddings, call.classifier, call.bias)
    if call.shape[0] == 0 or not any(wanted):
        d_e, d_c, d_b = (
            torch.zeros_like(x) if x is not None and w else None for x, w in zip(outputs, wanted, strict=True)
        )
        return d_e, d_c, d_b
    if record is None:
        return _Backward(call, row_max, log_sum, upstream, wanted, stats).run()
    d_e, d_c = None, None
    if wanted[0] or wanted[1]:
        d_e, d_c = segment_gradients(call, row_max, log_sum, record, upstream, wanted[:2], stats)
    # dbias is complete: it takes in every residual.
    d_b = _Backward(call, row_max, log_sum, upstream, (False, False, True), None).run()[2] if wanted[2] else None
    return d_e, d_c, d_b


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
    ) -> None:
        self.call, self.stats, self.variant = call, stats, call.variant
        self.tiles, self.product = call.schedule.backward, call.schedule.product
        self.want_e, self.want_c, self.want_bias = wanted
        self.dtype = call.embeddings.dtype
        self.n, self.v, self.d = call.shape
        self.row_blocks = triton.cdiv(self.n, self.tiles.block_n)
        # In fp32 the scales of rows are left to increments of dE alone.
        self.shared = upstream.even and self.dtype != torch.float32
        self.order = _vocabulary_order(call, row_max, log_sum)
        self.bias, self.target = vector(call.bias), vector(call.targets)
        self.rows = (self.target, row_max, log_sum, vector(upstream.dloss), vector(upstream.dlse))
        cuts = {
            "e": (self.tiles.block_v, triton.cdiv(self.v, self.tiles.block_v)),
            "c": (self.tiles.block_n, self.row_blocks),
        }
        self.merged = {
            name: min(count, call.schedule.merged(block, self.variant.accumulate, is_filtered=self._filters(name)))
            for name, (block, count) in cuts.items()
        }
        wide = self.merged["e"] > 1, self.merged["c"] >= self.row_blocks > 1
        self.of = {name: self.product.wide if x else self.product for name, x in zip("ec", wide, strict=True)}
        self.of["e"] = self.of["e"].spread(self.n, self.d)
        # Of the residuals of dC: one power of two for all row blocks of an increment.
        together = self.merged["c"]
        scale: Tensor = shared_scales(  # type: ignore[no-untyped-call]
            self.rows, call.shape, self.tiles.block_n, together, call.ignore_index, self.dtype
        )
        self.scale = scale.repeat_interleave(together)[: self.row_blocks]
        self.kept = {"e": 0, "c": 0}
        self.mass = {"e": torch.zeros(self.n, device=row_max.device), "c": torch.zeros(self.n, device=row_max.device)}

    def run(self) -> Gradients:
        call, device = self.call, self.call.embeddings.device
        acc = _accumulator(call.embeddings, self.variant, self._blocks_of_e()) if self.want_e else None
        # An ignored row may hold NaN, and 0 times NaN is NaN.
        valid = (call.targets != call.ignore_index)[:, None]
        embeddings = torch.where(valid, call.embeddings, 0) if self.want_c else None
        d_classifier = torch.empty((self.v, self.d), dtype=self.dtype, device=device) if self.want_c else None
        d_bias = (
            torch.empty(self.v, dtype=call.bias.dtype, device=device)
            if self.want_bias and call.bias is not None
            else None
        )
        for group in self._groups():
            found = self._residuals(group)
            if acc is not None:
                self._add_embeddings(group, found, acc)
            if embeddings is not None and d_classifier is not None:
                self._write_classifier(group, found, embeddings, d_classifier)
            if d_bias is not None:
                self._write_bias(group, found, d_bias)
            del group, found  # before the next ones are allocated
        d_embeddings = self._finish_embeddings(acc) if acc is not None else None
        if self.stats is not None:
            self._report(self.stats)
        return d_embeddings, d_classifier, d_bias

    def _groups(self) -> Iterator[_Group]:
        block, sorts = self.tiles.block_v, self.order is not None
        copies = 1 if self.shared else max(1, self.want_e + self.want_c)
        # A group's residuals are (N, words), and its words, where they are gathered, (words, D).
        widest = max(self.n * copies, self.d if sorts else 0)
        fits = GROUP_BYTES // (block * widest * self.call.embeddings.element_size())
        step = self.call.schedule.group or max(1, fits)
        if self.want_e and self.merged["e"] > 1:
            step = self.merged["e"] * self._increments(step)
        tiles = triton.cdiv(self.v, block)
        for first in range(0, tiles, step):
            words = slice(first * block, min((first + step) * block, self.v))
            yield _Group(tile=first, tiles=min(step, tiles - first), classifier=self._gathered(words))

    def _increments(self, tiles: int) -> int:
        """Of dE in so many tiles. Wide blocks leave no registers for a sum beside an increment, and narrow ones are for
        few rows, where launches are what takes the time."""
        return 1 if self.of["e"].columns > self.product.columns else max(1, tiles // self.merged["e"])

    def _gathered(self, words: slice) -> Tensor:
        """Rows of C in order, as a block: gathered by pointers, every product would wait for its loads."""
        classifier = self.call.classifier
        return classifier[words] if self.order is None else classifier[self.order[words]]

    def _residuals(self, group: _Group) -> Residuals:
        call, tiles, device = self.call, self.tiles, self.call.embeddings.device
        width, stats = group.tiles * tiles.block_v, self.stats

        def buffer(wanted: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.empty(shape, dtype=dtype, device=device) if wanted else None

        filters = (self.want_e and self.variant.filter_e, self.want_c and self.variant.filter_c)
        out = Residuals(
            for_e=buffer(self.want_e or (self.shared and self.want_c), self.n, width, dtype=self.dtype),
            for_c=buffer(self.want_c and not self.shared, self.n, width, dtype=self.dtype),
            scale=self.scale,
            bias=buffer(self.want_bias, self.row_blocks, width),
            live=buffer(any(filters), self.row_blocks, group.tiles, dtype=torch.int32),
            mass=torch.zeros((group.tiles, self.n), device=device) if any(filters) and stats is not None else None,
            width=width,
        )
        e, e_descriptor = operand(call.embeddings, (tiles.block_n, tiles.block_d), call.schedule)
        c, c_descriptor = operand(group.classifier, (tiles.block_v, tiles.block_d), call.schedule)
        unfiltered = (self.want_e and not self.variant.filter_e) or (self.want_c and not self.variant.filter_c)
        residual_kernel[(self.row_blocks * group.tiles,)](
            e,
            c,
            self.bias,
            *self.rows,
            self.order,
            out,
            call.softcap,
            self.variant.threshold(torch.finfo(self.dtype).eps),
            group.tile,
            group.tiles,
            self.n,
            self.v,
            self.d,
            call.ignore_index,
            FILTER=any(filters),
            KEEP_DEAD=unfiltered,
            DTYPE=TL_DTYPES[self.dtype],
            TILES=tiles,
            E_DESCRIPTOR=e_descriptor,
            C_DESCRIPTOR=c_descriptor,
            **options(tiles, call.schedule),
        )
        return out

    def _filters(self, name: str) -> bool:
        return bool(getattr(self.variant, f"filter_{name}"))

    def _kept(self, found: Residuals, tiles: int, name: str) -> Kept:
        """The tiles of a group that gradient `name` takes in, for every block of its rows; counted where asked for."""
        if not self._filters(name) or found.live is None:
            self.kept[name] += self.row_blocks * tiles
            return Kept(None, None)
        live = found.live if name == "e" else found.live.T.contiguous()
        if self.stats is not None and found.mass is not None:
            self.kept[name] += int(live.sum())
            self.mass[name] += found.mass.sum(0)
        places = torch.argsort(live, dim=1, descending=True, stable=True).int()
        return Kept(places, live.sum(1, dtype=torch.int32))

    def _add_embeddings(self, group: _Group, found: Residuals, acc: Accumulator) -> None:
        programs, rows, columns = self._blocks_of_e()
        step = self.of["e"].step(self.tiles.block_v)
        g, g_descriptor = self._factor(found.for_e, (rows, step))
        c, c_descriptor = self._factor(group.classifier, (step, columns))
        embeddings_kernel[(programs,)](
            g,
            c,
            acc,
            self.target,
            self._kept(found, group.tiles, "e"),
            group.tiles,
            len(group.classifier),
            self.n,
            self.d,
            self.call.ignore_index,
            **self._compiled(rows, "e"),
            AT_ONCE=self.merged["e"] >= group.tiles,
            G_DESCRIPTOR=g_descriptor,
            C_DESCRIPTOR=c_descriptor,
        )

    def _write_classifier(self, group: _Group, found: Residuals, embeddings: Tensor, out: Tensor) -> None:
        product, rows = self.of["c"], min(self.product.rows, self.tiles.block_v)
        step = product.step(self.tiles.block_n)
        g, g_descriptor = self._factor(found.for_e if found.for_c is None else found.for_c, (step, rows))
        e, e_descriptor = self._factor(embeddings, (step, product.columns))
        classifier_kernel[(found.width // rows * triton.cdiv(self.d, product.columns),)](
            g,
            e,
            found.scale,
            self.order,
            matrix(out),
            self._kept(found, group.tiles, "c"),
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

    def _write_bias(self, group: _Group, found: Residuals, out: Tensor) -> None:
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

    def _finish_embeddings(self, acc: Accumulator) -> Tensor:
        out = torch.empty((self.n, self.d), dtype=self.dtype, device=self.call.embeddings.device)
        programs, rows, columns = self._blocks_of_e()
        finish_embeddings_kernel[(programs,)](
            acc,
            *self.rows,
            matrix(out),
            self.n,
            self.d,
            self.call.ignore_index,
            ROWS=rows,
            COLUMNS=columns,
            **options(self.of["e"], self.call.schedule),
        )
        return out

    def _blocks_of_e(self) -> tuple[int, int, int]:
        """(programs, rows, columns): dE as programs own it."""
        rows, columns = min(self.product.rows, self.tiles.block_n), self.of["e"].columns
        return triton.cdiv(self.n, rows) * triton.cdiv(self.d, columns), rows, columns

    def _factor(self, x: Tensor | None, block: tuple[int, int]) -> tuple[Any, bool]:
        assert x is not None
        return operand(x, block, self.call.schedule)

    def _compiled(self, rows: int, name: str) -> dict[str, Any]:
        return {
            "MERGED": self.merged[name],
            "VARIANT": self.variant.flags("accumulate"),
            "DTYPE": TL_DTYPES[self.dtype],
            "TILES": self.tiles,
            "ROWS": rows,
            "PRODUCT": self.of[name],
            **options(self.of[name], self.call.schedule),
        }

    def _report(self, stats: Statistics) -> None:
        of_all = self.row_blocks * triton.cdiv(self.v, self.tiles.block_v)
        stats.order = self.order
        if self.want_e:
            stats.tiles_kept_e, stats.tiles_skipped_e = self.kept["e"], of_all - self.kept["e"]
            stats.filtered_mass_e = self.mass["e"]
        if self.want_c:
            stats.tiles_kept_c, stats.tiles_skipped_c = self.kept["c"], of_all - self.kept["c"]
            stats.filtered_mass_c = self.mass["c"]


def _vocabulary_order(call: Call, row_max: Tensor, log_sum: Tensor) -> Tensor | None:
    """(V,) int64 vocabulary ids in the order of the variant; None is the natural one."""
    e, c, bias = matrix(call.embeddings), matrix(call.classifier), vector(call.bias)
    if call.variant.order == "mean_logit":
        ids: Tensor = mean_logit_order(  # type: ignore[no-untyped-call]
            e, c, bias, vector(call.targets), call.shape, call.ignore_index, call.schedule.fp_fusion
        )
    elif call.variant.order == "mean_prob":
        tiles = call.schedule.backward
        sample = sample_rows(call.targets, call.ignore_index)
        ids = mean_prob_order(  # type: ignore[no-untyped-call]
            e, c, bias, row_max, log_sum, sample, call.softcap, call.shape, tiles, options(tiles, call.schedule)
        )
    else:
        return None
    return ids


def _accumulator(output: Tensor, variant: Variant, shape: tuple[int, int, int]) -> Accumulator:
    dtype = torch.float32 if variant.accumulate == "fp32" else output.dtype
    total = torch.zeros(shape, dtype=dtype, device=output.device)
    return Accumulator(total, torch.zeros_like(total) if variant.accumulate in ("kahan", "hilo") else None)
