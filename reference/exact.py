"""The oracle with as many digits as it takes: float64 values rounded from mpmath and from exact integers.

Logits and the products of the gradients are matrices of Python integers, hence exact; mpmath computes exp, log1p and
tanh between them. Each value x comes with a bound b on its error, and is settled when x - b and x + b round to the same
float64. Until all are, the precision doubles (Ziv 1991). An entry which is zero by symmetry, or lies half-way between
two doubles, never settles: see `settle`.

Error at p bits, ``v = 2^-p``, with X bounding the logits before and after the cap: z has a relative error of at most
6 v, exp(z - m) of ``(14 X + 8) v``, quotients and the softcap's derivative of at most four times that, everything else
a handful of v, and sums round once. So every value is within ``256 (X + 1) v`` of the truth, relative to the sum of its
terms' magnitudes; the code allows four times that. The residual enters the integer products as a multiple of a power
of two so small that the loss cannot reach half of the smallest subnormal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import torch
from mpmath import libmp
from torch import Tensor

from . import formula
from .formula import Context, Rows, multiprecision
from .problem import Problem, Solution
from .products import Fixed, nearest_double, nonfinite_product

Numbers = Any  # numpy object array of mpf
Doubles = np.ndarray[Any, Any]

_SUBNORMAL_BITS = 1074 + 64
_ROUNDS = (100, 200, 400)  # bits beyond those that the error bound needs


def exact(problem: Problem) -> Solution:
    """The true answer, correctly rounded to float64 but for the entries that `settle` names."""
    return settle(problem)[0]


def settle(problem: Problem) -> tuple[Solution, Solution]:
    """The answer, and for each of its entries whether it settled (bool).

    An entry that did not lies on zero or half-way between two neighbouring doubles, or within 2^-400 of its scale from
    there. It is returned as 0.0 in the first case, as one of the two neighbours in the second.
    """
    evaluation = Evaluation(problem)
    for bits in _ROUNDS:
        rounded = {name: _round(value) for name, value in evaluation.at(evaluation.guard + bits).items()}
        if all(settled.all() for _, settled in rounded.values()):
            break
    device = problem.embeddings.device
    answer, certainty = (
        Solution(**{name: torch.from_numpy(pair[k]).to(device) for name, pair in rounded.items()}) for k in (0, 1)
    )
    return answer, certainty


@dataclass(frozen=True, eq=False)
class Value:
    """Numbers, each known up to an error."""

    numbers: Numbers
    error: Numbers


class Evaluation:
    """The valid rows of a problem in exact form, to be evaluated at any precision."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem = problem.to("cpu")
        self.keep = problem.valid.numpy()
        self.targets = problem.targets.numpy()[self.keep, None]
        self.embeddings, self.classifier = problem.embeddings.double()[problem.valid], problem.classifier.double()
        self.raw = Fixed.of(self.embeddings) @ Fixed.of(self.classifier).transposed
        self.special = nonfinite_product(self.embeddings.numpy(), self.classifier.numpy().T)
        if problem.bias is not None:
            bias = problem.bias.double()[None]
            self.raw = self.raw + Fixed.of(bias)
            self.special = self.special + torch.where(torch.isfinite(bias), 0.0, bias).numpy()
        largest = max(self.raw.bits, 0)
        if problem.softcap is not None:
            largest += max(0, -math.floor(math.log2(problem.softcap)))
        self.guard = 12 + largest

    @np.errstate(invalid="ignore")  # of NaN that is there on purpose
    def at(self, precision: int) -> dict[str, Value]:
        """Everything that a `Solution` holds, by name."""
        problem, mp = self.problem, mpmath.MPContext()
        mp.prec = precision
        ctx, number = multiprecision(mp), np.frompyfunc(mp.mpf, 1, 1)
        n, v, _ = problem.shape
        smoothing = mp.mpf(problem.smoothing)
        softcap = None if problem.softcap is None else mp.mpf(problem.softcap)
        unit = mp.ldexp(1, self.guard - precision)

        raw = np.where(np.isfinite(self.special), _numbers(mp, self.raw), number(self.special))
        logits = formula.cap(ctx, raw, softcap)
        rows = _rows(ctx, logits, self.targets)
        weights = number(problem.row_weights().numpy()[self.keep, None])
        loss = formula.cross_entropy(ctx, rows, smoothing, v) * weights
        loss_scale = abs(loss)
        if softcap is not None:  # what separates two capped logits may have cancelled
            sizes = abs(rows.maximum) + abs(rows.target_logit)
            loss_scale = loss_scale + (sizes + ctx.total(abs(logits)) / v) * abs(weights)
        lse_scale = abs(rows.maximum) + formula.log_total(ctx, rows)

        count = (mp.fsum(weights.flat) if problem.reduction == "mean" else 0) or mp.mpf(1)
        values = {
            "loss": self._scatter(mp, Value(loss[:, 0], loss_scale[:, 0] * unit)),
            "lse": self._scatter(mp, Value(formula.lse(ctx, rows)[:, 0], lse_scale[:, 0] * unit)),
        }
        values["reduced"] = values["loss"]
        if problem.reduction != "none":
            reduced, error = mp.fsum(loss.flat) / count, mp.fsum(loss_scale.flat) * unit / abs(count)
            values["reduced"] = Value(np.array(reduced, dtype=object), np.array(error, dtype=object))

        d_loss, d_lse = (
            number(np.full(n, default) if x is None else np.broadcast_to(x.double().numpy(), n))[self.keep, None]
            for x, default in ((problem.grad_loss, 1.0), (problem.grad_lse, 0.0))
        )
        softmax, is_target = formula.softmax(ctx, logits, rows), np.arange(v) == self.targets
        arguments = softmax, formula.others(ctx, rows), is_target, d_loss * weights / count, d_lse, smoothing, v
        derivative = formula.cap_derivative(ctx, raw, softcap)
        residual = formula.residual(ctx, *arguments) * derivative
        scale = formula.residual_magnitude(ctx, *arguments) * derivative
        values["d_embeddings"] = self._scatter(mp, _times(mp, unit, residual, scale, self.classifier))
        values["d_classifier"] = _times(mp, unit, residual.T, scale.T, self.embeddings)
        if problem.bias is not None:
            ones = torch.ones(len(residual), 1, dtype=torch.float64)
            d_bias = _times(mp, unit, residual.T, scale.T, ones)
            values["d_bias"] = Value(d_bias.numbers[:, 0], d_bias.error[:, 0])
        return values

    def _scatter(self, mp: Any, value: Value) -> Value:
        """From the valid rows to all N, with exact zeros at the ignored ones."""

        def spread(part: Numbers) -> Numbers:
            full = np.full((len(self.keep), *part.shape[1:]), mp.zero, dtype=object)
            full[self.keep] = part
            return full

        return Value(spread(value.numbers), spread(value.error))


