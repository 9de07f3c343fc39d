"""Products that claim to be exact are, and the others stay within their bounds."""

from __future__ import annotations

import math
from fractions import Fraction
from operator import mul

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ccelab.reference.products import (
    Fixed,
    RowScale,
    lsb_exponent,
    nearest_double,
    nonfinite_product,
    product_error,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def normal(seed: int, *shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).double()


def fractions_of(fixed: Fixed) -> list[list[Fraction]]:
    return [[Fraction(int(x)) * Fraction(2) ** fixed.exponent for x in row] for row in fixed.units]


def true_product(a: Tensor, b: Tensor) -> list[list[Fraction]]:
    """``a @ b.T``."""
    return [[sum(map(mul, map(Fraction, r), map(Fraction, s)), Fraction()) for s in b.tolist()] for r in a.tolist()]


@given(FINITE)
def test_the_lowest_bit_divides_and_is_the_lowest(x: float) -> None:
    lsb = int(lsb_exponent(torch.tensor([x], dtype=torch.float64)))
    quotient = Fraction(x) / Fraction(2) ** min(lsb, 1024)
    assert x == 0 or (quotient.denominator == 1 and quotient.numerator % 2 == 1)


@given(st.integers(-(2**120), 2**120), st.integers(-1250, 1100))
def test_nearest_double_rounds_correctly(units: int, exponent: int) -> None:
    exact = Fraction(units) * Fraction(2) ** exponent
    try:
        expected = float(exact)
    except OverflowError:
        expected = math.copysign(math.inf, units)
    assert nearest_double(units, exponent) == expected


def test_nearest_double_at_the_edges() -> None:
    assert nearest_double(1, -1075) == 0.0  # half-way between 0 and the smallest subnormal: to even
    assert nearest_double(3, -1076) == 2.0**-1074
    assert nearest_double(2**54 - 1, 970) == math.inf
    assert nearest_double(2**53 - 1, 971) == float(np.finfo(np.float64).max)


@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=2, max_size=4))
def test_integers_hold_matrices_and_their_products_exactly(rows: list[list[float]]) -> None:
    x = torch.tensor(rows, dtype=torch.float64)
    fixed = Fixed.of(x)
    assert fractions_of(fixed) == [[Fraction(v) for v in row] for row in rows]
    assert fractions_of(fixed @ fixed.transposed) == true_product(x, x)
    assert fractions_of(fixed + abs(fixed)) == [[Fraction(v) + abs(Fraction(v)) for v in row] for row in rows]
    assert all(abs(v) < Fraction(2) ** fixed.bits or v == 0 for row in fractions_of(fixed) for v in row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from([1, 8, 40]))
def test_float64_products_keep_their_bound(dtype: torch.dtype, seed: int, bits: int) -> None:
    """The bound is 0 exactly where a certificate says that the product is exact; exponents spread over `bits`."""
    a, b, bias = (normal(seed + k, *shape, dtype=dtype) for k, shape in enumerate([(4, 17), (5, 17), (5,)]))
    a = (a * torch.exp2(torch.arange(17) * bits / 17).floor()).to(dtype).double().nan_to_num(posinf=0.0, neginf=0.0)
    bound = product_error(RowScale.of(a)[:, None], RowScale.of(b)[None, :], 17, bias)
    computed = (a @ b.T + bias).tolist()
    for i, row in enumerate(true_product(a, b)):
        for v, exact in enumerate(row):
            assert abs(Fraction(computed[i][v]) - exact - Fraction(float(bias[v]))) <= Fraction(float(bound[i, v]))


@pytest.mark.parametrize(
    ("dtype", "certified"), [(torch.bfloat16, True), (torch.float32, False), (torch.float64, False)], ids=str
)
def test_the_certificate_covers_ordinary_bf16_data_and_nothing_that_rounds(dtype: torch.dtype, certified: bool) -> None:
    a, b = normal(0, 32, 256, dtype=dtype), normal(1, 64, 256, dtype=dtype)
    bound = product_error(RowScale.of(a)[:, None], RowScale.of(b)[None, :], 256)
    assert bool((bound == 0).all() if certified else (bound > 0).all())


@given(
    st.lists(st.sampled_from([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan]), min_size=12, max_size=12),
    st.lists(st.sampled_from([0.0, 1.0, -2.5, math.inf, -math.inf, math.nan]), min_size=12, max_size=12),
)
def test_non_finite_products_are_those_of_ieee_arithmetic(left: list[float], right: list[float]) -> None:
    a, b = np.array(left).reshape(3, 4), np.array(right).reshape(4, 3)
    with np.errstate(invalid="ignore"):
        expected = np.array([[sum(a[i, k] * b[k, j] for k in range(4)) for j in range(3)] for i in range(3)])
    actual = nonfinite_product(a, b)
    special = ~np.isfinite(expected)
    np.testing.assert_array_equal(actual[special], expected[special])
    assert np.isfinite(actual[~special]).all()
