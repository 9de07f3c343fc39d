"""The gradients of granularity=segment: one product of what each owner keeps, and the tail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Statistics
from ccelab.kernels.live_segments import BLOCK
from ccelab.kernels.rank1 import PARTS

from ..decisions import decisions
from .chain import Chain
from .gradients import Gradients
from .modes import Modes
from .residuals import Backward, Residuals
from .setup import HEADROOM, Setup
from .staged import resolved
from .sums import rescaled


class SegmentGradients(Gradients):
    """What is kept, and what rows lose, is what a call decided."""

    def __init__(self, setup: Setup, backward: Backward, runs: Sequence[Modes], taken: Statistics | None) -> None:
        super().__init__(setup, backward, runs)
        self.decided = decisions(setup.problem, setup.variant, setup.schedule, taken)
        self.blocks: dict[Any, list[Chain]] = {}  # dE of each row block, by what the product depends on
        share = self.decided.share
        self.pulls = {} if share is None else {x: self._pulls(share, x) for x in (torch.float32, torch.float64)}

    def chunk(self, part: Residuals) -> list[Tensor]:
        first, inside = int(part.columns.ids[0]), part.columns.inside
        found = dict[Any, Tensor]()
        for modes in {_of_product(modes) for modes in self.runs}:
            if modes.key("tile_product") not in found:
                self._add_embeddings(part, first, modes)
                found[modes.key("tile_product")] = self._classifier(part, first, modes)

        def output(modes: Modes) -> Tensor:
            v = found[_of_product(modes).key("tile_product")]
            v = self._tail_of_classifier(v, first, resolved(resolved(modes, "cast_output"), "add_tail"))
            return self._cast_output(v, resolved(modes, "cast_output"))[inside]

        return self._by_output(output)

    def d_embeddings(self) -> list[Tensor]:
        products = {
            key: torch.where(self.backward.rows.valid, torch.cat([c.result() for c in chains]) * HEADROOM, 0.0)
            for key, chains in self.blocks.items()
        }

        def output(modes: Modes) -> Tensor:
            modes = resolved(modes, "cast_output")
            before = resolved(modes, "add_tail")
            v = self._tail_of_embeddings(products[_of_product(modes).key("tile_product")], before)
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
        g = part.for_embeddings(modes).flatten(2)  # (row blocks, BLOCK_N, n)
        key, on = modes.key("tile_product"), modes["tile_product"] == "on"
        if key not in self.blocks:
            machine = self.setup.machine if on else None
            self.blocks[key] = [Chain(machine, self.setup.schedule.column_segments.block_v) for _ in range(len(g))]
        kept = _part(self.decided.words, first, g.shape[2]) if self._drops(modes) else None
        other = part.columns.storage if on else part.columns.double
        for b, chain in enumerate(self.blocks[key]):
            chain.add(g[b], other, None if kept is None else kept[b])

    def _classifier(self, part: Residuals, first: int, modes: Modes) -> Tensor:
        """(n, D) of dC, before its tail."""
        rows, block_v, on = self.backward.rows, self.tiles.block_v, modes["tile_product"] == "on"
        g = part.for_classifier(modes).flatten(2).flatten(0, 1).T.unflatten(0, (-1, block_v))  # (tiles, BLOCK_V, R)
        kept = _part(self.decided.rows, 0, g.shape[2]) if self._drops(modes) else None
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

    def _tail_of_embeddings(self, v: Tensor, modes: Modes) -> Tensor:
        """(R, D) of dE and its tail, at HEADROOM over the scale of its row."""
        share, before = self.decided.share, _before_tail(modes)
        if share is None or not self._drops(before):
            return v
        dtype = torch.float32 if modes["add_tail"] == "on" else torch.float64
        up = self.backward.upstream(before)
        lost = torch.nn.functional.pad(self.decided.lost_e, (0, len(v) - self.setup.n)).to(dtype)[:, None]
        m = torch.where(lost > 0, lost * (up.d_loss.to(dtype) + up.d_lse.to(dtype)) * HEADROOM, 0.0)
        q = self.pulls[dtype][0][None, :]
        return torch.where(self.backward.rows.valid, v.to(dtype) + m * q, 0.0)

    def _tail_of_classifier(self, v: Tensor, first: int, modes: Modes) -> Tensor:
        """(n, D) of dC and its tail."""
        share = self.decided.share
        if share is None or not self._drops(_before_tail(modes)):
            return v
        dtype = torch.float32 if modes["add_tail"] == "on" else torch.float64
        share, q = _part(share, first, len(v)).to(dtype), self.pulls[dtype][1]
        return v.to(dtype) + share[:, None] * q[None, :]

    def _pulls(self, share: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(D,) each: C^T q and E^T m."""
        n, share = self.setup.n, share.to(dtype)
        d_loss, d_lse = (x[:n, 0].to(dtype) for x in self.backward.gradients)
        lost = self.decided.lost_c.to(dtype)
        m = torch.where(lost > 0, lost * (d_loss + d_lse), 0.0)
        words = self._pull(self.setup.problem.classifier.detach().to(dtype), share)
        return words, self._pull(self.backward.rows.storage[:n].to(dtype), m)

    def _pull(self, rows: Tensor, weights: Tensor) -> Tensor:
        """(D,) the weighted sum of rows: in each of the parts 64 running sums, then those, and then the parts."""
        if rows.dtype == torch.float64:
            return torch.where((weights != 0)[:, None], rows, 0.0).T @ weights
        words = -(-len(rows) // (PARTS * BLOCK)) * BLOCK
        missing = -len(rows) % words
        rows = torch.nn.functional.pad(torch.where((weights != 0)[:, None], rows, 0.0), (0, 0, 0, missing))
        weights = torch.nn.functional.pad(weights, (0, missing))
        products = (rows * weights[:, None]).unflatten(0, (-1, words // BLOCK, BLOCK))
        total = torch.zeros_like(products[:, 0])
        for step in range(products.shape[1]):
            total = total + products[:, step]
        return total.double().sum(1).float().double().sum(0).float()

    def _drops(self, modes: Modes) -> bool:
        later = ("cast_residual", "tile_product", "cast_increment")
        return modes["is_live"] != "off" and not any(modes[stage] == "exact" for stage in later)


def _before_tail(modes: Modes) -> Modes:
    return resolved(resolved(resolved(modes, "add_increment"), "cast_increment"), "tile_product")


def _of_product(modes: Modes) -> Modes:
    """Those under which a run's products are computed."""
    return _before_tail(resolved(resolved(modes, "cast_output"), "add_tail"))


def _part(x: Tensor, first: int, count: int) -> Tensor:
    """`count` columns from `first` on, zeros beyond the last."""
    x = x[..., first : first + count]
    return torch.nn.functional.pad(x, (0, count - x.shape[-1]))
