"""A rigorous bound on every entry of what `double` returns: a running error analysis, in float64 itself.

Assumed: IEEE float64 addition, multiplication and division, products of matrices that sum ordinary products in any
order (no Strassen, no emulation), and exp, log1p, tanh within 4 ulp. The documented errors are 1 ulp for CUDA's and for
SLEEF's, which torch uses on CPUs, so that 4 leaves room. Notation: a hat is what `double` computed, ``u = 2^-53``.

1. raw logits: `products.product_error`; capped ones: tanh is well conditioned, so that only ``10 u |z|`` is added.
2. The shift x_v = z_v - z_a needs no true maximum: the formula holds for any anchor a. Hence
   ``|dx_v| <= Ez_v + Ez_a + u |x_v|`` and ``|de_v| <= e_v expm1(|dx_v| + 9 u)`` for e = exp(x).
3. rest: the sum of de_v, and V u rest for the summation; total = 1 + rest, relative error beta.
4. S = e / total: ``(de / total + beta S) / (1 - beta) + 2 u S``, and likewise 1 - S_t.
5. residual: linear in these, with roundings relative to `formula.residual_magnitude`.
6. gradients: the residual's error times |C| or |E|, and n u |G||C| for a sum of n products.

Second-order terms are kept where they can matter (expm1, 1 / (1 - beta)). `_INFLATE` covers those of order
1e-9 relative that are dropped, and the rounding of the bound itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import formula
from .double import ResidualChunk, Stream
from .formula import FLOAT64
from .problem import Problem, Solution
from .products import TINIEST, RowScale, U, magnitude, product_error

_FUNCTION = 9 * U  # 4 ulp are 8 u relative; as an exponent, log(1 + 8 u) and its rounding
_UNDERFLOW = 2.0**-1021  # more than exp can lose by underflowing, also where subnormals are flushed
_ROUNDINGS = 12 * U  # operations between softmax and residual, none of which meets cancellation
_INFLATE = 1 + 2.0**-20


def double_error(problem: Problem, solution: Solution, *, chunk: int | None = None) -> Solution:
    """Bounds on |solution - truth| for ``solution = double(problem)``, for those of its gradients that are not None.

    An entry which is inf or NaN has the bound 0: the truth is the same inf or NaN. If logits may have overflowed, no
    entry has a finite bound.
    """
    analysis = _Analysis(problem, chunk)
    stream = analysis.stream
    n, v, _ = problem.shape
    d_embeddings, d_classifier, d_bias = (
        None if x is None else torch.zeros_like(x)
        for x in (solution.d_embeddings, solution.d_classifier, solution.d_bias)
    )
    sizes = stream.embeddings.abs()
    wanted = any(x is not None for x in (d_embeddings, d_classifier, d_bias))
    for part in stream.residuals(analysis.rows) if wanted else ():
        error, size = analysis.residual(part), part.residual.abs()
        if d_embeddings is not None:
            weights = stream.classifier(part.columns).abs()
            d_embeddings.addmm_(error + v * U * size, weights).add_(len(part.columns) * TINIEST)
        if d_classifier is not None:
            d_classifier[part.columns] = (error + n * U * size).T @ sizes + n * TINIEST
        if d_bias is not None:
            d_bias[part.columns] = (error + n * U * size).sum(dim=0)

    def finish(bound: Tensor, value: Tensor) -> Tensor:
        if analysis.overflow:
            return torch.full_like(bound, torch.inf)
        return torch.where(torch.isfinite(value), bound * _INFLATE, 0.0)

    def optional(bound: Tensor | None, value: Tensor | None) -> Tensor | None:
        return None if bound is None or value is None else finish(bound, value)

    loss, lse = analysis.forward()
    if d_embeddings is not None:
        d_embeddings = torch.where(stream.valid, d_embeddings, 0.0)
    return Solution(
        loss=finish(loss, solution.loss),
        reduced=finish(analysis.reduced(solution.loss, loss), solution.reduced),
        lse=finish(lse, solution.lse),
        d_embeddings=optional(d_embeddings, solution.d_embeddings),
        d_classifier=optional(d_classifier, solution.d_classifier),
        d_bias=optional(d_bias, solution.d_bias),
    )


class _Analysis:
    """Steps 1 to 5 for one problem. Bounds of rows are (N, 1), of chunks (N, n)."""

    def __init__(self, problem: Problem, chunk: int | None) -> None:
        self.problem = problem
        self.stream = stream = Stream(problem, chunk)
        self.rows = rows = stream.rows()
        self.embeddings = RowScale.of(stream.embeddings)[:, None]
        self.classifier = RowScale.cat([RowScale.of(stream.classifier(columns)) for columns in stream.columns()])
        self.overflow = bool((self.embeddings.norm * self.classifier.norm.amax() >= 2.0**1000).any())

        self.anchor_error = self.logit_error(rows.anchor)
        self.target_error = self.logit_error(rows.target)
        rest_error, self.gaps_error = torch.zeros_like(rows.rest), torch.zeros_like(rows.rest)
        for columns in stream.columns():
            logit_error = self.logit_error(columns)
            terms = self.exp_error(stream.logits(columns), logit_error)
            rest_error += torch.where(columns == rows.anchor, 0.0, terms).sum(dim=1, keepdim=True)
            if problem.smoothing:
                self.gaps_error += (logit_error + self.anchor_error).sum(dim=1, keepdim=True)
        self.rest_error = rest_error + stream.vocabulary * U * rows.rest
        self.gaps_error += (stream.vocabulary + 1) * U * rows.gaps
        self.total = formula.total(FLOAT64, rows)
        self.beta = self.rest_error / self.total + U

        target_exp = self.exp_error(rows.target_logit, self.target_error)
        beside = self.rest_error + target_exp + 2 * U * self.total
        numerator = torch.where(rows.target == rows.anchor, self.rest_error, beside)
        self.others = formula.others(FLOAT64, rows)
        self.others_error = self.ratio_error(numerator, self.others)

    def raw_error(self, columns: Tensor) -> Tensor:
        """Step 1. `columns` are (n,) for a chunk, or (N, 1) for one class of each row."""
        bias = self.stream.bias(columns)
        return product_error(self.embeddings, self.classifier[columns], self.problem.shape[2], bias)

    def logit_error(self, columns: Tensor) -> Tensor:
        error, softcap = self.raw_error(columns), self.problem.softcap
        if softcap is None:
            return error
        size = magnitude(self.embeddings, self.classifier[columns], self.stream.bias(columns))
        # tanh y is relatively no more sensitive than y: u for the division, 8 u for tanh, u for the product.
        return error + 10 * U * size.clamp(max=softcap)

    def exp_error(self, logits: Tensor, logit_error: Tensor) -> Tensor:
        """Step 2."""
        shift = logits - self.rows.maximum
        delta = torch.where(shift.isinf(), 0.0, logit_error + self.anchor_error + U * shift.abs())
        small = torch.exp(shift) * torch.expm1(delta + _FUNCTION)
        return torch.where(delta < 1, small, 2 * torch.exp(shift + delta)) + _UNDERFLOW

    def ratio_error(self, numerator: Tensor, ratio: Tensor) -> Tensor:
        """Step 4: the error of `ratio` = numerator / total. Both it and the truth are in [0, 1]."""
        error = (numerator / self.total + self.beta * ratio) / (1 - self.beta) + 2 * U * ratio + _UNDERFLOW
        return torch.where(self.beta < 0.5, error, self.beta + 1).clamp(max=1.0)  # NaN stays NaN

    def forward(self) -> tuple[Tensor, Tensor]:
        """Bounds for loss and lse, (N,) each."""
        rows, smoothing, v = self.rows, self.problem.smoothing, self.stream.vocabulary
        log_total = formula.log_total(FLOAT64, rows)
        log_error = -torch.log1p(-(self.rest_error / self.total).clamp(max=1.0)) + _FUNCTION * log_total
        lse_error = self.anchor_error + log_error + U * formula.lse(FLOAT64, rows).abs()
        gap = (rows.maximum - rows.target_logit).abs()
        gap_error = torch.where(rows.target == rows.anchor, 0.0, self.target_error + self.anchor_error + U * gap)
        if smoothing:
            gap_error = (1 - smoothing) * gap_error + smoothing / v * self.gaps_error
        # Both terms of the loss are non-negative: five more roundings are relative to it.
        loss = formula.cross_entropy(FLOAT64, rows, smoothing, v)
        loss_error = self.problem.row_weights()[:, None].abs() * (gap_error + log_error + 6 * U * loss)
        errors = (loss_error, lse_error)
        loss_error, lse_error = (torch.where(self.stream.valid, x, 0.0)[:, 0] for x in errors)
        return loss_error, lse_error

    def count_error(self) -> float:
        """Relative error of the divisor of a mean: a sum of the rows' weights, exact while they are ones."""
        weights = self.problem.row_weights()
        if self.problem.reduction != "mean" or self.problem.target_weight is None or not bool(weights.any()):
            return 0.0
        return float(len(weights) * U * weights.abs().sum() / weights.sum().abs())

    def reduced(self, loss: Tensor, error: Tensor) -> Tensor:
        if self.problem.reduction == "none":
            return error
        count_error = self.count_error()
        return self.stream.reduce(error) + (len(loss) * U + count_error + U) * self.stream.reduce(loss.abs())

    def residual(self, part: ResidualChunk) -> Tensor:
        """Step 5: bound on |part.residual - truth|."""
        stream, smoothing = self.stream, self.problem.smoothing
        softmax_error = self.ratio_error(self.exp_error(part.logits, self.logit_error(part.columns)), part.softmax)
        is_target = part.columns == self.rows.target
        upstream = stream.d_loss, stream.d_lse
        arguments = is_target, *upstream, smoothing, stream.vocabulary
        size = formula.residual_magnitude(FLOAT64, part.softmax, self.others, *arguments)
        difference = torch.where(is_target, self.others_error, softmax_error)
        if smoothing:
            difference = (1 - smoothing) * difference + smoothing * softmax_error
        error = difference * stream.d_loss.abs() + softmax_error * stream.d_lse.abs()
        error = error + (_ROUNDINGS + self.count_error()) * size + 8 * TINIEST
        if self.problem.softcap is not None:
            derivative = formula.cap_derivative(FLOAT64, part.raw, self.problem.softcap)
            derivative_error = self.derivative_error(part, derivative, self.problem.softcap)
            error = error * derivative + (size + error) * derivative_error + U * size * derivative
        return torch.where(stream.valid, error, 0.0)

    def derivative_error(self, part: ResidualChunk, derivative: Tensor, softcap: float) -> Tensor:
        """Of sech(y)^2, whose logarithm has a derivative of at most 2; about ten roundings and one exp beside y's."""
        y = part.raw.abs() / softcap
        dy = torch.where(y.isinf(), 0.0, self.raw_error(part.columns) / softcap + U * y)
        small = derivative * torch.expm1(2 * dy + 40 * U)
        large = (5 * torch.exp(-2 * (y - dy))).clamp(max=1.0)  # sech(y)^2 <= 4 exp(-2 |y|)
        return torch.where(dy < 0.5, small, large) + _UNDERFLOW
