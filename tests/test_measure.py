"""Measurements against hand-made errors, and the floors against what they are made of."""

from __future__ import annotations

import math

import pytest
import torch

from ccelab.precision import measure as module
from ccelab.precision.floors import floors
from ccelab.precision.measure import measure
from ccelab.properties.cases import DEVICE, draw
from ccelab.reference import double


def test_every_figure_of_a_known_error() -> None:
    want = torch.tensor([[3.0, -4.0], [0.0, 12.0]], dtype=torch.float64)
    got = torch.tensor([[3.0, -4.5], [0.0, 12.0]]).bfloat16()
    m = measure("d_embeddings", got, want, torch.full((2, 2), 2.0, dtype=torch.float64))
    assert m.normwise == 0.5 / 13
    assert m.rms == 0.25
    assert m.largest == 0.5
    assert m.signed_bias == 0.5 / 19  # too large in size
    assert (m.worst_row, m.worst_row_error) == (0, 0.1)
    assert m.over_budget == 0.25
    assert m.over_budget_quantiles == {"0.5": 0.0, "0.99": 0.25, "0.999": 0.25}
    assert m.nonfinite_mismatches == 0
    worst = m.worst_element
    assert (worst.place, worst.got, worst.want) == ([0, 1], -4.5, -4.0)
    assert worst.got_hex == "0xc090"
    assert float.fromhex(worst.want_hex) == -4.0
    assert worst.ulps == 0.5 / 2**-5  # bf16 has 8 digits: between 4 and 8 its numbers are 2^-5 apart


def test_the_worst_element_is_the_one_nearest_to_its_bound() -> None:
    want, got = torch.zeros(3, dtype=torch.float64), torch.tensor([0.5, 0.1, 0.0])
    assert measure("loss", got, want).worst_element.place == [0]
    assert measure("loss", got, want, torch.tensor([1.0, 0.1, 0.0]).double()).worst_element.place == [1]


def test_a_bound_of_zero_admits_zero_alone() -> None:
    want, bound = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert measure("loss", torch.zeros(2), want, bound).over_budget == 0
    assert measure("loss", torch.tensor([0.0, 2.0**-140]), want, bound).over_budget == math.inf


@pytest.mark.parametrize(
    ("got", "want", "mismatches"),
    [
        (math.nan, math.nan, 0),
        (math.inf, math.inf, 0),
        (math.inf, -math.inf, 1),
        (math.nan, 1.0, 1),
        (1.0, math.nan, 1),
        (math.inf, math.nan, 1),
    ],
)
def test_what_is_not_finite_must_match(got: float, want: float, mismatches: int) -> None:
    m = measure("loss", torch.tensor([got, 1.0]), torch.tensor([want, 1.0], dtype=torch.float64))
    assert m.nonfinite_mismatches == mismatches
    assert m.normwise == 0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    want = torch.randn(37, 5, generator=g, dtype=torch.float64)
    got, bound = want.float().bfloat16(), want.abs() * 2**-8
    whole = measure("d_classifier", got, want, bound)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 20)
    pieces = measure("d_classifier", got, want, bound)
    assert pieces.worst_element == whole.worst_element
    assert pieces.normwise == pytest.approx(whole.normwise, rel=1e-12)
    assert (pieces.worst_row, pieces.over_budget) == (whole.worst_row, whole.over_budget)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="loss has shape"):
        measure("loss", torch.zeros(2), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_floors_are_what_they_say(dtype: torch.dtype) -> None:
    """One rounding: the exact gradient cast. Two: the residual cast at the scale of its row before."""
    case = draw((37,), 75, 40, dtype, ignored=0)
    problem = case.problem()
    truth = double(problem)
    assert truth.d_embeddings is not None
    floor = floors(problem, truth)["d_embeddings"]
    want = truth.d_embeddings
    once = (want.to(dtype).double() - want).norm() / want.norm()
    assert floor.one_rounding == pytest.approx(float(once), rel=1e-9)
    logits = problem.embeddings.double() @ problem.classifier.double().T
    residual = torch.softmax(logits, 1) - torch.nn.functional.one_hot(problem.targets.long(), 75).to(DEVICE)
    upstream = problem.row_weights() * problem.upstream()[0]
    scale = 2.0 ** torch.floor(torch.log2(upstream.abs()))[:, None]
    rounded = (residual * upstream[:, None] / scale).to(dtype).double() * scale
    twice = ((rounded @ problem.classifier.double()).to(dtype).double() - want).norm() / want.norm()
    assert floor.two_roundings == pytest.approx(float(twice), rel=1e-6)
    assert floor.two_roundings > floor.one_rounding
