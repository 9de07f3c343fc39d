"""tail=rank1: what rows lost, along the vector that a call gave it back along."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels.live_segments import BLOCK
from ccelab.kernels.rank1 import PARTS

from .modes import Modes
from .residuals import Backward
from .setup import HEADROOM, Setup
from .staged import resolved


class Tail:
    """Of sums in fp32 where add_tail is on, in float64 where it is off."""

    def __init__(self, setup: Setup, backward: Backward, share: Tensor, lost_e: Tensor, lost_c: Tensor) -> None:
        """`share` (V,); `lost_e` and `lost_c` (N,) are what rows lost in each gradient."""
        self.setup, self.backward, self.share, self.lost_e = setup, backward, share, lost_e
        self.pulls = {dtype: self._pulls(lost_c, dtype) for dtype in (torch.float32, torch.float64)}

    def of_embeddings(self, v: Tensor, modes: Modes) -> Tensor:
        """(R, D) of dE and its tail, at HEADROOM over the scale of its row."""
        dtype = _dtype(modes)
        up = self.backward.upstream(before_tail(modes))
        lost = torch.nn.functional.pad(self.lost_e, (0, len(v) - self.setup.n)).to(dtype)[:, None]
        m = torch.where(lost > 0, lost * (up.d_loss.to(dtype) + up.d_lse.to(dtype)) * HEADROOM, 0.0)
        q = self.pulls[dtype][0][None, :]
        return torch.where(self.backward.rows.valid, v.to(dtype) + m * q, 0.0)

    def of_classifier(self, v: Tensor, first: int, modes: Modes) -> Tensor:
        """(n, D) of dC and its tail, from word `first` on."""
        dtype = _dtype(modes)
        share, q = part_of(self.share, first, len(v)).to(dtype), self.pulls[dtype][1]
        return v.to(dtype) + share[:, None] * q[None, :]

    def _pulls(self, lost: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(D,) each: C^T q and E^T m."""
        n, share, lost = self.setup.n, self.share.to(dtype), lost.to(dtype)
        d_loss, d_lse = (x[:n, 0].to(dtype) for x in self.backward.gradients)
        m = torch.where(lost > 0, lost * (d_loss + d_lse), 0.0)
        words = _pull(self.setup.problem.classifier.detach().to(dtype), share)
        return words, _pull(self.backward.rows.storage[:n].to(dtype), m)


def before_tail(modes: Modes) -> Modes:
    """Those under which what is summed is computed."""
    return resolved(resolved(resolved(modes, "add_increment"), "cast_increment"), "tile_product")


def part_of(x: Tensor, first: int, count: int) -> Tensor:
    """`count` columns from `first` on, zeros beyond the last."""
    x = x[..., first : first + count]
    return torch.nn.functional.pad(x, (0, count - x.shape[-1]))


def _dtype(modes: Modes) -> torch.dtype:
    return torch.float32 if modes["add_tail"] == "on" else torch.float64


def _pull(rows: Tensor, weights: Tensor) -> Tensor:
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
