"""The oracles against each other, against closed forms, in the corners, and against wrong formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ccelab.properties.problems import OUTPUTS, make, within
from ccelab.reference import (
    ORACLES,
    Problem,
    Reduction,
    double,
    double_error,
    exact,
    formula,
    forward_double,
    residual_chunks,
    settle,
)
from ccelab.reference.exact import Evaluation

REDUCTIONS: tuple[Reduction, ...] = ("none", "mean", "sum")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def confident(softcap: float | None = None, dtype: torch.dtype = torch.bfloat16) -> Problem:
    """Targets of probability 1 - 1e-20 and closer; a class per dimension, so that nothing hides a small gradient."""
    targets = torch.arange(6)
    embeddings = torch.diag(torch.tensor([45.0, 46.0, 60.0, 45.5, 100.0, 300.0])).to(dtype)
    return Problem(embeddings=embeddings, classifier=torch.eye(6, dtype=dtype), targets=targets, softcap=softcap)


def agree(problem: Problem) -> None:
    value = double(problem)
    within(exact(problem), value, double_error(problem, value))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n, v, d = draw(st.integers(1, 6)), draw(st.integers(1, 9)), draw(st.integers(1, 8))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    def rarely(chance: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=g) < chance

    reduction = draw(st.sampled_from(REDUCTIONS))
    dtype = draw(st.sampled_from(DTYPES))
    classifier = normal(v, d)
    if draw(st.booleans()):
        classifier = classifier[:1].repeat(v, 1)  # gradients that are zero by symmetry
    bias = draw(st.sampled_from([None, 1.0, 1e4]))
    return Problem(
        embeddings=(normal(n, d) * draw(st.sampled_from([0.0, 0.01, 1.0, 30.0]))).to(dtype),
        classifier=classifier.to(dtype),
        targets=torch.where(rarely(0.2, n), -7, torch.randint(0, v, (n,), generator=g)),
        bias=None if bias is None else torch.where(rarely(0.1, v), -math.inf, normal(v) + bias),
        ignore_index=-7,
        softcap=draw(st.sampled_from([None, None, 0.3, 30.0])),
        reduction=reduction,
        grad_loss=draw(
            st.sampled_from(
                [None, torch.where(rarely(0.3, n), 0.0, normal(n)) if reduction == "none" else normal(1)[0]]
            )
        ),
        grad_lse=draw(st.sampled_from([None, normal(n)])),
        target_weight=draw(st.sampled_from([None, torch.where(rarely(0.2, v), 0.0, normal(v).abs())])),
        smoothing=draw(st.sampled_from([0.0, 0.0, 0.1, 1.0])),
    )


@given(problems())
def test_double_is_within_its_bound_of_exact(problem: Problem) -> None:
    agree(problem)


@given(problems())
def test_exact_keeps_its_own_bound_at_any_precision(problem: Problem) -> None:
    """What few bits and many bits give differs by no more than the two errors that `settle` relies on."""
    evaluation = Evaluation(problem)
    few, many = (evaluation.at(evaluation.guard + bits) for bits in (10, 300))
    for name, coarse in few.items():
        fine = many[name]
        for index, x in np.ndenumerate(coarse.numbers):
            y = fine.numbers[index]
            nan = x != x and y != y
            assert nan or x == y or abs(x - y) <= coarse.error[index] + fine.error[index], (name, index)


CASES: dict[str, Callable[[], Problem]] = {
    **{str(dtype): partial(make, dtype=dtype) for dtype in DTYPES},
    "larger": lambda: make(33, 130, 33),
    "V=1": lambda: make(v=1),
    "N=1": lambda: make(n=1),
    "D=1": lambda: make(d=1),
    "confident": confident,
    "confident, capped": lambda: confident(softcap=50.0),
    "saturated cap": lambda: make(scale=30.0, softcap=2.0),
    "offset 1e4": lambda: make(bias=torch.full((11,), 1e4, dtype=torch.float64)),
    "lse gradient alone": lambda: make(grad_loss=torch.tensor(0.0), grad_lse=torch.linspace(-1, 1, 6)),
    "weights": lambda: make(target_weight=torch.linspace(0, 3, 11)),
    "smoothing and weights": lambda: make(smoothing=0.3, target_weight=torch.linspace(0, 3, 11)),
    "fp32 extremes": lambda: make(dtype=torch.float32, scale=1e30),
    "fp32 subnormals": lambda: make(dtype=torch.float32, scale=1e-42),
    "fp64 overflow": lambda: make(2, 3, 2, dtype=torch.float64, scale=1e308),
    "fp64 underflow": lambda: make(dtype=torch.float64, scale=1e-320),
}


@pytest.mark.parametrize("case", CASES)
def test_double_is_within_its_bound_of_exact_in_the_corners(case: str) -> None:
    agree(CASES[case]())


@pytest.mark.parametrize("case", ["larger", "smoothing and weights", "saturated cap", "confident, capped"])
def test_the_bound_does_not_depend_on_chunks(case: str) -> None:
    problem = CASES[case]()
    value = double(problem, chunk=3)
    within(exact(problem), value, double_error(problem, value, chunk=2))


def test_the_bound_is_not_vacuous() -> None:
    """It is 2^-30 of |G||C| and of the loss, 2^-22 of what rounding once to bf16 costs."""
    problem = CASES["larger"]()
    value = double(problem, gradients=["d_embeddings"])
    error = double_error(problem, value)
    (part,) = residual_chunks(problem)
    assert value.d_classifier is None
    assert error.d_embeddings is not None
    assert bool((error.d_embeddings <= 2.0**-30 * part.residual.abs() @ problem.classifier.double().abs()).all())
    assert bool((error.loss <= 2.0**-30 * value.loss).all())


def test_residual_chunks_cover_the_vocabulary_in_the_order_asked_for() -> None:
    problem = make(softcap=3.0, grad_lse=torch.linspace(-1, 1, 6), targets=torch.tensor([0, 3, -100, 10, 5, 5]))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    parts = list(residual_chunks(problem, order=order, chunk=4))
    assert [len(part.columns) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat([part.columns for part in parts]), order)
    residual = torch.zeros(6, 11, dtype=torch.float64)
    residual[:, order] = torch.cat([part.residual for part in parts], dim=1)
    value = double(problem)
    within(
        exact(problem),
        replace(value, d_embeddings=residual @ problem.classifier.double()),
        double_error(problem, value),
    )
    forward = forward_double(problem)
    assert torch.equal(forward.loss, value.loss)
    assert torch.equal(forward.lse, value.lse)
    logits = torch.zeros(6, 11, dtype=torch.float64)
    logits[:, order] = torch.cat([part.logits for part in parts], dim=1)
    expected = torch.where(problem.valid, logits.amax(dim=1), 0.0)
    torch.testing.assert_close(forward.max_logit, expected, rtol=0, atol=0)


def test_exact_is_correctly_rounded_where_a_closed_form_is_known() -> None:
    mp = mpmath.MPContext()
    mp.prec = 300
    flat = exact(make(v=7, scale=0.0))
    assert set(flat.loss.tolist()) == set(flat.lse.tolist()) == {float(mp.log(7))}
    answer, settled = settle(confident())
    for i, gap in enumerate([45.0, 46.0, 60.0, 45.5, 100.0, 300.0]):
        rest = 5 * mp.exp(-mp.mpf(gap))
        assert answer.loss[i] == float(mp.log1p(rest))
        assert answer.d_embeddings is not None
        assert answer.d_embeddings[i, i] == float(-rest / (1 + rest) / 6)
    assert all(bool(getattr(settled, name).all()) for name in OUTPUTS if name != "d_bias")


def test_what_cannot_settle_is_zero_and_is_named() -> None:
    problem = make(reduction="sum")
    answer, settled = settle(replace(problem, classifier=problem.classifier[:1].expand(11, -1)))
    assert answer.d_embeddings is not None
    assert not bool(answer.d_embeddings.any())
    assert not bool(settled.d_embeddings.all())  # type: ignore[union-attr]
    assert bool(settled.loss.all())


INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize(
    ("bias", "loss", "lse", "poisoned"),
    [
        ([0.0, NAN, 0.0], NAN, NAN, True),
        ([-INF, -INF, -INF], NAN, -INF, True),
        ([0.0, INF, 0.0], INF, INF, True),
        ([0.0, INF, INF], INF, INF, True),
        ([INF, 0.0, 0.0], NAN, INF, True),
        ([INF, NAN, 0.0], NAN, NAN, True),
        ([-INF, 0.0, -INF], INF, 0.0, False),
        ([0.0, -INF, -INF], 0.0, 0.0, False),
    ],
)
def test_special_logits(bias: list[float], loss: float, lse: float, poisoned: bool, oracle: str) -> None:
    """Row 0 has target 0 and logits equal to the bias; row 1 is ignored, and NaN."""
    problem = Problem(
        embeddings=torch.tensor([[0.0, 0.0], [NAN, INF]]),
        classifier=torch.ones(3, 2),
        bias=torch.tensor(bias),
        targets=torch.tensor([0, -100]),
        reduction="none",
        grad_loss=torch.tensor([1.0, NAN]),
    )
    value = ORACLES[oracle](problem)
    expected = torch.tensor([loss, 0.0]), torch.tensor([lse, 0.0])
    for actual, wanted in zip((value.loss, value.lse), expected, strict=True):
        torch.testing.assert_close(actual, wanted.double(), rtol=0, atol=0, equal_nan=True)
    assert value.d_embeddings is not None
    assert value.d_classifier is not None
    assert value.d_bias is not None
    assert bool(value.d_embeddings[0].isnan().all()) == poisoned
    assert bool(value.d_bias.isnan().all()) == poisoned
    assert bool(value.d_classifier.isnan().all()) == poisoned
    assert not bool(value.d_embeddings[1].any())
    assert bool(value.d_embeddings.isfinite().any())
    agree(problem)


@pytest.mark.parametrize("oracle", ORACLES)
def test_masked_classes_and_zero_upstreams_contribute_exactly_nothing(oracle: str) -> None:
    bias = torch.zeros(11)
    bias[4] = -INF
    value = ORACLES[oracle](make(bias=bias, targets=torch.zeros(6).long(), reduction="none"))
    assert value.d_classifier is not None
    assert not bool(value.d_classifier[4].any())
    silent = ORACLES[oracle](make(reduction="none", grad_loss=torch.zeros(6)))
    for gradient in (silent.d_embeddings, silent.d_classifier):
        assert gradient is not None
        assert not bool(gradient.any())


@pytest.mark.parametrize("oracle", ORACLES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_rows_ignored(reduction: Reduction, oracle: str) -> None:
    problem = make(targets=torch.full((6,), -100), reduction=reduction, bias=torch.zeros(11), grad_lse=torch.ones(6))
    value = ORACLES[oracle](replace(problem, embeddings=problem.embeddings * NAN))
    assert not any(bool(getattr(value, name).any()) for name in OUTPUTS)


MUTANTS: dict[str, tuple[str, Callable[..., Any], Callable[[], Problem]]] = {
    "softmax - 1": (
        "others",
        lambda ctx, rows: 1 - ctx.exp(rows.target_logit - rows.maximum) / formula.total(ctx, rows),
        confident,
    ),
    "log, not log1p": ("log_total", lambda ctx, rows: torch.log(1 + rows.rest), confident),
    "lse - target logit": (
        "cross_entropy",
        lambda ctx, rows, smoothing, v: formula.lse(ctx, rows) - rows.target_logit,
        CASES["offset 1e4"],
    ),
    "1 - tanh^2": (
        "cap_derivative",
        lambda ctx, raw, softcap: 1 - ctx.tanh(raw / softcap) ** 2,
        CASES["saturated cap"],
    ),
    "no softcap derivative": ("cap_derivative", lambda ctx, raw, softcap: 1.0, CASES["saturated cap"]),
    "no lse gradient": (
        "residual",
        lambda ctx, s, o, t, d_loss, d_lse, eps, v: ctx.where(t, -o, s) * d_loss,
        CASES["lse gradient alone"],
    ),
    "no smoothing": (
        "residual",
        lambda ctx, s, o, t, d_loss, d_lse, eps, v: ctx.where(t, -o, s) * d_loss + s * d_lse,
        CASES["smoothing and weights"],
    ),
    "2^-40 too large": ("total", lambda ctx, rows: (1 + rows.rest) * (1 + 2.0**-40), CASES["larger"]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_formula_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, wrong, case = MUTANTS[mutant]
    problem = case()
    truth, right = exact(problem), double(problem)
    error = double_error(problem, right)
    within(truth, right, error)
    monkeypatch.setattr(formula, name, wrong)
    with pytest.raises(AssertionError):
        within(truth, double(problem), error)
