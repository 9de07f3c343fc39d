"""What is taken for random is: roundings, functions, sums. What is not is systematic, and likely bounds add up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.precision import single_stages as stages
from ccelab.precision.arithmetic import Interpreter
from ccelab.precision.coincidences import coincidences
from ccelab.precision.formats import FP32
from ccelab.precision.random_error import FAILURE, RandomError, likely

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="what the interpreter computes")
ARITHMETIC = Interpreter()
GENERATOR_SEED = 0
WINDOW = 2**13  # arguments in a row over which an error is taken for systematic
SAMPLING = 1.1  # a variance of WINDOW numbers is known to a percent or two; that of the worst of 256 windows, to this


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(GENERATOR_SEED), dtype=torch.float64)


def proxy(x: Tensor) -> Tensor:
    """Of each row: the least s with mean exp(t x) <= exp(t^2 s / 2) for t up to 3 over the largest x."""
    scale = x.abs().amax(1, keepdim=True)
    t = torch.tensor([sign * k / 5 for k in range(1, 16) for sign in (1, -1)], dtype=torch.float64)
    moments = torch.stack([(torch.exp(k * x / scale)).mean(1) for k in t.tolist()], 1)
    return (2 * moments.log() / t.square()).amax(1) * scale[:, 0].square()


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 24])
def test_the_proxy_of_a_rounding(bits: int) -> None:
    """Of numbers with that many more bits than they are rounded to, all equally likely, ties either way."""
    discarded = torch.arange(2 ** min(bits, 12), dtype=torch.float64) / 2 ** min(bits, 12)
    error = torch.where(discarded < 0.5, discarded, discarded - 1)
    error = torch.cat([error, torch.where(discarded == 0.5, 0.5, error)])[None]
    of_model = RandomError.rounding(torch.tensor([0.5]).double(), last=2.0 ** -(bits + 1)).proxy
    assert float(error.square().mean()) <= float(of_model) * (1 + 1 / WINDOW)
    assert float(proxy(error)) <= float(of_model) * (1 + 1 / WINDOW)
    assert float(of_model) <= float(RandomError.rounding(torch.tensor([0.5]).double()).proxy)


@interpreted
def test_functions_err_at_random_but_for_what_is_said() -> None:
    """Over windows of the arguments: the mean is systematic, and what is left of the variance proxy is random."""
    places = torch.arange(WINDOW)[None] / WINDOW
    x = ((torch.linspace(0.01, 40, 256)[:, None] + places / 64).float()).contiguous()
    exact = torch.exp(-x.double() + ARITHMETIC.skew(x.double()))
    relative = stages.exponential(-x).double() / exact - 1
    said = ARITHMETIC.exponential(x.double(), 0 * x.double())
    beyond = (relative.mean(1).abs() - said.systematic.amax(1)).clamp(min=0)
    assert float(beyond.max()) == 0
    # Where the mean is not all that is systematic, the rest of that may move too: it is within `systematic` yet.
    left = (said.systematic.amax(1) - relative.mean(1).abs()).square()
    assert bool((proxy(relative - relative.mean(1, keepdim=True)) <= SAMPLING * said.proxy.amax(1) + left).all())
    s = (torch.logspace(0.31, 5.4, 256)[:, None] * (1 + places / 64)).float().contiguous()
    log_s = s.double().log()
    error, said = stages.logarithm(s).double() - log_s, ARITHMETIC.logarithm(log_s)
    assert bool((error.mean(1).abs() <= said.systematic.amax(1)).all())
    assert bool((proxy(error - error.mean(1, keepdim=True)) <= SAMPLING * said.proxy.amax(1)).all())


@interpreted
@pytest.mark.parametrize("kind", ["spread", "lost"])
def test_sums_err_at_random_unless_addends_are_lost(kind: str) -> None:
    """Sums of 64 terms, 4096 times: the mean square is within the proxy; addends far below the sum are systematic."""
    terms = torch.exp(uniform(4096, 64) * 4 - 4) if kind == "spread" else uniform(4096, 64) * 2.0**-32
    terms[:, 0] = 1.0
    terms = terms.float().double()
    exact = terms.sum(1)
    error = torch.from_numpy(terms.float().numpy().sum(1)).double() - exact
    said = ARITHMETIC.tile_sum(terms, torch.full((4096, 1), 2.0**-16).double(), 64)
    assert float(error.square().mean()) <= float((said.proxy + said.systematic.square()).mean())
    assert bool((error.abs() <= likely(said, 4096, 1.0)[:, 0]).all())
    if kind == "lost":
        assert float(error.max()) < 0
        assert float(said.systematic.mean()) > float(said.proxy.mean().sqrt())


def test_a_lost_addend_is_no_more_than_itself() -> None:
    half = FP32.half_ulp(torch.tensor([1.0]).double())
    lost = RandomError.addition(half, half / 8)
    assert lost.largest.item() == lost.systematic.item() == half.item() / 8
    assert RandomError.addition(half, 64 * half).systematic.item() == 0


def test_ties_are_counted() -> None:
    x = torch.tensor([[-1.0, -1.0, -1.0 - 2.0**-23, -2.0, -torch.inf, -torch.inf]]).double()
    assert coincidences(x)[0].tolist() == [3, 3, 3, 1, 1, 1]
    assert coincidences(x, 2)[0, 0] == 6


def test_likely_bounds() -> None:
    """Never above the largest; of n roundings alike they grow as the root of n; a sum that coincides gains nothing."""
    half = torch.ones(1, 4096).double()
    rounding = RandomError.rounding(half, last=0.0)
    total = rounding.sum(1)
    deviations = math.sqrt(2 * math.log(2 / FAILURE))
    assert likely(total, 1, 1.0).item() == pytest.approx(deviations * math.sqrt(4096 / 3))
    assert likely(rounding.coinciding(4096.0).sum(1), 1, 1.0).item() == 4096
    assert likely(RandomError.certain(half), 4096, 1.0).tolist() == half.tolist()
    failed = RandomError(half, torch.full_like(half, torch.nan), half)
    assert likely(failed, 1, 1.0).tolist() == half.tolist()
