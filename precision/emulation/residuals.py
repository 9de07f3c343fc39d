"""The backward pass up to the residual: logits once more, their softmax, their share of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import logits
from .arithmetic import Arithmetic, power_of_two, soft_cap_slope
from .forward import Again, Forward
from .modes import Modes
from .setup import Columns, Factor, Rows, Setup
from .staged import Memo, staged


@dataclass(frozen=True, eq=False)
class Upstream:
    """(R, 1) each: upstream gradients over `scale`, a power of two in float64, and their size."""

    d_loss: Tensor
    d_lse: Tensor
    scale: Tensor
    size: Tensor


class Backward(Memo):
    """Results per row of E that the backward pass starts from."""

    def __init__(self, setup: Setup, forward: Forward) -> None:
        super().__init__(setup.machine)
        self.setup, self.forward = setup, forward
        self.tiles = setup.backward_tiles
        self.rows: Rows = setup.rows(self.tiles)
        self.gradients = tuple(self.rows.fill(x) for x in setup.problem.upstream())

    @staged("load_upstream")
    def upstream(self, modes: Modes, a: Arithmetic) -> Upstream:
        d_loss, d_lse = (x.to(a.dtype) for x in self.gradients)
        scale = power_of_two(d_loss.abs() + d_lse.abs())
        inverse = (1.0 / scale).to(a.dtype)
        d_loss, d_lse = d_loss * inverse, d_lse * inverse
        return Upstream(d_loss, d_lse, scale, d_loss.abs() + d_lse.abs())

    @staged("join_splits")
    def row_state(self, modes: Modes, a: Arithmetic) -> tuple[Tensor, Tensor]:
        """(m, log s) of the forward pass in this pass's rows; 0 at ignored rows, NaN beside an infinite maximum."""
        m, log_s = (self.rows.fill(x[: self.setup.n, 0]) for x in self.forward.joined(modes))
        m, log_s = torch.where(self.rows.valid, m, 0.0), torch.where(self.rows.valid, log_s, 0.0)
        return torch.where(m.abs() == torch.inf, torch.nan, m), log_s


