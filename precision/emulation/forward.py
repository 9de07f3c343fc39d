"""The forward pass: tiles folded into a running (max, sum) pair per split, splits joined, the loss of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import exponentials

from . import logits
from .arithmetic import Arithmetic, finite_or_zero
from .modes import Modes
from .setup import Columns, Rows, Setup
from .staged import OFF, Memo, resolved, staged

UNIT: float = exponentials.UNIT.value


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the tiles of one step lie: the t-th of every split that has as many."""

    columns: Columns
    splits: int  # of those, from the first on
    picked: Tensor  # (R, 1) bool: the row's target is among the columns,
    position: Tensor  # (R, 1) int64: here


class Forward(Memo):
    """Results per row, for any modes among `runs`. Tensors are (R, 1), in fp32 or float64."""

    def __init__(self, setup: Setup, runs: Sequence[Modes]) -> None:
        super().__init__(setup.machine)
        self.setup = setup
        self.tiles = setup.schedule.forward
        self.rows: Rows = setup.rows(self.tiles)
        self.blocks = -(-setup.v // self.tiles.block_v)
        cut = setup.schedule.cut(setup.n, setup.v)
        self.per_split, self.splits = cut.per_split, cut.splits
        self.state: dict[Any, Any] = {}
        tops: dict[Any, list[Tensor]] = {}
        if any("exact" in modes.modes for modes in runs):
            runs = [*runs, OFF]  # what exact stages come down to
        for t in range(self.per_split):
            step = _Step(self, self._place(t))
            for modes in runs:
                step.sums(modes)
                step.target(modes)
            self.state.update(step.new)
            if setup.stores:
                for key in {_top_key(resolved(modes, "fold_tile")) for modes in runs}:
                    tops.setdefault(key, []).append(self.state[key])
        # (R, tiles) running maxima, which the exponentials of a tile are shifted by.
        self.tops = {key: torch.stack(found, 2).flatten(1) for key, found in tops.items()}

    def again(self, ids: Tensor) -> Again:
        """Tiles `ids` (n,), of consecutive words, as the forward pass found them."""
        return Again(self, ids)

    def _place(self, t: int) -> _Place:
        block = self.tiles.block_v
        tile = torch.arange(t, self.blocks, self.per_split, device=self.setup.device)
        ids = (tile[:, None] * block + torch.arange(block, device=tile.device)).flatten()
        target = self.rows.target
        target_tile = target // block
        picked = (target >= 0) & (target_tile % self.per_split == t)
        position = torch.where(picked, target_tile // self.per_split * block + target % block, 0)
        return _Place(self.setup.columns(ids), len(tile), picked, position)

    @staged("join_splits")
    def joined(self, modes: Modes, a: Arithmetic) -> tuple[Tensor, Tensor]:
        """(m, log s) of whole rows."""
        top, total = (x.to(a.dtype) for x in self._pair(modes))
        m = top.amax(1, keepdim=True)
        shift = finite_or_zero(m)
        s = torch.zeros_like(m)
        for k in range(top.shape[1]):
            s = s + total[:, k : k + 1] * a.exp(top[:, k : k + 1] - shift)
        return m, a.log(s)

    @staged("token_loss")
    def lse(self, modes: Modes, a: Arithmetic) -> Tensor:
        """Their sum, which is rounded where the loss is."""
        m, log_s = (x.to(a.dtype) for x in self.joined(modes))
        return torch.where(self.rows.valid, m + log_s, 0.0)

    def _pair(self, modes: Modes) -> tuple[Tensor, Tensor]:
        modes = resolved(modes, "fold_tile")
        return self.state[_top_key(modes)], self.state["sums", modes.key("fold_tile")]

    def target_logit(self, modes: Modes) -> Tensor:
        """The capped logit at the target."""
        if self.setup.variant.target == "indexed":
            return self._indexed_cap(modes)
        return self.state["target", resolved(modes, "soft_cap").key("soft_cap")]  # type: ignore[no-any-return]

    @staged("indexed_dot")
    def _indexed(self, modes: Modes, a: Arithmetic) -> Tensor:
        """Algorithm 1's product: a sum per lane over the steps of D, then one over the lanes."""
        rows, block = self.rows, self.tiles.block_d
        of_target = self.setup.columns(rows.target[:, 0]).storage
        e, c = (torch.nn.functional.pad(x.to(a.dtype), (0, -x.shape[1] % block)) for x in (rows.storage, of_target))
        parts = torch.zeros((len(e), block), dtype=a.dtype, device=e.device)
        for start in range(0, e.shape[1], block):
            parts = parts + e[:, start : start + block] * c[:, start : start + block]
        return a.sum_lanes(parts)[:, None]

    def _indexed_cap(self, modes: Modes) -> Tensor:
        c = self.setup.columns(self.rows.target[:, 0])
        cap_modes = resolved(modes, "soft_cap")
        bias_modes = resolved(cap_modes, "add_bias")
        z = self._indexed(bias_modes)
        if c.bias is not None:
            a = self.arithmetic(bias_modes, "add_bias")
            z = z.to(a.dtype) + c.bias[:, None].to(a.dtype)
        return logits.cap(self.arithmetic(cap_modes, "soft_cap"), z, self.setup.problem.softcap)

    @staged("token_loss")
    def loss(self, modes: Modes, a: Arithmetic) -> Tensor:
        (m, log_s), target = self.joined(modes), self.target_logit(modes)
        m, log_s, target = (x.to(a.dtype) for x in (m, log_s, target))
        fused = self.setup.variant.target == "fused"
        return torch.where(self.rows.valid, (m - target) + log_s if fused else (m + log_s) - target, 0.0)

    @staged("reduce_losses")
    def reduced(self, modes: Modes, a: Arithmetic) -> Tensor:
        """() for a mean or sum, (N,) without a reduction. The host sums in float64 and rounds once."""
        problem = self.setup.problem
        loss = self.loss(modes)[: self.setup.n, 0]
        if problem.reduction == "none":
            return loss
        count = max(int(problem.valid.sum()), 1) if problem.reduction == "mean" else 1
        return (loss.to(a.dtype).double().sum() / count).to(a.dtype)


class _Step(Memo):
    """One tile of every split."""

    def __init__(self, forward: Forward, place: _Place) -> None:
        super().__init__(forward.machine)
        self.forward, self.place = forward, place
        self.new: dict[Any, Any] = {}

    @staged("dot_logits")
    def product(self, modes: Modes, a: Arithmetic) -> Tensor:
        return logits.product(a, self.forward.rows, self.place.columns, self.forward.tiles)

    @staged("add_bias")
    def biased(self, modes: Modes, a: Arithmetic) -> Tensor:
        return logits.add_bias(a, self.product(modes), self.place.columns)

    @staged("soft_cap")
    def capped(self, modes: Modes, a: Arithmetic) -> Tensor:
        """(R, splits, BLOCK_V)."""
        z = logits.cap(a, self.biased(modes), self.forward.setup.problem.softcap)
        tiles: Tensor = logits.masked(z, self.place.columns).unflatten(1, (self.place.splits, -1))
        return tiles

    def target(self, modes: Modes) -> None:
        if self.forward.setup.variant.target == "indexed":
            return
        key = "target", resolved(modes, "soft_cap").key("soft_cap")
        if key not in self.new:
            z = self.capped(modes)
            before = self.forward.state.get(key, torch.zeros_like(z[:, 0, :1]))
            self.new[key] = torch.where(self.place.picked, z.flatten(1).gather(1, self.place.position), before)

    def top(self, modes: Modes) -> tuple[Tensor, Tensor]:
        """The running maximum before this tile, and with it: (R, splits)."""
        modes = resolved(modes, "fold_tile")
        key, a = _top_key(modes), self.arithmetic(modes, "fold_tile")
        z = self.capped(modes).to(a.dtype)
        shape = (len(z), self.forward.splits)
        before = self.forward.state.get(key, torch.full(shape, -torch.inf, dtype=a.dtype, device=z.device))
        if key not in self.new:
            here = torch.maximum(before[:, : self.place.splits], a.top(z))
            self.new[key] = torch.cat([here, before[:, self.place.splits :]], 1)
        return before[:, : self.place.splits], self.new[key][:, : self.place.splits]

    @staged("exponentials")
    def exponentials(self, modes: Modes, a: Arithmetic) -> Tensor:
        shift = finite_or_zero(self.top(modes)[1]).to(a.dtype)
        return a.exp(self.capped(modes).to(a.dtype) - shift[..., None])

    def sums(self, modes: Modes) -> None:
        modes = resolved(modes, "fold_tile")
        key, a = ("sums", modes.key("fold_tile")), self.arithmetic(modes, "fold_tile")
        if key in self.new:
            return
        before, top = self.top(modes)
        segments = self.exponentials(modes).to(a.dtype).unflatten(-1, (-1, self.forward.setup.schedule.segment_columns))
        total = a.sum_columns(segments, self.forward.tiles.block_n)
        shape = (len(total), self.forward.splits)
        s = self.forward.state.get(key, torch.zeros(shape, dtype=a.dtype, device=total.device))
        here = s[:, : self.place.splits] * a.exp(before - finite_or_zero(top)) + total
        self.new[key] = torch.cat([here, s[:, self.place.splits :]], 1)


class Again(_Step):
    """Tiles of several places of a split."""

    def __init__(self, forward: Forward, ids: Tensor) -> None:
        block, self.count = forward.tiles.block_v, len(ids)
        ids = torch.nn.functional.pad(ids, (0, -len(ids) % block), value=forward.setup.v)
        none = torch.zeros_like(forward.rows.target)
        super().__init__(forward, _Place(forward.setup.columns(ids), len(ids) // block, none.bool(), none))
        self.first = int(ids[0]) // block

    def top(self, modes: Modes) -> tuple[Tensor, Tensor]:
        """With each tile: (R, tiles)."""
        tops = self.forward.tops[_top_key(resolved(modes, "fold_tile"))]
        here = tops[:, self.first : self.first + self.place.splits]
        here = torch.nn.functional.pad(here, (0, self.place.splits - here.shape[1]))
        return here, here

    @staged("store_exponentials")
    def stored(self, modes: Modes, a: Arithmetic) -> Tensor:
        """(R, n) exponentials, as multiples of what 1 is stored as."""
        x = self.exponentials(modes).to(a.dtype).flatten(1)[:, : self.count]
        return x if a.dtype == torch.float64 else (x * UNIT).to(torch.float16).float() / UNIT

    def shift(self, modes: Modes) -> Tensor:
        """(R, n)."""
        return finite_or_zero(self.top(modes)[1]).repeat_interleave(self.forward.tiles.block_v, 1)[:, : self.count]


def _top_key(modes: Modes) -> tuple[Any, ...]:
    return "top", modes["fold_tile"], modes.key("soft_cap")
