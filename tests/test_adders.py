"""The block adders against the model once more, in whole numbers, and against what Fasi et al. found."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from ccelab.precision.emulation import HOPPER, dot
from ccelab.precision.emulation.adders import ADDERS, BlockAdder
from ccelab.precision.emulation.tensor_core import fma, gpu_log

U = 2.0**-24
DTYPES = (torch.bfloat16, torch.float16)
SMALLEST = {torch.bfloat16: -126, torch.float16: -14, torch.float32: -126}


def exponent(x: Fraction, dtype: torch.dtype) -> int:
    if x == 0:
        return -126
    size, e = abs(x), 0
    while size >= 2:
        size, e = size / 2, e + 1
    while size < 1:
        size, e = size * 2, e - 1
    return max(e, SMALLEST[dtype])


def toward_zero(x: Fraction, unit: Fraction) -> Fraction:
    """x cut to a multiple of `unit`."""
    return (1 if x >= 0 else -1) * (abs(x) // unit) * unit


def step(a: list[Fraction], b: list[Fraction], acc: Fraction, bits: int, dtype: torch.dtype) -> Fraction:
    addends = [(acc, exponent(acc, torch.float32))]
    addends += [(x * y, exponent(x, dtype) + exponent(y, dtype)) for x, y in zip(a, b, strict=True)]
    addends = [(x, e) for x, e in addends if x]  # a zero has no exponent
    unit = Fraction(2) ** (max((e for _, e in addends), default=0) - bits)
    total = sum((toward_zero(x, unit) for x, _ in addends), Fraction(0))
    return toward_zero(total, Fraction(2) ** (exponent(total, torch.float32) - 23))


def exactly(adder: BlockAdder, a: Tensor, b: Tensor, acc: float = 0.0) -> float:
    """The dot product of two vectors, in Fractions."""
    x, y = ([Fraction(float(v)) for v in t] for t in (a, b))
    total = Fraction(acc)
    for k in range(0, len(x), adder.terms):
        total = step(x[k : k + adder.terms], y[k : k + adder.terms], total, adder.bits, a.dtype)
    return float(total)


def adder(name: str) -> BlockAdder:
    found = ADDERS[name]
    assert isinstance(found, BlockAdder)
    return found


def random_vectors(dtype: torch.dtype, n: int, d: int, kind: str, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, generator=g, dtype=torch.float64) for _ in range(2))
    if kind == "positive":
        a, b = a.abs(), b.abs()
    if kind == "spread":  # exponents all over the format, subnormal numbers and zeros among them
        low, high = (-138, 50) if dtype == torch.bfloat16 else (-26, 14)
        a, b = (x * 2.0 ** torch.randint(low, high, x.shape, generator=g) for x in (a, b))
        a = torch.where(torch.rand(a.shape, generator=g) < 0.1, 0.0, a)
    if kind == "cancelling":
        half = a[:, : d // 2]
        a = torch.cat([half, -half, a[:, 2 * (d // 2) :]], 1)
        b = torch.cat([b[:, : d // 2], b[:, : d // 2] * (1 + 2.0**-6), b[:, 2 * (d // 2) :]], 1)
    if kind == "tiny":
        a, b = a * 2.0**-70, b * 2.0**-70
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize("name", ["hopper", "ampere"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "positive", "spread", "cancelling", "tiny"])
def test_a_block_adder_is_the_model_in_whole_numbers(name: str, dtype: torch.dtype, kind: str) -> None:
    for seed, d in enumerate((1, 7, 16, 40)):
        a, b = random_vectors(dtype, 6, d, kind, seed)
        got = dot(name, a[:, None, :], b[:, :, None])[:, 0, 0]
        want = [exactly(adder(name), x, y) for x, y in zip(a, b, strict=True)]
        assert [x.hex() for x in got.double().tolist()] == [(x + 0.0).hex() for x in want]


def one(name: str, a: list[float], b: list[float], acc: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> float:
    """One chain over the vectors, beginning at `acc`."""
    x, y = torch.tensor([a], dtype=dtype), torch.tensor([b], dtype=dtype)[0][:, None]
    return float(adder(name).dot(x, y, torch.tensor([[acc]]), dtype))


@pytest.mark.parametrize(("name", "bits"), [("hopper", 25), ("ampere", 24)])
def test_bits_below_the_largest_exponent_are_dropped_not_rounded(name: str, bits: int) -> None:
    last, below = 2.0**-bits, 2.0 ** -(bits + 1)
    # 1 - last cannot be told from 1 - 2 last in fp32, where the last of 24 digits of a number below 1 is 2^-24
    assert one(name, [1.0, -last], [1.0, 1.0]) == 1 - max(last, U)
    assert one(name, [1.0, -below], [1.0, 1.0]) == 1.0
    assert one(name, [1.0, 1.75 * below], [1.0, 1.0]) == 1.0
    assert one(name, [1.0, *([1.75 * below] * 4)], [1.0] * 5) == 1.0  # each alone, though their sum would count


def test_carry_digits_are_kept() -> None:
    # Sixteen products of nearly 4 sum to 64 - 2^-1: more than the digits left of the point of any one of them.
    assert one("hopper", [1.9921875] * 16, [1.9921875] * 16) == 16 * 1.9921875**2
    assert one("hopper", [1.0] * 16, [1.0] * 16, acc=2.0**24) == 2.0**24 + 16


def test_the_sum_is_truncated_towards_zero() -> None:
    assert one("hopper", [1.5], [2.0**-24], acc=1.0) == 1.0
    assert one("hopper", [-1.5], [2.0**-24], acc=-1.0) == -1.0
    assert one("hopper", [1.0] * 3, [2.0**-24] * 3, acc=1.0) == 1.0 + 2.0**-23  # 3/2 of the last digit


def test_adding_is_not_monotone() -> None:
    """Fasi et al.: a larger addend may give a smaller sum, since it moves the others' last digits out of reach."""
    small = [1.75 * 2.0**-26] * 15
    assert one("hopper", small, [1.0] * 15, acc=1.0 - U) == 1.0 + 2 * U
    assert one("hopper", small, [1.0] * 15, acc=1.0) == 1.0


