"""Host side of granularity=segment: what is kept, in lists; residuals of a group of it, and their products."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from .backend import TL_DTYPES
from .column_segments import column_residuals_kernel, column_segments_kernel
from .launch import Call, matrix, operand, options, vector
from .lists import Counted, Lists
from .row_segments import live_rows_kernel, mark_words_kernel, row_residuals_kernel, row_segments_kernel
from .sampling import sample_rows
from .statistics import Statistics
from .tail import pull_of_rows_kernel, pull_of_words_kernel, tail_share_kernel
from .upstream import Upstream

GROUP_BYTES = 2**25
"""Memory for the residuals that are held at once."""

BLOCK = 64
PARTS = 128
"""Partial sums of the tail's two products, which fill a GPU."""


def segment_gradients(
    call: Call,
    row_max: Tensor,
    log_sum: Tensor,
    log_mass: Tensor,
    upstream: Upstream,
    wanted: tuple[bool, bool],
    stats: Statistics | None,
) -> tuple[Tensor | None, Tensor | None]:
    """dE and dC of granularity=segment, each where `wanted` says so; `log_mass` is the forward pass's record."""
    return _Segments(call, row_max, log_sum, log_mass, upstream, stats).run(*wanted)


class _Segments:
    """One backward pass."""

    def __init__(
        self,
        call: Call,
        row_max: Tensor,
        log_sum: Tensor,
        log_mass: Tensor,
        upstream: Upstream,
        stats: Statistics | None,
    ) -> None:
        self.call, self.log_mass, self.stats = call, log_mass, stats
        self.tiles, self.product = call.schedule.segments, call.schedule.product
        self.dtype, self.device = call.embeddings.dtype, call.embeddings.device
        self.n, self.v, self.d = call.shape
        self.row_blocks = triton.cdiv(self.n, self.tiles.block_n)
        self.eps = call.variant.threshold(torch.finfo(self.dtype).eps)
        self.bias, self.target, self.softcap = vector(call.bias), vector(call.targets), call.softcap
        self.row_max, self.log_sum = row_max, log_sum
        self.dloss, self.dlse = vector(upstream.dloss), vector(upstream.dlse)
        self.rows = (self.target, row_max, log_sum, self.dloss, self.dlse)
        self.size = {"BLOCK": BLOCK, "enable_fp_fusion": call.schedule.fp_fusion}
        self.most = max(1, GROUP_BYTES // (self.tiles.block_n * self.tiles.block_v * call.embeddings.element_size()))

    def run(self, want_e: bool, want_c: bool) -> tuple[Tensor | None, Tensor | None]:
        live, lost, top = self._live_rows()
        counted = Counted(live)
        # Till the count is there the device does what needs no lists.
        share = pull_e = pull_c = None
        if self.call.variant.tail == "rank1":
            share = self._tail_share(live, lost)
            pull_e = self._pull_of_words(share) if want_e else None
            pull_c = self._pull_of_rows(lost) if want_c else None
        if self.stats is not None:
            self.stats.tail_share, self.stats.segments_c = share, live
        lists = counted.lists(self.tiles.block_n)
        del live, counted
        words = torch.zeros((self.row_blocks, self.v), dtype=torch.int8, device=self.device)
        d_classifier, marked = self._classifier(lists, top, share, pull_c, words, want_c)
        if want_c:
            self._count("c", lists, lost, len(self.log_mass) * self.n)
        d_embeddings = self._embeddings(marked, pull_e) if want_e else None
        return d_embeddings, d_classifier

    def _live_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """(tiles, N) int8 segments that are kept, (N,) probability in the others, (1,) scale of dC's residuals."""
        live = torch.empty(self.log_mass.shape, dtype=torch.int8, device=self.device)
        lost, scale = (torch.empty(self.n, device=self.device) for _ in range(2))
        live_rows_kernel[(triton.cdiv(self.n, BLOCK),)](
            self.log_mass,
            *self.rows,
            live,
            lost,
            scale,
            self.eps,
            len(self.log_mass),
            self.n,
            self.call.ignore_index,
            BLOCK_V=self.tiles.block_v,
            **self.size,
        )
        top = torch.ones(1, device=self.device) if self.dtype == torch.float32 else scale.max().reshape(1)
        return live, lost, top

    def _tail_share(self, live: Tensor, lost: Tensor) -> Tensor:
        """(V,) fp32 how the probability that sampled rows lose is spread; 0 where they lose none."""
        call = self.call
        sample = sample_rows(call.targets, call.ignore_index)
        share = torch.empty(self.v, device=self.device)
        tail_share_kernel[(len(live),)](
            matrix(call.embeddings),
            matrix(call.classifier),
            self.bias,
            self.row_max,
            self.log_sum,
            sample,
            live,
            share,
            self.softcap,
            len(sample),
            self.n,
            self.v,
            self.d,
            TILES=self.tiles,
            **options(self.tiles, call.schedule),
        )
        total = lost[sample].sum()
        return torch.where(total > 0, share / total, 0.0)

    def _classifier(
        self, lists: Lists, top: Tensor, share: Tensor | None, pull: Tensor | None, words: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Counted]:
        """dC, where it is wanted; marks in `words` (row blocks, V) what has a live entry, and has that counted."""
        call, tiles = self.call, self.tiles
        out = torch.empty((self.v, self.d), dtype=self.dtype, device=self.device) if wanted else None
        e = matrix(call.embeddings)
        c, c_descriptor = operand(call.classifier, (tiles.block_v, tiles.block_d), call.schedule)
        step, rows = self.product.step(tiles.block_n), min(self.product.rows, tiles.block_v)
        slices = triton.cdiv(self.d, self.product.columns)
        groups = list(lists.groups(self.most))
        most = max(chunks for *_, chunks in groups)
        residuals, live = self._room(most, self.dtype), self._room(most, torch.int8)
        g, g_descriptor = operand(residuals, (step, rows), call.schedule)
        marked: Counted | None = None
        for tile, count, first, chunks in groups:
            if chunks:
                row_residuals_kernel[(chunks,)](
                    e,
                    c,
                    self.bias,
                    *self.rows,
                    lists.members,
                    lists.chunk,
                    top,
                    residuals,
                    live,
                    self.softcap,
                    self.eps,
                    first,
                    self.n,
                    self.v,
                    self.d,
                    call.ignore_index,
                    DTYPE=TL_DTYPES[self.dtype],
                    TILES=tiles,
                    C_DESCRIPTOR=c_descriptor,
                    **options(tiles, call.schedule),
                )
                mark_words_kernel[(chunks,)](
                    live, lists.members, lists.chunk, words, first, self.n, self.v, TILES=tiles, STEP=16
                )
            if first + chunks == lists.firsts[-1] and marked is None:
                marked = Counted(words)
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
                    out,
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
        return out, marked or Counted(words)

    def _embeddings(self, marked: Counted, pull: Tensor | None) -> Tensor:
        call, tiles = self.call, self.tiles
        lists = marked.lists(tiles.block_v)
        if self.stats is not None:
            self.stats.segments_e = marked.live
        out = torch.empty((self.n, self.d), dtype=self.dtype, device=self.device)
        kept = torch.empty((lists.firsts[-1], tiles.block_n), device=self.device)
        lost = torch.empty(self.n, device=self.device)
        e, e_descriptor = operand(call.embeddings, (tiles.block_n, tiles.block_d), call.schedule)
        c = matrix(call.classifier)
        groups = list(lists.groups(self.most))
        residuals = self._room(max(chunks for *_, chunks in groups), self.dtype)
        g, g_descriptor = operand(residuals, (tiles.block_n, self.product.step(tiles.block_v)), call.schedule)
        for block, count, first, chunks in groups:
            if chunks:
                column_residuals_kernel[(chunks,)](
                    e,
                    c,
                    self.bias,
                    *self.rows,
                    lists.members,
                    lists.chunk,
                    residuals,
                    kept,
                    self.softcap,
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
            column_segments_kernel[(count * triton.cdiv(self.d, self.product.columns),)](
                g,
                c,
                lists.members,
                lists.start,
                lists.first,
                *self.rows,
                kept,
                pull,
                lost,
                out,
                block,
                first,
                self.n,
                self.v,
                self.d,
                call.ignore_index,
                TILES=tiles,
                PRODUCT=self.product,
                G_DESCRIPTOR=g_descriptor,
                **options(self.product, call.schedule),
            )
        self._count("e", lists, lost, self.row_blocks * self.v)
        return out

    def _room(self, chunks: int, dtype: torch.dtype) -> Tensor:
        """For a number of each residual of some chunks."""
        shape = (max(chunks, 1) * self.tiles.block_n, self.tiles.block_v)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _pull_of_words(self, share: Tensor) -> Tensor:
        """(D,) fp32 C^T q."""
        words = triton.cdiv(self.v, PARTS * BLOCK) * BLOCK
        parts = torch.empty((triton.cdiv(self.v, words), self.d), device=self.device)
        pull_of_words_kernel[(len(parts) * triton.cdiv(self.d, BLOCK),)](
            matrix(self.call.classifier), share, parts, self.v, self.d, words, **self.size
        )
        return parts.sum(0, dtype=torch.float64).float()

    def _pull_of_rows(self, lost: Tensor) -> Tensor:
        """(D,) fp32 E^T m."""
        words = triton.cdiv(self.n, PARTS * BLOCK) * BLOCK
        parts = torch.empty((triton.cdiv(self.n, words), self.d), device=self.device)
        pull_of_rows_kernel[(len(parts) * triton.cdiv(self.d, BLOCK),)](
            matrix(self.call.embeddings),
            self.target,
            self.dloss,
            self.dlse,
            lost,
            parts,
            self.n,
            self.d,
            words,
            self.call.ignore_index,
            **self.size,
        )
        return parts.sum(0, dtype=torch.float64).float()

    def _count(self, name: str, lists: Lists, lost: Tensor, of_all: int) -> None:
        if self.stats is not None:
            kept = lists.kept
            values: dict[str, Any] = {
                f"tiles_kept_{name}": kept,
                f"tiles_skipped_{name}": of_all - kept,
                f"filtered_mass_{name}": lost,
            }
            for field, value in values.items():
                setattr(self.stats, field, value)
