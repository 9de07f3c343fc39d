"""The gradients of granularity=segment: one product of what each owner keeps, and the tail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Statistics
from ccelab.kernels.segments import BLOCK, PARTS

from ..decisions import decisions
from .gradients import Gradients
from .modes import Modes
from .residuals import Backward, Residuals
from .setup import HEADROOM, Setup
from .staged import resolved
from .sums import rescaled


class SegmentGradients(Gradients):
    """Takes the whole vocabulary as one chunk. What is kept, and what rows lose, is what a call decided."""

    def __init__(self, setup: Setup, backward: Backward, runs: Sequence[Modes], taken: Statistics | None) -> None:
        super().__init__(setup, backward, runs)
        self.decided = decisions(setup.problem, setup.variant, setup.schedule, taken)
        self.memo: dict[Any, Tensor] = {}
        self.part: Residuals | None = None

    def chunk(self, part: Residuals) -> list[Tensor]:
        self.part = part
        inside = part.columns.inside
        return [self._output_of("c", modes)[inside] for modes in self.runs]

    def d_embeddings(self) -> list[Tensor]:
        return [self._output_of("e", modes)[: self.setup.n] for modes in self.runs]

    def _output_of(self, name: str, modes: Modes) -> Tensor:
        modes = resolved(modes, "cast_output")

        def compute() -> Tensor:
            v = self._with_tail(name, resolved(modes, "add_tail"))
            if name == "e":
                before = resolved(resolved(modes, "add_tail"), "add_increment")
                v = rescaled(v, self.backward.upstream(before).scale)
            return v.float().to(self.setup.dtype) if modes["cast_output"] == "on" else v.double()

        return self._kept((name, "output", modes.key("cast_output")), compute)

    def _kept(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        if key not in self.memo:
            self.memo[key] = compute()
        return self.memo[key]

    def _with_tail(self, name: str, modes: Modes) -> Tensor:
        """(R, D) of dE, at HEADROOM over the scale of its row, or (n, D) of dC."""
        v = self._product(name, self._before_tail(modes))
        share = self.decided.share
        if share is None or not self._drops(modes):
            return v
        dtype = torch.float32 if modes["add_tail"] == "on" else torch.float64
        v, share = v.to(dtype), share.to(dtype)
        if name == "e":
            up = self.backward.upstream(self._before_tail(modes))
            lost = torch.nn.functional.pad(self.decided.lost_e, (0, len(v) - self.setup.n)).to(dtype)[:, None]
            m = torch.where(lost > 0, lost * (up.d_loss.to(dtype) + up.d_lse.to(dtype)) * HEADROOM, 0.0)
            q = self._pull(self.setup.problem.classifier.detach().to(dtype), share)
            return torch.where(self.backward.rows.valid, v + m * q[None, :], 0.0)
        d_loss, d_lse = (x[: self.setup.n, 0].to(dtype) for x in self.backward.gradients)
        lost = self.decided.lost_c.to(dtype)
        m = torch.where(lost > 0, lost * (d_loss + d_lse), 0.0)
        q = self._pull(self.backward.rows.embeddings[: self.setup.n].to(dtype), m)
        share = torch.nn.functional.pad(share, (0, len(v) - self.setup.v))
        return v + share[:, None] * q[None, :]

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

    def _before_tail(self, modes: Modes) -> Modes:
        return resolved(resolved(resolved(modes, "add_increment"), "cast_increment"), "tile_product")

    def _drops(self, modes: Modes) -> bool:
        later = ("cast_residual", "tile_product", "cast_increment")
        return modes["is_live"] != "off" and not any(modes[stage] == "exact" for stage in later)

    def _product(self, name: str, modes: Modes) -> Tensor:
        return self._kept((name, "product", modes.key("tile_product")), lambda: self._products(name, modes))

    def _products(self, name: str, modes: Modes) -> Tensor:
        part, rows = self.part, self.backward.rows
        assert part is not None
        on = modes["tile_product"] == "on"
        n, block_n, block_v = len(rows.valid), self.tiles.block_n, self.tiles.block_v
        if name == "e":
            g = part.for_embeddings(modes).flatten(2)  # (row blocks, BLOCK_N, n)
            kept = self._padded(self.decided.words, g.shape[2]) if self._drops(modes) else None
            other = part.columns.classifier if on else part.columns.double
            blocks = [
                self._gathered(g[b], other, None if kept is None else kept[b], block_v, on) for b in range(len(g))
            ]
            return torch.where(rows.valid, torch.cat(blocks) * HEADROOM, 0.0)
        g = part.for_classifier(modes).flatten(2).flatten(0, 1).T.unflatten(0, (-1, block_v))  # (tiles, BLOCK_V, R)
        kept = self._padded(self.decided.rows, n) if self._drops(modes) else None
        other = rows.embeddings if on else rows.double
        found = torch.cat(
            [self._gathered(g[t], other, None if kept is None else kept[t], block_n, on) for t in range(len(g))]
        )
        top = part.block_scale(modes)[0]
        return found * (top.float() if on else top)

    def _padded(self, kept: Tensor, length: int) -> Tensor:
        return torch.nn.functional.pad(kept, (0, length - kept.shape[1]))

    def _gathered(self, g: Tensor, other: Tensor, kept: Tensor | None, chunk: int, on: bool) -> Tensor:
        """g (m, k) times rows of `other` (k, D), of what is kept: chunk by chunk in one accumulator."""
        if kept is not None:
            places = kept.nonzero()[:, 0]
            g, other = g[:, places], other[places]
        if not on:
            return g.double() @ other.double()
        missing = -g.shape[1] % chunk
        g = torch.nn.functional.pad(g.float(), (0, missing))
        rows = torch.nn.functional.pad(other.float(), (0, 0, 0, missing))
        v = torch.zeros((len(g), rows.shape[1]), device=g.device)
        for start in range(0, g.shape[1], chunk):
            v = self.setup.machine.dot(g[:, start : start + chunk], rows[start : start + chunk], v, other.dtype)
        return v
