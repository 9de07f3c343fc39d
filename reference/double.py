"""The oracle in float64: vectorised, on any device, never holding more than a chunk of the vocabulary.

The forward pass reads the logits twice, first for the maximum and then for the sum: a third product of matrices, which
float64 units do in no time, buys a sum without rescaling and thereby a short error analysis (`bounds`). The logits of
different passes may differ by their rounding; nothing here or in the bounds relies on their being equal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import formula
from .formula import FLOAT64, Rows
from .problem import Problem, Solution

GRADIENTS = ("d_embeddings", "d_classifier", "d_bias")
_CHUNK_ELEMENTS = 2**26  # of one (N, chunk) float64 temporary: 0.5 GB


class Forward(NamedTuple):
    """(N,) float64 each, 0 at ignored rows."""

    loss: Tensor  # weighted, before the reduction
    lse: Tensor
    target_logit: Tensor  # capped, as the maximum
    max_logit: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ResidualChunk:
    """Some columns of the logits' derivative; float64 and (N, n) but for `columns`."""

    columns: Tensor  # (n,) int64: vocabulary ids
    raw: Tensor  # E . C + bias
    logits: Tensor  # cap(raw)
    softmax: Tensor
    residual: Tensor  # d total / d raw: upstream, one-hot, lse gradient and softcap included; 0 at ignored rows


