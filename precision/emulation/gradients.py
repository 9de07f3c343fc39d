"""dE, dC and dbias of several runs, from the residuals of consecutive chunks of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Statistics

from ..tile_decisions import tile_decisions
from .modes import Modes
from .residuals import Backward, Residuals
from .setup import HEADROOM, Columns, Factor, Setup
from .staged import resolved
from .sums import Sum, cast_increment, rescaled
from .tail import Tail, before_tail

INCREMENTS = ("tile_product", "cast_increment", "add_increment")


class Gradients:
    """Takes chunks in the kernel's order. Every chunk completes some rows of dC and dbias; dE is complete at the end.

    Where nothing rounds between the residual and the sum, a gradient is one float64 product per chunk.
    """

    def __init__(self, setup: Setup, backward: Backward, runs: Sequence[Modes], taken: Statistics | None) -> None:
        """What rows lose to a tail's filter, and how it is spread, is what a call says."""
        self.setup, self.backward, self.runs = setup, backward, runs
        self.tiles, self.variant = backward.tiles, setup.variant
        self.tail: Tail | None = None
        if self.variant.tail == "rank1" and self.variant.granularity == "tile":
            decided = tile_decisions(setup.problem, setup.variant, setup.schedule, taken)
            self.tail = Tail(setup, backward, decided.share, decided.lost, decided.lost)
        self.embeddings: dict[Any, Sum] = {}
        blocks = len(backward.rows.valid) // self.tiles.block_n
        self.shape = (blocks, self.tiles.block_n, setup.d)
        for modes in runs:
            self.embeddings.setdefault(_key(modes), self._sum(_resolved(modes), self.shape))

    def _sum(self, modes: Modes, shape: tuple[int, ...]) -> Sum:
        setup = self.setup
        return Sum(shape, setup.variant, setup.dtype, modes["add_increment"] == "on", setup.device)

    def chunk(self, part: Residuals) -> list[Tensor]:
        """Rows of dC, one (n, D) per run; runs that agree share theirs. Adds to dE."""
        totals: dict[Any, Sum] = {}
        count, block = len(part.columns.ids) // self.tiles.block_v, self.tiles.block_v
        together: dict[Any, Modes] = {}
        for modes in self.runs:
            key, modes = _key(modes), _resolved(modes)
            if key in totals:
                continue
            totals[key] = self._sum(modes, (count, block, self.setup.d))
            if any(modes[stage] != "off" for stage in INCREMENTS):
                together[key] = modes
            else:
                self._whole(part, modes, self.embeddings[key], totals[key])
        self._walk_vocabulary(part, together)
        self._walk_rows(part, together, totals)
        outputs: dict[Any, Tensor] = {}
        for modes in self.runs:
            key = modes.key("cast_output")
            if key not in outputs:
                total, first = totals[_key(modes)], int(part.columns.ids[0])
                outputs[key] = self._output(total, modes, first).flatten(0, 1)[part.columns.inside]
        return [outputs[modes.key("cast_output")] for modes in self.runs]

    def _whole(self, part: Residuals, modes: Modes, total_e: Sum, total_c: Sum) -> None:
        def kept(g: Tensor, live: Tensor | None) -> Tensor:
            g = g.double() if live is None else torch.where(live[:, None, :, None], g.double(), 0.0)
            return g.flatten(2).flatten(0, 1)

        g = kept(part.for_embeddings(modes), self._live(part, modes, self.variant.filter_e))
        total_e.sum += (g @ part.columns.double).unflatten(0, self.shape[:2]) * HEADROOM
        g = part.for_classifier(modes).double() * part.block_scale(modes)[:, None, None, None]
        g = kept(g, self._live(part, modes, self.variant.filter_c))
        total_c.sum += (g.T @ part.rows_for_classifier(modes).double).unflatten(0, (-1, self.tiles.block_v))

    def _walk_vocabulary(self, part: Residuals, runs: dict[Any, Modes]) -> None:
        """dE's sums along the tiles of this chunk."""
        valid = self.backward.rows.valid.unflatten(0, (-1, self.tiles.block_n))
        block = self.tiles.block_v
        count, merged = len(part.columns.ids) // block, self.setup.merged("e")
        for t in range(0, count, merged):
            found = dict[Any, Tensor]()
            together = range(t, min(t + merged, count))

            def product(modes: Modes, live: Tensor | None, together: range = together) -> Tensor:
                g, live = part.for_embeddings(modes), None if live is None else live.T
                factors = ((g[:, :, k], slice(k * block, (k + 1) * block)) for k in together)
                return torch.where(valid, self._product(modes, factors, part.columns, live) * HEADROOM, 0.0)

            for key, modes in runs.items():
                live = self._live(part, modes, self.variant.filter_e)
                live = None if live is None else live[:, t : t + merged]
                if live is None or bool(live.any()):
                    v = self._increment(found, modes, live, product)
                    self.embeddings[key].add(v, None if live is None else live.any(1)[:, None, None])

    def _walk_rows(self, part: Residuals, runs: dict[Any, Modes], totals: dict[Any, Sum]) -> None:
        """dC's sums along the row blocks."""
        block = self.tiles.block_n
        count, merged = self.shape[0], self.setup.merged("c")
        for b in range(0, count, merged):
            found = dict[Any, Tensor]()
            together = range(b, min(b + merged, count))

            def product(modes: Modes, live: Tensor | None, together: range = together) -> Tensor:
                g = part.for_classifier(modes)
                factors = ((g[k].permute(1, 2, 0), slice(k * block, (k + 1) * block)) for k in together)
                v = self._product(modes, factors, part.rows_for_classifier(modes), live)
                return v * part.block_scale(modes)[together[0]].to(v.dtype)

            for key, modes in runs.items():
                live = self._live(part, modes, self.variant.filter_c)
                live = None if live is None else live[b : b + merged]
                if live is None or bool(live.any()):
                    v = self._increment(found, modes, live, product)
                    totals[key].add(v, None if live is None else live.any(0)[:, None, None])

    def _product(
        self, modes: Modes, factors: Iterable[tuple[Tensor, slice]], other: Factor | Columns, live: Tensor | None
    ) -> Tensor:
        """(owners, rows, D) of residuals times rows of `other`, in one sum; an owner takes in what is `live` (tiles,
        owners)."""
        v: Tensor | None = None
        for k, (g, span) in enumerate(factors):
            if live is not None and not bool(live[k].any()):
                continue
            if modes["tile_product"] == "on":
                more = self.setup.machine.product(g.float(), other.storage[span], self.tiles, v)
            else:
                more = g.double() @ other.double[span] + (0.0 if v is None else v)
            v = more if live is None else torch.where(live[k][:, None, None], more, 0.0 if v is None else v)
        assert v is not None
        return v

    def _increment(
        self,
        found: dict[Any, Tensor],
        modes: Modes,
        live: Tensor | None,
        product: Callable[[Modes, Tensor | None], Tensor],
    ) -> Tensor:
        """An increment as the sum takes it, of what is `live` under these modes."""
        drops = live is not None
        key = drops, modes.key("cast_increment")
        if key not in found:
            of_cast = resolved(modes, "cast_increment")
            of_product = resolved(of_cast, "tile_product")
            before = "product", drops, of_product.key("tile_product")
            if before not in found:
                found[before] = product(of_product, live)
            v = found[before]
            if of_cast["cast_increment"] == "on":
                v = cast_increment(v.float(), self.variant, self.setup.dtype)
            found[key] = v
        return found[key]

    def _live(self, part: Residuals, modes: Modes, filtered: bool) -> Tensor | None:
        """What is dropped is dropped as the sum is fed, but belongs to is_live: a stage after it that is to be exact
        drops nothing."""
        return None if not filtered or _undone(modes) else part.live(modes)

    def _output(self, total: Sum, modes: Modes, first: int | None) -> Tensor:
        """A complete sum as it is returned, of dC from word `first` on, or else of dE."""
        scale = None
        if first is None:
            scale = self.backward.upstream(_resolved(modes)).scale.unflatten(0, self.shape[:2])
        modes = resolved(modes, "cast_output")
        s, c, rounds = total.sum, total.companion, total.on
        if self._gives_back(resolved(modes, "add_tail"), first):
            s, c, rounds = self._with_tail(s, c, resolved(modes, "add_tail"), first), None, False
        if scale is not None:
            s = rescaled(s, scale)
            s = s.to(self.setup.sum_dtype).float() if rounds else s
            c = None if c is None else c.double() / HEADROOM * scale
        if modes["cast_output"] == "on":
            return s.float().to(self.setup.dtype)
        return s.double() if c is None else s.double() + c

    def _gives_back(self, modes: Modes, first: int | None) -> bool:
        """Whether these modes drop anything of dC, or of dE where there is no `first` word."""
        filtered, before = self.variant.filter_e if first is None else self.variant.filter_c, before_tail(modes)
        return self.tail is not None and filtered and not _undone(before) and before["is_live"] == "on"

    def _with_tail(self, s: Tensor, c: Tensor | None, modes: Modes, first: int | None) -> Tensor:
        """A sum of dC from word `first` on, or else of dE, and its companion, with what is given back."""
        assert self.tail is not None
        v = s if modes["add_tail"] == "on" else s.double()
        v = (v if c is None else v + c).flatten(0, 1)
        v = self.tail.of_embeddings(v, modes) if first is None else self.tail.of_classifier(v, first, modes)
        return v.reshape(s.shape)

    def d_embeddings(self) -> list[Tensor]:
        """(N, D), one per run."""
        outputs: dict[Any, Tensor] = {}
        for modes in self.runs:
            key = modes.key("cast_output")
            if key not in outputs:
                total = self.embeddings[_key(modes)]
                outputs[key] = self._output(total, modes, None).flatten(0, 1)[: self.setup.n]
        return [outputs[modes.key("cast_output")] for modes in self.runs]

    def d_bias(self, part: Residuals) -> list[Tensor]:
        """(n,) of this chunk, one per run: complete, whatever is filtered."""
        found: dict[Any, Tensor] = {}
        bias = self.setup.problem.bias
        assert bias is not None
        outputs = []
        for modes in self.runs:
            cast = resolved(modes, "cast_output")
            summed = resolved(cast, "sum_bias")
            key = summed.key("sum_bias")
            if key not in found:
                found[key] = self._summed_bias(part, summed)
            total = found[key][part.columns.inside]
            outputs.append(total.float().to(bias.dtype) if cast["cast_output"] == "on" else total.double())
        return outputs

    def _summed_bias(self, part: Residuals, modes: Modes) -> Tensor:
        g, scale = part.gradient(modes), self.backward.upstream(modes).scale
        a = part.arithmetic(modes, "sum_bias")
        g, scale = (x.to(a.dtype).unflatten(0, (-1, self.tiles.block_n)) for x in (g, scale))
        total = torch.zeros(g.shape[2], dtype=a.dtype, device=g.device)
        for b in range(len(g)):
            total = total + a.sum_rows(g[b] * scale[b])
        return total


def _resolved(modes: Modes) -> Modes:
    return resolved(resolved(resolved(modes, "cast_output"), "add_tail"), "add_increment")


def _undone(modes: Modes) -> bool:
    """Whether a stage that comes after a filter is to be exact."""
    return any(modes[stage] == "exact" for stage in ("cast_residual", "tile_product", "cast_increment"))


def _key(modes: Modes) -> tuple[Any, ...]:
    """What a sum depends on."""
    return _resolved(modes).key("add_increment")