class Residuals(Memo):
    """(R, n) residuals of the columns `ids`, whole tiles in the order in which the kernel walks them."""

    def __init__(self, backward: Backward, ids: Tensor) -> None:
        super().__init__(backward.machine)
        self.backward, self.setup, self.rows, self.tiles = backward, backward.setup, backward.rows, backward.tiles
        self.columns: Columns = self.setup.columns(ids)
        self.again: Again | None = None

    @staged("recompute_logits")
    def recomputed(self, modes: Modes, a: Arithmetic) -> tuple[Tensor, Tensor]:
        """Logits before and after the cap; bias and cap are part of this stage."""
        raw = logits.add_bias(a, logits.product(a, self.rows, self.columns, self.tiles), self.columns)
        return raw, logits.masked(logits.cap(a, raw, self.setup.problem.softcap), self.columns)

    @staged("softmax")
    def softmax(self, modes: Modes, a: Arithmetic) -> Tensor:
        m, log_s = self.backward.row_state(modes)
        return a.exp((self.recomputed(modes)[1].to(a.dtype) - m.to(a.dtype)) - log_s.to(a.dtype))

    @staged("restore_softmax")
    def restored(self, modes: Modes, a: Arithmetic) -> Tensor:
        """Of stored exponentials."""
        forward, n = self.backward.forward, self.setup.n
        m, log_s = (x.to(a.dtype) for x in self.backward.row_state(modes))
        if self.again is None:
            self.again = forward.again(self.columns.ids)
        missing = len(self.rows.valid) - n
        x, shift = (
            torch.nn.functional.pad(of_rows[:n], (0, 0, 0, missing)).to(a.dtype)
            for of_rows in (self.again.stored(modes), self.again.shift(modes))
        )
        return x * a.exp((shift - m) - log_s)

    @staged("residual")
    def residual(self, modes: Modes, a: Arithmetic) -> Tensor:
        up = self.backward.upstream(modes)
        p = (self.restored(modes) if self.setup.stores else self.softmax(modes)).to(a.dtype)
        q = (self.columns.ids == self.rows.target).to(a.dtype)
        g = (p - q) * up.d_loss.to(a.dtype) + p * up.d_lse.to(a.dtype)
        return torch.where(self.rows.valid & self.columns.inside, g, 0.0)

    @staged("soft_cap_slope")
    def gradient(self, modes: Modes, a: Arithmetic) -> Tensor:
        """The residual over each row's scale."""
        g, softcap = self.residual(modes), self.setup.problem.softcap
        if softcap is None:
            return g
        g = soft_cap_slope(a, g.to(a.dtype), self.recomputed(modes)[0].to(a.dtype), softcap)
        return torch.where(self.rows.valid & self.columns.inside, g, 0.0)

    @staged("is_live")
    def live(self, modes: Modes, a: Arithmetic) -> Tensor | None:
        """(row blocks, tiles) bool: which tiles a filter keeps. None, where it is off, is all."""
        if modes["is_live"] == "off":
            return None
        g, size = self.gradient(modes).to(a.dtype), self.backward.upstream(modes).size.to(a.dtype)
        negligible = ((g.abs() <= self.setup.eps * size) & (size < torch.inf)) | (g == 0)
        if self.setup.variant.tail == "rank1":
            negligible &= (self.columns.ids != self.rows.target) | (size == 0)
        return ~self._by_tile(negligible).all(3).all(1)

    def _by_tile(self, x: Tensor) -> Tensor:
        """(row blocks, BLOCK_N, tiles, BLOCK_V)."""
        tiles: Tensor = x.unflatten(1, (-1, self.tiles.block_v)).unflatten(0, (-1, self.tiles.block_n))
        return tiles

    @staged("cast_residual")
    def for_embeddings(self, modes: Modes, a: Arithmetic) -> Tensor:
        """(row blocks, BLOCK_N, tiles, BLOCK_V) residuals at the scale of their row, as the tensor core takes them."""
        g = self._by_tile(self.gradient(modes).to(a.dtype))
        return g if a.dtype == torch.float64 else g.to(self.setup.dtype).float()

    @staged("cast_residual")
    def for_classifier(self, modes: Modes, a: Arithmetic) -> Tensor:
        """The same at the scale of their row block, which in bf16 rows of E take on; in fp32 at that of the result."""
        if self.setup.scales_rows:
            return self.for_embeddings(modes)
        g = self._by_tile(self.gradient(modes).to(a.dtype))
        g = g * self._relative_scale(modes, a)[..., None]
        return g if a.dtype == torch.float64 else g.to(self.setup.dtype).float()

    @staged("cast_residual")
    def rows_for_classifier(self, modes: Modes, a: Arithmetic) -> Factor:
        """Rows of E as dC takes them."""
        as_it_is = Factor(self.rows.storage, self.rows.double)
        if not self.setup.scales_rows:
            return as_it_is
        relative = self._relative_scale(modes, a).double().flatten(0, 1)
        if bool((relative == 1)[self.rows.valid].all()):
            return as_it_is
        exact = self.rows.double * torch.where(self.rows.valid, relative, 0.0)
        storage = exact.float().to(self.setup.dtype)
        return Factor(storage, exact if a.dtype == torch.float64 else storage.double())

    def _relative_scale(self, modes: Modes, a: Arithmetic) -> Tensor:
        """(row blocks, BLOCK_N, 1) of rows over that of their block."""
        scale = self.backward.upstream(modes).scale.unflatten(0, (-1, self.tiles.block_n))
        relative = scale / self.block_scale(modes)[:, None, None]
        # float64 has room for a quotient of scales that fp32 takes for 0.
        smallest = 2.0**-126 if a.dtype == torch.float32 and self.setup.dtype != torch.float32 else 0.0
        return torch.where(relative < smallest, 0.0, relative).to(a.dtype)

    def block_scale(self, modes: Modes) -> Tensor:
        """(row blocks,) float64 the largest scale of each; 1 in fp32, which needs none. Segments have one for all."""
        scale = torch.where(self.rows.valid, self.backward.upstream(modes).scale, 0.0)
        top = scale.unflatten(0, (-1, self.tiles.block_n)).amax((1, 2))
        if self.setup.variant.granularity == "segment":
            top = top.amax().expand_as(top)
        else:  # and so have the blocks of an increment
            top = torch.cat([x.amax().expand_as(x) for x in top.split(self.setup.merged("c"))])
        return torch.ones_like(top) if self.setup.dtype == torch.float32 else torch.where(top == 0, 1.0, top)
