"""The oracles against torch's autograd, and the exact gradient against differences of the exact loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ccelab.properties.problems import make, within
from ccelab.reference import ORACLES, Problem, Solution, exact
from ccelab.reference.exact import Evaluation
from ccelab.reference.products import TINIEST, U


def naive(problem: Problem) -> tuple[Solution, Solution]:
    """`Problem`'s own definition under torch's float64 autograd, and a first-order bound on its errors.

    With w = |d_loss| (S + q) + |d_lse| S, the logits' derivative has the error ``w (2 X + 2 V + 16) u`` from exp, sums
    and softmax - 1, and 2 dz from the logits, |dz| <= D u |E||C|; X bounds the logits. The softcap's derivative has an
    absolute error of 4 u. Gradients add V u or N u for their sums.
    """
    tensors = [problem.embeddings, problem.classifier] + ([] if problem.bias is None else [problem.bias])
    e, c, *b = leaves = [x.double().requires_grad_() for x in tensors]
    raw = e @ c.T if not b else e @ c.T + b[0]
    z = raw if problem.softcap is None else problem.softcap * torch.tanh(raw / problem.softcap)
    keep, w, eps = problem.valid, problem.row_weights(), problem.smoothing
    targets = torch.where(keep, problem.targets, 0).long()[:, None]
    lse = torch.where(keep, z.logsumexp(dim=1), 0.0)
    target_term = (1 - eps) * z.gather(1, targets)[:, 0] + (eps * z.mean(dim=1) if eps else 0.0)
    loss = torch.where(keep, w * (z.logsumexp(dim=1) - target_term), 0.0)
    reduced = loss if problem.reduction == "none" else loss.sum()
    if problem.reduction == "mean":
        reduced = reduced / max(float(w.sum()), TINIEST)
    grad = torch.ones_like(reduced) if problem.grad_loss is None else problem.grad_loss.double()
    grad_lse = torch.zeros_like(lse) if problem.grad_lse is None else problem.grad_lse.double()
    gradients = torch.autograd.grad([reduced, lse], leaves, [grad, grad_lse])
    names = ["d_embeddings", "d_classifier", "d_bias"][: len(gradients)]
    value = Solution(
        loss=loss.detach(), reduced=reduced.detach(), lse=lse.detach(), **dict(zip(names, gradients, strict=True))
    )

    n, v, d = problem.shape
    d_loss, d_lse = problem.upstream()
    finite = torch.where(raw.isfinite(), z, 0.0).detach()
    size = finite.abs().amax(dim=1, keepdim=True)
    dz = (d + 1) * U * (e.abs() @ c.abs().T + (0 if not b else b[0].nan_to_num(neginf=0.0).abs())).detach()
    dz = dz.amax(dim=1, keepdim=True)
    relative = U * (2 * size + 2 * v + 16) + 2 * dz
    q = (1 - eps) * F.one_hot(targets[:, 0], v) + eps / v
    weight = (w * d_loss).abs()[:, None] * (z.softmax(dim=1).detach() + q) + d_lse.abs()[:, None] * z.softmax(
        1
    ).detach()
    error = torch.where(keep[:, None], weight * (relative + (n + v) * U), 0.0)
    row = torch.where(keep, (relative * (1 + size))[:, 0], 0.0)
    total = row * w if problem.reduction == "none" else (row * w + n * U * value.loss.abs()).sum()
    bounds = (error @ c.detach().abs(), error.T @ e.detach().abs(), error.sum(dim=0))
    return value, Solution(
        loss=row * w,
        reduced=total / max(float(w.sum()), TINIEST) if problem.reduction == "mean" else total,
        lse=row,
        **dict(zip(names, bounds, strict=False)),
    )


AUTOGRAD: dict[str, Callable[[], Problem]] = {
    "plain": make,
    "float32, bias": lambda: make(dtype=torch.float32, bias=torch.linspace(-1, 1, 11)),
    "masked": lambda: make(targets=torch.zeros(6).long(), bias=torch.tensor([0.0] * 8 + [-math.inf] * 3)),
    "capped": lambda: make(scale=3.0, softcap=4.0),
    "ignored": lambda: make(targets=torch.tensor([1, -100, 3, -100, 10, 0]), grad_lse=torch.linspace(-1, 1, 6)),
    "sum": lambda: make(reduction="sum", grad_loss=torch.tensor(-0.5)),
    "none": lambda: make(reduction="none", grad_loss=torch.tensor([1.0, 0.0, -2.0, 0.5, 0.0, 3.0])),
    "weights": lambda: make(target_weight=torch.linspace(0.5, 2, 11)),
    "smoothing": lambda: make(smoothing=0.2),
    "all of it": lambda: make(
        12,
        40,
        17,
        smoothing=0.2,
        target_weight=torch.linspace(0, 2, 40),
        softcap=5.0,
        bias=torch.linspace(-1, 1, 40),
        grad_lse=torch.linspace(-2, 1, 12),
        grad_loss=torch.tensor(3.0),
    ),
}


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("case", AUTOGRAD)
def test_autograd_of_the_definition_agrees(case: str, oracle: str) -> None:
    problem = AUTOGRAD[case]()
    value, error = naive(problem)
    within(ORACLES[oracle](problem), value, error)


@pytest.mark.parametrize("case", ["plain", "ignored", "sum", "none", "weights", "smoothing"])
def test_torch_cross_entropy_agrees(case: str) -> None:
    problem = replace(AUTOGRAD[case](), grad_lse=None)
    e, c = problem.embeddings.double().requires_grad_(), problem.classifier.double().requires_grad_()
    weight = None if problem.target_weight is None else problem.target_weight.double()

    def cross_entropy(reduction: str) -> Tensor:
        return F.cross_entropy(e @ c.T, problem.targets, weight, reduction=reduction, label_smoothing=problem.smoothing)

    loss, reduced = cross_entropy("none"), cross_entropy(problem.reduction)
    grad = torch.ones_like(reduced) if problem.grad_loss is None else problem.grad_loss.double()
    d_e, d_c = torch.autograd.grad(reduced, [e, c], grad)
    truth = exact(problem)
    value = Solution(loss=loss.detach(), reduced=reduced.detach(), lse=truth.lse, d_embeddings=d_e, d_classifier=d_c)
    within(truth, value, naive(problem)[1])


@pytest.mark.parametrize("options", [{}, {"softcap": 3.0}, {"smoothing": 0.25, "target_weight": torch.arange(5) / 4.0}])
def test_the_exact_gradient_is_the_derivative_of_the_exact_loss(options: dict[str, Any]) -> None:
    """Five-point differences of the mpmath loss along one direction of E, C and bias together.

    The truncation error falls 16-fold when the step is halved, so that the two differences are 15 times as far apart
    as the finer one is from the derivative. Steps of 2^-40 make that about 1e-48. The data are multiples of 1/4, so
    that the shifted ones are exact in float64.
    """
    g = torch.Generator().manual_seed(0)
    shapes = (4, 3), (5, 3), (5,)
    tensors = [torch.randint(-8, 8, shape, generator=g).double() / 4 for shape in shapes]
    directions = [torch.randint(-4, 4, shape, generator=g).double() for shape in shapes]
    d_lse = torch.tensor([0.5, -1.0, 0.0, 2.0])
    precision = 600
    mp = mpmath.MPContext()
    mp.prec = precision

    def at(step: float) -> dict[str, Any]:
        e, c, b = (x + step * direction for x, direction in zip(tensors, directions, strict=True))
        targets = torch.tensor([0, 4, -100, 2])
        problem = Problem(embeddings=e, classifier=c, bias=b, targets=targets, grad_lse=d_lse, **options)
        return Evaluation(problem).at(precision)

    def scalar(step: float) -> Any:
        values = at(step)
        pairs = zip(values["lse"].numbers, d_lse.tolist(), strict=True)
        return values["reduced"].numbers[()] + mp.fsum(lse * weight for lse, weight in pairs)

    def difference(h: float) -> Any:
        return (8 * (scalar(h) - scalar(-h)) - (scalar(2 * h) - scalar(-2 * h))) / (12 * mp.mpf(h))

    values = at(0.0)
    derivative = mp.fsum(
        x * y
        for name, direction in zip(("d_embeddings", "d_classifier", "d_bias"), directions, strict=True)
        for x, y in zip(values[name].numbers.flat, direction.flatten().tolist(), strict=True)
    )
    coarse, fine = difference(2.0**-40), difference(2.0**-41)
    assert abs(fine - derivative) <= abs(coarse - fine) < mp.mpf(2) ** -140 * abs(derivative)
