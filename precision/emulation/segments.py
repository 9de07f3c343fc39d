"""The gradients of granularity=segment: one product of what each owner keeps, and the tail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Statistics

from ..decisions import decisions
from .chain import Chain
from .gradients import Gradients
from .modes import Modes
from .residuals import Backward, Residuals
from .setup import HEADROOM, Setup
from .staged import resolved
from .sums import rescaled
from .tail import Tail, before_tail, part_of


class SegmentGradients(Gradients):
    """What is kept, and what rows lose, is what a call decided."""

    def __init__(self, setup: Setup, backward: Backward, runs: Sequence[Modes], taken: Statistics | None) -> None:
        super().__init__(setup, backward, runs, taken)
        self.decided = decisions(setup.problem, setup.variant, setup.schedule, taken)
        self.blocks: dict[Any, list[Chain]] = {}  # dE of each row block, by what the product depends on
        share, lost = self.decided.share, (self.decided.lost_e, self.decided.lost_c)
        self.tail = None if share is None else Tail(setup, backward, share, *lost)

    def chunk(self, part: Residuals) -> list[Tensor]:
        first, inside = int(part.columns.ids[0]), part.columns.inside
        found = dict[Any, Tensor]()
        for modes in {_of_product(modes) for modes in self.runs}:
            if modes.key("tile_product") not in found:
                self._add_embeddings(part, first, modes)
                found[modes.key("tile_product")] = self._classifier(part, first, modes)

        def output(modes: Modes) -> Tensor:
            v = found[_of_product(modes).key("tile_product")]
            of_tail = resolved(resolved(modes, "cast_output"), "add_tail")
            if self.tail is not None and self._drops(before_tail(of_tail)):
                v = self.tail.of_classifier(v, first, of_tail)
            return self._cast_output(v, resolved(modes, "cast_output"))[inside]

        return self._by_output(output)

    def d_embeddings(self) -> list[Tensor]:
        blocks = self.decided.blocks
        products = {
            key: torch.where(
                self.backward.rows.valid, blocks.in_batch(torch.cat([c.result() for c in chains])) * HEADROOM, 0.0
            )
            for key, chains in self.blocks.items()
        }

        def output(modes: Modes) -> Tensor:
            modes = resolved(modes, "cast_output")
            before = resolved(modes, "add_tail")
            v = products[_of_product(modes).key("tile_product")]
            if self.tail is not None and self._drops(before_tail(before)):
                v = self.tail.of_embeddings(v, before)
            v = rescaled(v, self.backward.upstream(resolved(before, "add_increment")).scale)
            return self._cast_output(v, modes)[: self.setup.n]

        return self._by_output(output)

    def _by_output(self, compute: Callable[[Modes], Tensor]) -> list[Tensor]:
        """One per run; runs that agree share theirs."""
        found = dict[Any, Tensor]()
        for modes in self.runs:
            if modes.key("cast_output") not in found:
                found[modes.key("cast_output")] = compute(modes)
        return [found[modes.key("cast_output")] for modes in self.runs]

    def _cast_output(self, v: Tensor, modes: Modes) -> Tensor:
        return v.float().to(self.setup.dtype) if modes["cast_output"] == "on" else v.double()

    def _add_embeddings(self, part: Residuals, first: int, modes: Modes) -> None:
        """(R, n) residuals of these columns into dE's chains."""
        g = self.decided.blocks.in_order(part.for_embeddings(modes).flatten(2).flatten(0, 1))
        g = g.unflatten(0, (-1, self.tiles.block_n))  # (row blocks, BLOCK_N, n)
        key, on = modes.key("tile_product"), modes["tile_product"] == "on"
        if key not in self.blocks:
            machine = self.setup.machine if on else None
            self.blocks[key] = [Chain(machine, self.setup.schedule.column_segments.block_v) for _ in range(len(g))]
        kept = part_of(self.decided.words, first, g.shape[2]) if self._drops(modes) else None
        other = part.columns.storage if on else part.columns.double
        for b, chain in enumerate(self.blocks[key]):
            chain.add(g[b], other, None if kept is None else kept[b])

    def _classifier(self, part: Residuals, first: int, modes: Modes) -> Tensor:
        """(n, D) of dC, before its tail."""
        rows, block_v, on = self.backward.rows, self.tiles.block_v, modes["tile_product"] == "on"
        g = part.for_classifier(modes).flatten(2).flatten(0, 1).T.unflatten(0, (-1, block_v))  # (tiles, BLOCK_V, R)
        kept = part_of(self.decided.rows, 0, g.shape[2]) if self._drops(modes) else None
        machine, other = (self.setup.machine, rows.storage) if on else (None, rows.double)
        found = torch.cat(
            [
                Chain(machine, self.tiles.block_n)
                .add(g[t], other, None if kept is None else kept[first // block_v + t])
                .result()
                for t in range(len(g))
            ]
        )
        top = part.block_scale(modes)[0]
        return found * (top.float() if on else top)

    def _drops(self, modes: Modes) -> bool:
        later = ("cast_residual", "tile_product", "cast_increment")
        return modes["is_live"] != "off" and not any(modes[stage] == "exact" for stage in later)


def _of_product(modes: Modes) -> Modes:
    """Those under which a run's products are computed."""
    return before_tail(resolved(resolved(modes, "cast_output"), "add_tail"))
