"""The laboratory's own speed, by pytest-benchmark: `pytest tests/test_benchmarks.py`. Times are watched, not judged.

Where xdist shares tests out, as in `make test`, each piece runs once and no clock is read.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from pytest_benchmark.fixture import BenchmarkFixture

from ccelab.kernels import PRESETS, Schedule, Variant, default_schedule, linear_cross_entropy
from ccelab.precision.arithmetic import own
from ccelab.precision.attribution import attribute
from ccelab.precision.budget import budget
from ccelab.precision.call import run
from ccelab.precision.contestant import leaves_of
from ccelab.precision.emulation import own_machine
from ccelab.precision.floors import floors
from ccelab.precision.html.page import render
from ccelab.precision.markdown import BASELINES
from ccelab.precision.report import Report
from ccelab.properties.cases import DEVICE
from ccelab.properties.spec import Spec
from ccelab.properties.strategies import specs
from ccelab.reference import Problem, Solution, double, exact
from ccelab.reference.heads import resolve

VARIANT = Variant.parse("cce-kahan")


def pedantic(benchmark: BenchmarkFixture, *args: Any, **options: int) -> Any:
    """A set number of rounds, where the plugin's own choice would take long."""
    return benchmark.pedantic(*args, **options)  # type: ignore[no-untyped-call]


def problem_of(n: int, v: int, d: int, head: str = "gaussian") -> Problem:
    found = resolve(head, tokens=n, vocabulary=v, hidden=d, device=DEVICE)
    return Problem(embeddings=found.embeddings, classifier=found.classifier, targets=found.targets)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return problem_of(32, 512, 64)


@pytest.fixture(scope="module")
def truth(problem: Problem) -> Solution:
    return double(problem)


@pytest.fixture(scope="module")
def schedule(problem: Problem) -> Schedule:
    n, _, d = problem.shape
    return default_schedule(problem.embeddings.dtype, n, d)


def test_oracle_double(benchmark: BenchmarkFixture) -> None:
    found: Solution = benchmark(double, problem_of(256, 4096, 64))
    assert found.loss.isfinite().all()


def test_oracle_exact(benchmark: BenchmarkFixture) -> None:
    found: Solution = benchmark(exact, problem_of(2, 8, 4).to("cpu"))
    assert found.loss.isfinite().all()


def test_rounding_floors(benchmark: BenchmarkFixture, problem: Problem, truth: Solution) -> None:
    assert benchmark(floors, problem, truth)["d_embeddings"].two_roundings > 0


def test_error_budget(benchmark: BenchmarkFixture, problem: Problem, schedule: Schedule) -> None:
    found = benchmark(budget, problem, VARIANT, schedule, arithmetic=own(), by_stage=True)
    assert found.bound.loss.isfinite().all()


def test_emulation_and_attribution(
    benchmark: BenchmarkFixture, problem: Problem, truth: Solution, schedule: Schedule
) -> None:
    got, stats = run(problem, VARIANT, schedule)
    found = pedantic(benchmark, attribute, (problem, truth, got, VARIANT, schedule, own_machine(), stats), rounds=3)
    assert {"d_embeddings", "d_classifier"} <= found.keys()


def test_draws_of_the_strategies(benchmark: BenchmarkFixture) -> None:
    """25 specs, as many as the `quick` profile draws for a law."""
    drawn: list[Spec] = []

    @settings(max_examples=25, database=None, deadline=None, phases=[Phase.generate], derandomize=True)
    @given(specs())
    def draw(spec: Spec) -> None:
        drawn.append(spec)

    state = random.getstate()
    pedantic(benchmark, draw, rounds=3)
    random.setstate(state)
    assert len(drawn) >= 25


def test_page_of_a_report(benchmark: BenchmarkFixture) -> None:
    report = Report.read(BASELINES / "smollm2-bfloat16.json")
    text: str = pedantic(benchmark, render, (report,), rounds=2)
    assert text.startswith("<!doctype html>")


def test_reading_a_report(benchmark: BenchmarkFixture) -> None:
    path: Path = BASELINES / "smollm2-bfloat16.json"
    assert benchmark(Report.read, path).results


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["forward", "forward and backward"])
@pytest.mark.parametrize("preset", PRESETS)
def test_preset(benchmark: BenchmarkFixture, preset: str, what: str) -> None:
    """A head of SmolLM2's shape; the answer is looked at before it is timed."""
    drawn = problem_of(4096, 49152, 576, "planted:smollm2-alpaca")
    leaves = leaves_of(drawn)

    def call() -> tuple[torch.Tensor, ...]:
        loss = linear_cross_entropy(*leaves, drawn.targets, variant=preset)
        made = (loss,) if what == "forward" else (loss, *torch.autograd.grad(loss, leaves))
        torch.cuda.synchronize()
        return made

    assert all(bool(x.isfinite().all()) and bool(x.any()) for x in call())
    pedantic(benchmark, call, rounds=9, warmup_rounds=2)