def test_subnormal_numbers_are_not_flushed() -> None:
    smallest = 2.0**-133  # of bf16
    assert one("hopper", [smallest], [1.0]) == smallest
    assert one("hopper", [2.0**-24], [2.0**-24], dtype=torch.float16) == 2.0**-48
    assert one("hopper", [2.0**-100], [2.0**-49]) == 2.0**-149
    assert one("hopper", [2.0**-100], [1.75 * 2.0**-50]) == 0.0


def test_infinity_and_nan_pass_through() -> None:
    inf = float("inf")
    assert one("hopper", [inf, 1.0], [1.0, 1.0]) == inf
    assert one("hopper", [1.0], [1.0], acc=-inf) == -inf
    assert one("hopper", [inf, inf], [1.0, -1.0]) != one("hopper", [inf, inf], [1.0, -1.0])
    assert one("hopper", [2.0**100], [2.0**100]) == inf


def test_positive_terms_lose_what_the_notes_of_the_model_say() -> None:
    """Truncation is one-signed: -107 u of the sum at D = 2304. Rounding to nearest has no bias."""
    a, b = random_vectors(torch.bfloat16, 192, 2304, "positive", 0)
    truth = (a.double() * b.double()).sum(1)

    def error(name: str) -> Tensor:
        return (dot(name, a[:, None, :], b[:, :, None])[:, 0, 0].double() - truth) / truth / U

    assert -115 < float(error("hopper").mean()) < -99
    assert float(error("ampere").mean()) < 2 * float(error("hopper").mean())
    assert abs(float(error("nearest").mean())) < 5


def test_unknown_adders_and_other_dtypes_are_refused() -> None:
    x = torch.ones(1, 1)
    with pytest.raises(ValueError, match="no adder 'volta'"):
        dot("volta", x.bfloat16(), x.bfloat16())
    with pytest.raises(TypeError, match="float16"):
        dot("hopper", x, x)


def test_an_fma_rounds_once() -> None:
    """Also where a sum in float64 would end halfway between two fp32 numbers."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4000, generator=g) for _ in range(2))
    c = torch.randn(4000, generator=g) * 2.0 ** torch.randint(-60, 40, (4000,), generator=g)
    a[0], b[0], c[0] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60  # a b ends in a tie, which c breaks
    for x, y, z, found in zip(*(t.tolist() for t in (a, b, c, fma(a, b, c))), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        ulp = Fraction(2) ** (exponent(exact, torch.float32) - 23)
        assert abs(Fraction(found) - exact) <= ulp / 2
    assert float(fma(a[:1], b[:1], c[:1])) == 1 + 2.0**-11 + 2.0**-23


def test_the_log_of_a_gpu_is_within_an_ulp() -> None:
    x = torch.cat([torch.linspace(1, 3, 20001), 2.0 ** torch.linspace(-140, 127, 20001)])
    got, want = gpu_log(x).double(), torch.log(x.double())
    ulp = 2.0 ** (torch.frexp(want).exponent - 24).double()
    assert float(((got - want).abs() / ulp).max()) < 1
    assert gpu_log(torch.tensor([1.0, 0.0, torch.inf])).tolist() == [0.0, -torch.inf, torch.inf]
    assert bool(gpu_log(torch.tensor([-1.0, torch.nan])).isnan().all())


def test_sums_of_a_tile_lose_little_whatever_their_order() -> None:
    x = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(HOPPER.sum_columns(x.unflatten(1, (2, 128)), 128), x.sum(1), atol=1e-4)
    assert torch.allclose(HOPPER.sum_columns(x[:64, None], 64), x[:64].sum(1), atol=1e-4)
    assert torch.allclose(HOPPER.sum_lanes(x), x.sum(1), atol=1e-4)
    assert torch.allclose(HOPPER.sum_rows(x), x.sum(0), atol=1e-4)
    assert torch.equal(HOPPER.sum_rows(torch.arange(128.0)[:, None].expand(128, 16)), torch.full((16,), 8128.0))
