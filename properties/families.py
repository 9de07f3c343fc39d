"""Families of (E, C, targets): where errors hide. Each is drawn in float64 and cast by whoever asks.

A family is a function of (generator, N, V, D, dtype); N, V and D may be anything from 1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ccelab.reference.heads.excerpt import real_excerpt

Drawn = tuple[Tensor, Tensor, Tensor]
Family = Callable[[Generator, int, int, int, torch.dtype], Drawn]


def _normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def _targets(g: Generator, n: int, v: int) -> Tensor:
    """Any class, and the last in the last row: the rest of the last tile belongs to nobody."""
    targets = torch.randint(0, v, (n,), generator=g)
    targets[-1:] = v - 1
    return targets


def gaussian(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Logits of standard deviation 2."""
    return _normal(g, n, d) * (2 / d**0.5), _normal(g, v, d), _targets(g, n, v)


def flat(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Nearly uniform softmax."""
    e, c, x = gaussian(g, n, v, d, dtype)
    return e / 256, c, x


def peaked(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Rows undecided between two of six classes and sure that it is no other: what a filter lives on.

    The six lie at the start, the middle and the end of the vocabulary; peaks rise with what eps calls nothing.
    """
    _, c, x = gaussian(g, n, v, d, dtype)
    six = torch.tensor([0, 1, v // 2, v // 2 + 1, v - 2, v - 1]).clamp(0, v - 1)
    one, other = (six[torch.randint(0, 6, (n,), generator=g)] for _ in range(2))
    height = {torch.bfloat16: 14.0, torch.float16: 18.0, torch.float32: 32.0}[dtype]
    length = c.square().sum(1, keepdim=True).clamp(min=1.0)
    e = height * (c[one] / length[one] + c[other] / length[other]) + _normal(g, n, d) / (16 * d**0.5)
    return e, c, torch.where(torch.rand(n, generator=g) < 0.8, other, x)


def confident(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """The target has nearly all the probability: the loss is a small difference of large numbers."""
    _, c, x = gaussian(g, n, v, d, dtype)
    return 25.0 * c[x] / c[x].square().sum(1, keepdim=True).clamp(min=1.0), c, x


def dominant(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """One class, the same for all rows, far above the rest; targets are others."""
    e, c, x = gaussian(g, n, v, d, dtype)
    c[v // 2] = 12.0
    return e.abs() * (2 / d**0.5) + 1.0 / d, c, x


def cancelling(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Products of size 16 whose sums are of size 1: the order of additions shows."""
    half = (d + 1) // 2
    e, c = _normal(g, n, half), _normal(g, v, half)
    e = torch.cat([e * 4, -e * 4 + _normal(g, n, half) / 16], 1)[:, :d]
    return e, torch.cat([c * 4, c * 4], 1)[:, :d] / half**0.5, _targets(g, n, v)


def coherent(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """All products positive, and increments of one sign: truncation and stagnation show."""
    e = (1 + torch.rand((n, d), generator=g, dtype=torch.float64)) / d
    return e, 1 + torch.rand((v, d), generator=g, dtype=torch.float64), _targets(g, n, v)


def zipf(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """A vocabulary whose early classes are likely for every row, and targets drawn likewise."""
    rank = torch.arange(1, v + 1, dtype=torch.float64)
    c = _normal(g, v, d)
    c[:, 0] = -1.1 * rank.log()
    e = _normal(g, n, d) * (1.5 / d**0.5)
    e[:, 0] = 1.0
    return e, c, torch.multinomial(rank**-1.1, n, replacement=True, generator=g)


def near_threshold(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Probabilities within a few percent of the default eps: decisions by a hair."""
    eps = torch.finfo(dtype).eps / 32
    c = _normal(g, v, d) / 4
    c[:, 0] = -1.0
    c[0, 0] = 0.0
    e = torch.zeros(n, d, dtype=torch.float64)
    e[:, 0] = -torch.log(torch.tensor(eps, dtype=torch.float64)) + _normal(g, n) / 16
    return e, c * (torch.arange(d) == 0) + c * (torch.arange(d) > 0) / 64, torch.zeros(n, dtype=torch.int64)


def offset(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """A common offset of some hundreds on every logit, which the softmax does not see."""
    e, c, x = gaussian(g, n, v, d, dtype)
    e[:, 0] = 2.0 ** torch.randint(6, 10, (n,), generator=g) * (1 - 2 * torch.randint(0, 2, (n,), generator=g))
    c[:, 0] = 1.0
    return e, c, x


def duplicates(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Few different rows in E and in C: ties everywhere."""
    e, c, x = gaussian(g, n, v, d, dtype)
    return e[torch.arange(n) % 3 % n], c[torch.arange(v) % 5 % v], x


def powers(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Entries are signed powers of two over some binades."""

    def draw(rows: int) -> Tensor:
        sign = 1.0 - 2.0 * torch.randint(0, 2, (rows, d), generator=g)
        return sign * 2.0 ** torch.randint(-6, 2, (rows, d), generator=g).double()

    return draw(n), draw(v), _targets(g, n, v)


def integers(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Entries in -2..2: every logit is an integer that fp32 holds, whatever the order of additions."""
    e, c = (torch.randint(-2, 3, (rows, d), generator=g).double() for rows in (n, v))
    return e, c, _targets(g, n, v)


def subnormal(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """E of subnormal numbers of the dtype, C ordinary: nothing is flushed, or logits are nothing."""
    tiny = torch.finfo(dtype).smallest_normal
    return _normal(g, n, d) * (tiny / 4), _normal(g, v, d), _targets(g, n, v)


def real(g: Generator, n: int, v: int, d: int, dtype: torch.dtype) -> Drawn:
    """Tokens and words of SmolLM2's head, at its best logits of rank D; what it has fewer of comes again."""
    head = real_excerpt()
    rows, words, columns = head.shape
    tokens = torch.randperm(rows, generator=g).repeat(-(-n // rows))[:n]
    wanted = torch.zeros(words).index_fill_(0, head.targets[tokens], 1.0)
    order = (wanted + torch.rand(words, generator=g)).argsort(descending=True)  # targets first
    classes = order.repeat(-(-v // words))[:v][torch.randperm(v, generator=g)]
    here = classes == head.targets[tokens, None]  # (N, V); a target that found no place is another
    targets = torch.where(here.any(1), here.int().argmax(1), _targets(g, n, v))
    e, c = head.embeddings[tokens, :d], head.classifier[classes, :d]
    if d > columns:  # any orthonormal map keeps the logits
        lift = torch.linalg.qr(_normal(g, d, columns)).Q.T
        e, c = e @ lift, c @ lift
    return e, c, targets


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        gaussian,
        flat,
        peaked,
        confident,
        dominant,
        cancelling,
        coherent,
        zipf,
        near_threshold,
        offset,
        duplicates,
        powers,
        integers,
        subnormal,
        real,
    )
}
