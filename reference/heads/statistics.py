"""What a filter sees of a head: how fast probabilities decay, where live entries sit, and what dropping the rest costs.

An entry (i, v) of the residual ``G = softmax - onehot`` is live when ``abs(G_iv) >= eps``. A filter keeps every entry
of each grain (one entry, a row's segment of columns, a tile of rows and columns) that holds a live one and drops the
others, R. Its relative error is ``norm(R C) / norm(G C)`` for dE and ``norm(R^T E) / norm(G^T E)`` for dC, Frobenius.
With the rank-1 tail, R is replaced by ``m q^T``: m_i its row sums, q the normalised column sums of a few sampled rows.

Arithmetic is float32 on the stored values, in chunks of rows, on the device that holds the head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .head import Head

Order = Literal["natural", "mean-logit", "mean-probability"]


@dataclass(frozen=True)
class Grain:
    """The unit that is kept or dropped whole: `rows` consecutive rows by `columns` consecutive places of `order`."""

    rows: int
    columns: int
    order: Order = "natural"


ELEMENT = Grain(1, 1)
SEGMENTS = (Grain(1, 256), Grain(1, 256, "mean-logit"))
TILES = (Grain(128, 128), Grain(128, 128, "mean-logit"), Grain(128, 256), Grain(128, 256, "mean-logit"))
RANKS = (1, 10, 50, 1000)


@dataclass(frozen=True)
class FilterError:
    """Relative gradient errors of one filter: the rest dropped, and the rest replaced by a rank-1 tail."""

    drop_de: float
    drop_dc: float
    tail_de: float
    tail_dc: float


@dataclass(frozen=True)
class HeadStatistics:
    """Measured by `head_statistics`; probabilities and masses are arithmetic means over tokens."""

    shape: tuple[int, int, int]  # N, V, D
    eps: float
    rank_probability: Mapping[int, float]  # rank -> p at that rank
    live_mean: float  # entries per token with p >= eps
    live_median: float
    live_max: int
    mass: float  # what those entries hold
    entropy: float  # nats
    loss: float
    live_share: Mapping[Grain, float]  # grains with a live entry over all grains
    filter_error: Mapping[Grain, FilterError]


def head_statistics(
    head: Head,
    eps: float = 2.0**-12,
    *,
    grains: Sequence[Grain] = (*SEGMENTS, *TILES),
    filters: Sequence[Grain] = (),
    tail_rows: int = 128,
    chunk: int | None = None,
) -> HeadStatistics:
    """Statistics of `head` under the threshold `eps`; a grain in `filters` costs two (N, V, D) products, V D floats.

    `chunk` rows of V float32 logits are held at a time, a multiple of 128 (default: about 2^26 logits).
    """
    n, v, _ = head.shape
    chunk = chunk or max(128, 2**26 // v // 128 * 128)
    if chunk % 128:
        raise ValueError(f"chunk must be a multiple of 128, the rows of a tile: {chunk}")
    places = {order: _places(head, order, chunk) for order in {g.order for g in (*grains, *filters)}}
    ranks = {r: 0.0 for r in RANKS if r <= v}
    live_counts, held, entropy, loss = [], 0.0, 0.0, 0.0
    live_grains = dict.fromkeys(grains, 0)
    for start, p in _probabilities(head, chunk):
        top = p.topk(max(ranks), dim=1).values
        for r in ranks:
            ranks[r] += float(top[:, r - 1].double().sum())
        live = p >= eps
        live_counts.append(live.sum(1))
        held += float((p * live).sum(1).double().sum())
        entropy -= float(torch.xlogy(p, p).sum(1).double().sum())
        x = head.targets[start : start + len(p), None]
        loss -= float(p.gather(1, x).log().double().sum())
        row, col = _residual(p, x).abs().ge(eps).nonzero(as_tuple=True)
        for grain in grains:
            hit = torch.zeros(-(-len(p) // grain.rows), -(-v // grain.columns), dtype=torch.bool, device=p.device)
            hit[row // grain.rows, places[grain.order][col] // grain.columns] = True
            live_grains[grain] += int(hit.sum())
    counts = torch.cat(live_counts).double()
    total = {g: -(-n // g.rows) * -(-v // g.columns) for g in grains}
    return HeadStatistics(
        shape=head.shape,
        eps=eps,
        rank_probability={r: s / n for r, s in ranks.items()},
        live_mean=float(counts.mean()),
        live_median=float(counts.median()),
        live_max=int(counts.max()),
        mass=held / n,
        entropy=entropy / n,
        loss=loss / n,
        live_share={g: live_grains[g] / total[g] for g in grains},
        filter_error=_filter_errors(head, eps, filters, places, tail_rows, chunk) if filters else {},
    )


def _probabilities(head: Head, chunk: int) -> Iterator[tuple[int, Tensor]]:
    """(first row, softmax (chunk, V) float32) of each chunk of rows."""
    c = head.classifier.float().T
    for start in range(0, len(head.targets), chunk):
        yield start, torch.softmax(head.embeddings[start : start + chunk].float() @ c, dim=1)


def _residual(p: Tensor, x: Tensor) -> Tensor:
    """softmax - onehot (rows, V), for targets x (rows, 1)."""
    return p.scatter_add(1, x, torch.full_like(x, -1, dtype=p.dtype))


def _places(head: Head, order: Order, chunk: int) -> Tensor:
    """(V,) the place of each column when columns are sorted; descending and stable, as in the paper."""
    v = head.shape[1]
    if order == "natural":
        return torch.arange(v, device=head.targets.device)
    if order == "mean-logit":
        key = head.classifier.float() @ head.embeddings.float().mean(0)
    else:
        key = torch.zeros(v, device=head.targets.device)
        for _, p in _probabilities(head, chunk):
            key += p.sum(0)
    return key.argsort(descending=True, stable=True).argsort()


def _dropped(g: Tensor, eps: float, grain: Grain, place: Tensor) -> Tensor:
    """(rows, V) the entries of the residual g that the filter drops, 0 where it keeps them."""
    live = g.abs() >= eps
    if grain.rows == grain.columns == 1:
        return g.masked_fill(live, 0.0)
    across = -(-g.shape[1] // grain.columns)
    row, col = live.nonzero(as_tuple=True)
    kept = torch.zeros(-(-len(g) // grain.rows), across, dtype=torch.bool, device=g.device)
    kept[row // grain.rows, place[col] // grain.columns] = True
    spread = kept[:, place // grain.columns].repeat_interleave(grain.rows, dim=0)[: len(g)]
    return g.masked_fill(spread, 0.0)


def _filter_errors(
    head: Head, eps: float, filters: Sequence[Grain], places: Mapping[Order, Tensor], tail_rows: int, chunk: int
) -> dict[Grain, FilterError]:
    n, v, d = head.shape
    e, c = head.embeddings.float(), head.classifier.float()
    full_de, full_dc = 0.0, torch.zeros(v, d, device=e.device)
    sums = {grain: _Sums(v, d, e.device) for grain in filters}
    # Rows spread over the batch, because a run of neighbours shares its document's words.
    sampled = torch.zeros(n, dtype=torch.bool, device=e.device)
    sampled[torch.arange(min(tail_rows, n), device=e.device) * n // min(tail_rows, n)] = True
    for start, p in _probabilities(head, chunk):
        rows = slice(start, start + len(p))
        g = _residual(p, head.targets[rows, None])
        full_de += float((g @ c).double().square().sum())
        full_dc += g.T @ e[rows]
        for grain, total in sums.items():
            total.add(_dropped(g, eps, grain, places[grain.order]), e[rows], c, sampled[rows])
    norms = full_de**0.5, float(torch.linalg.norm(full_dc))
    del full_dc
    return {grain: sums.pop(grain).error(c, *norms) for grain in filters}


class _Sums:
    """What one pass over chunks of R leaves: with m and q known only at its end, tails follow from inner products."""

    def __init__(self, v: int, d: int, device: torch.device) -> None:
        self.drop_dc = torch.zeros(v, d, device=device)  # R^T E
        self.q = torch.zeros(v, device=device)
        self.m_e = torch.zeros(d, device=device)  # sum of m_i E_i
        self.m_de = torch.zeros(d, dtype=torch.float64, device=device)  # sum of m_i (R C)_i
        self.drop_de = 0.0  # squared norm of R C
        self.m_m = 0.0

    def add(self, r: Tensor, e: Tensor, c: Tensor, sampled: Tensor) -> None:
        de, m = r @ c, r.sum(1)
        self.drop_dc += r.T @ e
        self.q += r[sampled].sum(0)
        self.m_e += m @ e
        self.m_de += m.double() @ de.double()
        self.drop_de += float(de.double().square().sum())
        self.m_m += float(m.double().square().sum())

    def error(self, c: Tensor, norm_de: float, norm_dc: float) -> FilterError:
        total = self.q.sum()
        q = torch.where(total == 0, 0.0, self.q / total)  # nothing dropped: no tail
        q_c = (q @ c).double()
        tail_de = self.drop_de - 2 * float(self.m_de @ q_c) + self.m_m * float(q_c @ q_c)
        drop_dc = float(torch.linalg.norm(self.drop_dc))
        self.drop_dc.addr_(q, self.m_e, alpha=-1)
        return FilterError(
            drop_de=self.drop_de**0.5 / norm_de,
            drop_dc=drop_dc / norm_dc,
            tail_de=max(tail_de, 0.0) ** 0.5 / norm_de,
            tail_dc=float(torch.linalg.norm(self.drop_dc)) / norm_dc,
        )