def _rows(ctx: Context, logits: Numbers, targets: np.ndarray[Any, Any]) -> Rows:
    """`targets` are (n, 1)."""
    anchors = np.empty_like(targets)
    for i, row in enumerate(logits):
        nan = [v for v, z in enumerate(row) if z != z]
        anchors[i] = nan[0] if nan else max(range(len(row)), key=row.__getitem__)
    maximum = np.take_along_axis(logits, anchors, axis=1)
    terms = np.where(np.arange(logits.shape[1]) == anchors, 0.0, ctx.exp(logits - maximum))
    return Rows(
        maximum=maximum,
        anchor=anchors,
        rest=ctx.total(terms),
        target=targets,
        target_logit=np.take_along_axis(logits, targets, axis=1),
        gaps=ctx.total(maximum - logits),
    )


def _times(mp: Any, unit: Any, matrix: Numbers, scale: Numbers, other: Tensor) -> Value:
    """``matrix @ other`` for entries of `matrix` known up to `unit` times their `scale`; `other` is float64."""
    fixed = Fixed.of(other)
    lsb = -(_SUBNORMAL_BITS + max(fixed.bits, 0) + matrix.shape[1].bit_length())
    product, size = _multiple(matrix, lsb) @ fixed, _multiple(scale, lsb) @ abs(fixed)
    special = nonfinite_product(np.frompyfunc(_sign, 1, 1)(matrix).astype(float), other.numpy())
    numbers = np.where(np.isfinite(special), _numbers(mp, product), np.frompyfunc(mp.mpf, 1, 1)(special))
    return Value(numbers, _numbers(mp, size) * unit + mp.ldexp(1, -_SUBNORMAL_BITS))


def _multiple(matrix: Numbers, lsb: int) -> Fixed:
    """The multiples of 2^lsb below the finite entries, in magnitude; 0 for inf and NaN."""

    def units(x: Any) -> int:
        if not x.context.isfinite(x):
            return 0
        man, exp = map(int, x.man_exp)  # of |x|
        size = man << (exp - lsb) if exp >= lsb else man >> (lsb - exp)
        return -size if x < 0 else size

    return Fixed(np.frompyfunc(units, 1, 1)(matrix), lsb)


def _numbers(mp: Any, fixed: Fixed) -> Numbers:
    """Exact, whatever the precision of `mp`."""
    return np.frompyfunc(lambda units: mp.make_mpf(libmp.from_man_exp(units, fixed.exponent)), 1, 1)(fixed.units)


def _sign(x: Any) -> float:
    """-1, 0 or 1 for a finite number; inf and NaN themselves."""
    return float((x > 0) - (x < 0)) if x.context.isfinite(x) else float(x)


def _nearest(x: Any) -> float:
    if not x.context.isfinite(x):
        return float(x)
    man, exp = map(int, x.man_exp)
    return nearest_double(-man if x < 0 else man, exp)


def _round(value: Value) -> tuple[Doubles, Doubles]:
    """The nearest doubles, and whether the error leaves no doubt which they are."""
    doubles, settled = np.empty(value.numbers.shape), np.empty(value.numbers.shape, dtype=bool)
    for index, x in np.ndenumerate(value.numbers):
        doubles[index], settled[index] = _nearest(x), True
        if x.context.isfinite(x):
            low, high = (_nearest(x + sign * value.error[index]) for sign in (-1, 1))
            settled[index] = low == high
            if low < 0 < high:
                doubles[index] = 0.0
    return doubles, settled