class Stream:
    """A problem in float64, one chunk of its vocabulary at a time. Ignored rows read as E = 0 and are masked later."""

    def __init__(self, problem: Problem, chunk: int | None = None) -> None:
        n, self.vocabulary, _ = problem.shape
        self.problem = problem
        self.chunk = chunk or max(1, _CHUNK_ELEMENTS // max(n, 1))
        self.valid = problem.valid[:, None]
        self.embeddings = torch.where(self.valid, problem.embeddings.double(), 0.0)
        self.targets = torch.where(problem.valid, problem.targets, 0).long()[:, None]
        d_loss, d_lse = problem.upstream()
        self.d_loss = (problem.row_weights() * d_loss)[:, None]
        self.d_lse = d_lse[:, None]

    def columns(self, order: Tensor | None = None) -> Iterator[Tensor]:
        ids = torch.arange(self.vocabulary, device=self.embeddings.device) if order is None else order.long()
        for start in range(0, len(ids), self.chunk):
            yield ids[start : start + self.chunk]

    def classifier(self, columns: Tensor) -> Tensor:
        """(n, D)."""
        return self.problem.classifier[columns].double()

    def bias(self, columns: Tensor) -> Tensor | None:
        return None if self.problem.bias is None else self.problem.bias[columns].double()

    def raw(self, columns: Tensor) -> Tensor:
        """(N, n)."""
        product = self.embeddings @ self.classifier(columns).T
        bias = self.bias(columns)
        return product if bias is None else product.add_(bias)

    def logits(self, columns: Tensor) -> Tensor:
        capped: Tensor = formula.cap(FLOAT64, self.raw(columns), self.problem.softcap)
        return capped

    def anchors(self) -> tuple[Tensor, Tensor]:
        """The maximum of every row and the first class that attains it: two (N, 1). NaN wins."""
        maximum = torch.full_like(self.d_loss, -torch.inf)
        anchor = torch.zeros_like(self.targets)
        for columns in self.columns():
            highest, index = self.logits(columns).max(dim=1, keepdim=True)
            better = (highest > maximum) | highest.isnan()
            maximum = torch.where(better, highest, maximum)
            anchor = torch.where(better, columns[index], anchor)
        return maximum, anchor

    def rows(self) -> Rows:
        maximum, anchor = self.anchors()
        rest, target_logit, gaps = (torch.zeros_like(maximum) for _ in range(3))
        for columns in self.columns():
            logits = self.logits(columns)
            rest += torch.exp(logits - maximum).masked_fill_(columns == anchor, 0.0).sum(dim=1, keepdim=True)
            target_logit += torch.where(columns == self.targets, logits, 0.0).sum(dim=1, keepdim=True)
            if self.problem.smoothing:
                gaps += (maximum - logits).sum(dim=1, keepdim=True)
        return Rows(
            maximum=maximum,
            anchor=anchor,
            rest=rest,
            target=self.targets,
            target_logit=target_logit,
            gaps=gaps,
        )

    def forward(self, rows: Rows) -> Forward:
        loss = formula.cross_entropy(FLOAT64, rows, self.problem.smoothing, self.vocabulary)
        loss = loss * self.problem.row_weights()[:, None]
        outputs = (loss, formula.lse(FLOAT64, rows), rows.target_logit, rows.maximum)
        return Forward(*(torch.where(self.valid, x, 0.0)[:, 0] for x in outputs))

    def residuals(self, rows: Rows, order: Tensor | None = None) -> Iterator[ResidualChunk]:
        softcap = self.problem.softcap
        others = formula.others(FLOAT64, rows)
        for columns in self.columns(order):
            raw = self.raw(columns)
            logits = formula.cap(FLOAT64, raw, softcap)
            softmax = formula.softmax(FLOAT64, logits, rows)
            is_target = columns == self.targets
            coefficient = formula.residual(
                FLOAT64, softmax, others, is_target, self.d_loss, self.d_lse, self.problem.smoothing, self.vocabulary
            )
            residual = torch.where(self.valid, coefficient * formula.cap_derivative(FLOAT64, raw, softcap), 0.0)
            yield ResidualChunk(columns=columns, raw=raw, logits=logits, softmax=softmax, residual=residual)

    def reduce(self, loss: Tensor) -> Tensor:
        """`loss` is (N,). A mean over nothing is 0."""
        if self.problem.reduction == "none":
            return loss
        if self.problem.reduction == "sum":
            return loss.sum()
        count = self.problem.row_weights().sum()
        return loss.sum() / torch.where(count == 0, 1.0, count)


def forward_double(problem: Problem, *, chunk: int | None = None) -> Forward:
    stream = Stream(problem, chunk)
    return stream.forward(stream.rows())


def residual_chunks(
    problem: Problem, *, order: Tensor | None = None, chunk: int | None = None
) -> Iterator[ResidualChunk]:
    """The residual, `chunk` columns at a time: in vocabulary order, or in the given (V,) `order` of vocabulary ids."""
    stream = Stream(problem, chunk)
    return stream.residuals(stream.rows(), order)


def double(problem: Problem, *, chunk: int | None = None, gradients: Collection[str] = GRADIENTS) -> Solution:
    """float64 answers, each within `double_error` of the truth, and the named gradients (d_bias only with a bias).

    Logits that overflow float64 (possible for float64 data only) give inf or NaN where the truth may be finite.
    """
    stream = Stream(problem, chunk)
    n, v, d = problem.shape
    rows = stream.rows()
    forward = stream.forward(rows)

    def zeros(name: str, *shape: int) -> Tensor | None:
        return stream.embeddings.new_zeros(shape) if name in gradients else None

    d_embeddings, d_classifier = zeros("d_embeddings", n, d), zeros("d_classifier", v, d)
    d_bias = None if problem.bias is None else zeros("d_bias", v)
    wanted = any(x is not None for x in (d_embeddings, d_classifier, d_bias))
    for part in stream.residuals(rows) if wanted else ():
        if d_embeddings is not None:
            d_embeddings.addmm_(part.residual, stream.classifier(part.columns))
        if d_classifier is not None:
            d_classifier[part.columns] = part.residual.T @ stream.embeddings
        if d_bias is not None:
            d_bias[part.columns] = part.residual.sum(dim=0)
    if d_embeddings is not None:
        d_embeddings = torch.where(stream.valid, d_embeddings, 0.0)  # 0 * inf, if the classifier is not finite
    return Solution(
        loss=forward.loss,
        reduced=stream.reduce(forward.loss),
        lse=forward.lse,
        d_embeddings=d_embeddings,
        d_classifier=d_classifier,
        d_bias=d_bias,
    )
