"""What budgets take for known: half a unit in the last place, monotone roundings, numpy's sums and functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.precision import single_stages as stages
from ccelab.precision.arithmetic import LOG2_E_ERROR, Interpreter
from ccelab.precision.enclosure import Enclosure
from ccelab.precision.formats import FP32, Format, U
from ccelab.properties.cases import DTYPES

interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="what the interpreter computes")
ARITHMETIC = Interpreter()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_a_unit_in_the_last_place(dtype: torch.dtype) -> None:
    """Reached within a binade, and never exceeded; a power of two begins the next one."""
    fmt = Format.of(dtype)
    x = (normal(2**16).exp() * torch.exp2(normal(2**16).round())).float().double()
    share = (x.to(dtype).double() - x).abs() / fmt.half_ulp(x.abs())
    assert float(share.max()) <= 1
    assert dtype == torch.float32 or float(share.max()) > 0.99
    sizes = torch.tensor([1.0, 1.999, 2.0, 0.0, torch.inf]).double()
    assert fmt.half_ulp(sizes).tolist() == [fmt.u, fmt.u, 2 * fmt.u, 0.0, torch.inf]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rounded_enclosure_holds_what_is_rounded(dtype: torch.dtype) -> None:
    x, away = normal(2**16), (normal(2**16) / 512).tanh() / 64
    low, high = Enclosure.around(x, away.abs()).rounded(dtype)
    rounded = (x + away).float().to(dtype).double()
    assert bool(((low <= rounded) & (rounded <= high)).all())
    known = Enclosure.around(x.float().to(dtype).double(), 2.0**-60).rounded(dtype)
    assert torch.equal(known.low, known.high)


@interpreted
def test_products_are_known_to_the_last_bit() -> None:
    e, c = normal(16, 48).float(), normal(32, 48).float()
    computed = ARITHMETIC.logits(e.double(), c.double(), 16, FP32).computed
    assert computed is not None
    z = torch.zeros(16, 32)
    for d in range(0, 48, 16):
        z = stages.dot(e[:, d : d + 16].contiguous(), c[:, d : d + 16].T.contiguous(), z)
    assert bool(((computed.low <= z.double()) & (z.double() <= computed.high)).all())
    assert float((computed.low == computed.high).double().mean()) > 0.999


@interpreted
@pytest.mark.parametrize(
    ("width", "segment"), [(16, 16), (32, 16), (64, 16), (128, 64), (256, 128), (256, 16), (512, 512)]
)
def test_sums_of_a_tile(width: int, segment: int) -> None:
    terms = torch.exp(3 * normal(512, width)).float().numpy()
    exact = torch.from_numpy(terms).double()
    parts = np.sum(terms.reshape(512, -1, segment), axis=2)
    error = torch.from_numpy(np.sum(parts, axis=1)).double() - exact.sum(1)
    share = error.abs() / ARITHMETIC.tile_sum(exact, torch.full((512, 1), 2.0**-16).double(), segment).largest[:, 0]
    assert 0.1 < float(share.max()) <= 1
    signed = normal(96, width).float()
    total = np.zeros(width, np.float32)
    for rows in signed.split(32):
        total = total + np.sum(rows.numpy(), axis=0)
    error = torch.from_numpy(total).double() - signed.double().sum(0)
    share = error.abs() / ARITHMETIC.column_sum(signed.double(), torch.zeros(96, width).double(), 32).largest
    assert float(share.max()) <= 1


@interpreted
def test_functions_of_the_machine_at_hand() -> None:
    """exp and log over 2^20 arguments each; all of them take a minute, and gave what `Interpreter` says."""
    x = torch.linspace(0, 87, 2**20).exp2().log2()
    exact = torch.exp(-x.double() + ARITHMETIC.skew(x.double()))
    error = (stages.exponential(-x).double() - exact).abs() / exact
    assert bool((error <= ARITHMETIC.exponential(x.double(), 0 * x.double()).largest).all())
    s = torch.cat(
        [1 + torch.rand(2**19, generator=torch.Generator().manual_seed(0)) * 3, torch.logspace(0.6, 6, 2**19)]
    )
    log_s = s.double().log()
    assert bool(((stages.logarithm(s).double() - log_s).abs() <= ARITHMETIC.logarithm(log_s).largest).all())


def test_log2_e_in_fp32() -> None:
    assert float(np.float32(1.4426950408889634)) * np.log(2) - 1 == pytest.approx(LOG2_E_ERROR * U, rel=1e-6)
