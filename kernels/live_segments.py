"""Host side of what rows keep: which segments, by the record of the forward pass, and which words have a live entry."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from .backend import TL_DTYPES
from .launch import Call, matrix, operand, options, vector
from .record import Record
from .row_segments import live_rows_kernel, mark_words_kernel, row_residuals_kernel
from .tail import lost_rows_kernel
from .upstream import Upstream

BLOCK = 64
"""Lines of a step, where no tensor core multiplies."""
ROWS = 32
"""Of a program that judges rows."""
BITS = 2**25
"""Bytes for which entries are live, at once."""


class LiveSegments:
    """Of one backward pass."""

    def __init__(self, call: Call, row_max: Tensor, log_sum: Tensor, record: Record, upstream: Upstream) -> None:
        self.call, self.record = call, record
        self.tiles = call.schedule.row_segments
        self.dtype, self.device = call.embeddings.dtype, call.embeddings.device
        self.n, self.v, self.d = call.shape
        self.segments = len(record.log_mass)
        self.row_blocks = triton.cdiv(self.n, self.tiles.block_n)
        self.embeddings, self.bias = matrix(call.embeddings), vector(call.bias)
        block = self.tiles.block_v, self.tiles.block_d
        self.classifier, self.has_descriptor = operand(call.classifier, block, call.schedule)
        self.rows = (vector(call.targets), row_max, log_sum, vector(upstream.dloss), vector(upstream.dlse))

    def judge(self, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """(segments, N) int8 which are kept, (splits, N) int32 how many in each split of the forward pass, and (splits,
        N) float64 probability in the others, for `joined`."""
        live = torch.empty((self.segments, self.n), dtype=torch.int8, device=self.device)
        lost = self._of_splits()
        count = torch.empty_like(lost, dtype=torch.int32)
        schedule = self.call.schedule
        live_rows_kernel[(len(lost) * triton.cdiv(self.n, ROWS),)](
            self.record,
            *self.rows,
            live,
            lost,
            count,
            eps,
            self.segments,
            self._per_split(),
            self.n,
            self.call.ignore_index,
            BLOCK=BLOCK,
            ROWS=ROWS,
            SEGMENT=schedule.segment_columns,
            enable_fp_fusion=schedule.fp_fusion,
        )
        return live, count, lost

    def lost(self, live: Tensor) -> Tensor:
        """(N,) probability in the tiles of the backward pass that are not `live` (tiles, N)."""
        lost = self._of_splits()
        schedule = self.call.schedule
        lost_rows_kernel[(len(lost) * triton.cdiv(self.n, ROWS),)](
            self.record,
            *self.rows,
            live,
            lost,
            self.segments,
            self._per_split(),
            schedule.backward.block_v // schedule.segment_columns,
            self.n,
            self.call.ignore_index,
            BLOCK=BLOCK,
            ROWS=ROWS,
            enable_fp_fusion=schedule.fp_fusion,
        )
        return joined(lost)

    def _of_splits(self) -> Tensor:
        return torch.empty((len(self.record.base), self.n), dtype=torch.float64, device=self.device)

    def _per_split(self) -> int:
        """Segments of a split of the forward pass."""
        schedule = self.call.schedule
        per_tile = schedule.forward.block_v // schedule.segment_columns
        return schedule.cut(self.n, self.v).per_split * per_tile

    def words(self) -> Tensor:
        """(row blocks, V) int8, of which nothing is marked yet."""
        return torch.zeros((self.row_blocks, self.v), dtype=torch.int8, device=self.device)

    def words_in_record(self) -> Tensor:
        """The same in the record's memory, which is twice as much with segments of 128 and blocks of 128 rows: nothing
        is judged by it any more."""
        size, memory = self.row_blocks * self.v, self.memory(torch.int8)
        return memory[:size].view(self.row_blocks, self.v).zero_() if size <= len(memory) else self.words()

    def memory(self, dtype: torch.dtype) -> Tensor:
        """The record's, flat, for whoever needs some once nothing is judged by it."""
        flat = self.record.log_mass.data.view(-1)  # .data: that autograd saved it is no matter here
        return flat[: len(flat) // 2 * 2].view(dtype)

    @property
    def at_once(self) -> int:
        """Chunks whose live entries BITS hold."""
        return max(1, 8 * BITS // (self.tiles.block_n * self.tiles.block_v))

    def residuals(
        self,
        members: Tensor,
        table: Tensor,
        chunks: range,
        eps: float,
        words: Tensor,
        *,
        keep_targets: bool,
        place: Tensor | None = None,
        top: Tensor | None = None,
        out: Tensor | None = None,
        before_marks: Callable[[], None] = lambda: None,
    ) -> None:
        """Of what `members` lists and `table` cuts, those of `chunks` into `out`, where there is one, over `top`. Marks
        in `words` which have a live entry, or a target; rows are at `place` among those of blocks. `before_marks` is
        called before any launch that reads `place`."""
        call, tiles = self.call, self.tiles
        for here in (chunks[k : k + self.at_once] for k in range(0, len(chunks), self.at_once)):
            bits = torch.empty((len(here) * tiles.block_n, tiles.block_v // 8), dtype=torch.uint8, device=self.device)
            row_residuals_kernel[(len(here),)](
                self.embeddings,
                self.classifier,
                self.bias,
                *self.rows,
                members,
                table,
                top,
                None if out is None else out[(here.start - chunks.start) * tiles.block_n :],
                bits,
                call.cap,
                eps,
                here.start,
                self.n,
                self.v,
                self.d,
                call.ignore_index,
                KEEP_TARGETS=keep_targets,
                DTYPE=TL_DTYPES[self.dtype],
                TILES=tiles,
                C_DESCRIPTOR=self.has_descriptor,
                **options(tiles, call.schedule),
            )
            before_marks()
            # Half the time of four warps and 16 rows a step: 0.13 ms for 0.27 (H200, gemma-web).
            mark_words_kernel[(len(here),)](
                *(bits, members, table, place, words, here.start, self.n, self.v),
                TILES=tiles,
                STEP=min(32, tiles.block_n),
                num_warps=1,
            )


def joined(lost: Tensor) -> Tensor:
    """(N,) fp32 of splits. The record's rounding may exceed 1 where a row without upstream loses all."""
    return lost.sum(0).clamp(max=1.0).float()
