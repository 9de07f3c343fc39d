"""bf16 that is bf16, in the interpreter as on the GPU: every cast and sum of the kernels against exact references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ccelab.kernels import scales
from ccelab.kernels.launch import vector
from ccelab.precision import single_stages as stages
from ccelab.precision.arithmetic import ANY
from ccelab.precision.formats import Format, U
from ccelab.precision.stages import EXP_UNDERFLOW, SOFTCAP_ROUNDINGS, soft_cap
from ccelab.properties.cases import DEVICE, DTYPES

Array = np.ndarray[Any, Any]
HALVES = (torch.bfloat16, torch.float16)
PATTERNS = torch.arange(2**16, dtype=torch.int32)
LEAST_EXPONENT = {torch.bfloat16: -126, torch.float16: -14}


def values(dtype: torch.dtype) -> Tensor:
    """Every bit pattern of a 16-bit format."""
    return PATTERNS.to(torch.uint16).view(dtype).to(DEVICE)


def bits(x: Tensor) -> Tensor:
    return x.cpu().view(torch.int32 if x.element_size() == 4 else torch.int16)


def powers(exponents: Tensor) -> Tensor:
    """2^exponents in float64."""
    return torch.ldexp(torch.ones(exponents.shape, dtype=torch.float64), exponents)


def nearest_even(x: Array, dtype: torch.dtype) -> Array:
    """float64 `x` rounded to the format by scaling and rint: no integer trick, so unlike what is tested."""
    fmt = Format.of(dtype)
    exponent = np.maximum(np.frexp(x)[1] - 1, LEAST_EXPONENT[dtype])
    unit = fmt.digits - 1 - exponent
    with np.errstate(invalid="ignore"):
        rounded = np.ldexp(np.rint(np.ldexp(x, unit)), -unit)
        return np.where(np.abs(rounded) > fmt.largest, np.copysign(np.inf, x), rounded)


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """(s, e) with s = fl64(a + b) and s + e = a + b: two pairs are equal exactly where the sums are."""
    s = a + b
    a_part = s - b
    return s, (a - a_part) + (b - (s - a_part))


def sum_to_odd(a: Array, b: Array) -> Array:
    """a + b in float64 rounded to odd: rounding that once more, to nearest in a shorter format, is exact."""
    s, e = exact_sum(a, b)
    even = (s.view(np.int64) & 1) == 0
    return np.where((e != 0) & even, np.nextafter(s, np.copysign(np.inf, e)), s)


def dense(dtype: torch.dtype) -> Tensor:
    """fp32: every value of the format, every tie between neighbours, one ulp beside both, overflow, inf and NaN."""
    if dtype == torch.bfloat16:
        low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
        return ((PATTERNS.long()[:, None] << 16) + low).to(torch.uint32).view(torch.float32).flatten()
    half = np.sort(np.arange(2**15, dtype=np.uint16).view(np.float16)[:0x7C00]).astype(np.float32)
    above = np.append(half[1:], np.float32(2**16))  # what would follow 65504: ties overflow from 65520 on
    points = np.concatenate([half, (half + above) / 2, np.array([2**17, 2**-25, 2**-149, np.inf, np.nan], np.float32)])
    points = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(np.inf))])
    return torch.from_numpy(np.concatenate([points, -points]))


def grid(dtype: torch.dtype, others: int) -> tuple[Tensor, Tensor]:
    """Every finite value of the format beside `others` of them, spread over all exponents and signs."""
    every = values(dtype)
    every = every[every.isfinite()]
    some = every[torch.linspace(0, len(every) - 1, others, dtype=torch.float64).long()]
    return every.repeat(others), some.repeat_interleave(len(every))


def test_every_bf16_pattern_is_upcast_by_a_shift() -> None:
    got = bits(stages.upcast(values(torch.bfloat16)))
    want = (PATTERNS.long() << 16).to(torch.uint32).view(torch.int32)
    # A GPU may quiet a signalling NaN, as its conversions do; the shift does not.
    nan = want.view(torch.float32).isnan()
    assert torch.equal(got[~nan], want[~nan])
    assert bool(got.view(torch.float32)[nan].isnan().all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_downcast_rounds_to_nearest_even(dtype: torch.dtype) -> None:
    x = dense(dtype)
    got = stages.downcast(x.to(DEVICE), dtype).cpu()
    nan = x.isnan()
    want = torch.from_numpy(nearest_even(x.double().numpy(), dtype))
    assert torch.equal(got.double()[~nan], want[~nan])
    assert torch.equal(got.signbit()[~nan], x.signbit()[~nan])
    assert torch.equal(bits(got)[~nan], bits(x.to(dtype))[~nan])  # a second reference
    assert bool(got[nan].isnan().all())
    if dtype == torch.bfloat16:
        assert bool((bits(got)[nan] == 0x7FFF).all())


def test_every_bf16_survives_a_round_trip() -> None:
    x = values(torch.bfloat16)
    numbers = ~x.isnan().cpu()
    assert torch.equal(bits(stages.downcast(stages.upcast(x), torch.bfloat16))[numbers], bits(x)[numbers])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_sum_is_rounded_correctly(dtype: torch.dtype) -> None:
    """Through fp32 and therefore rounded twice, yet as if once (Figueroa)."""
    a, b = grid(dtype, 16)
    got = stages.rounded_sum(a, b).cpu().double().numpy()
    want = nearest_even(sum_to_odd(a.cpu().double().numpy(), b.cpu().double().numpy()), dtype)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_two_sum_loses_nothing(dtype: torch.dtype) -> None:
    a, b = grid(dtype, 16)
    s, t = (x.cpu().double().numpy() for x in stages.two_sum(a, b))
    a64, b64 = a.cpu().double().numpy(), b.cpu().double().numpy()
    finite = np.isfinite(s)
    assert np.array_equal(s, nearest_even(sum_to_odd(a64, b64), dtype))
    for got, want in zip(exact_sum(s[finite], t[finite]), exact_sum(a64[finite], b64[finite]), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("k", [16, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dot_is_exact_on_integers(dtype: torch.dtype, k: int) -> None:
    """Products up to 64 and sums up to 2^13: every intermediate is an integer that fp32 holds."""
    g = torch.Generator().manual_seed(k)
    a, b, acc = (torch.randint(-8, 9, shape, generator=g) for shape in ((16, k), (k, 32), (16, 32)))
    got = stages.dot(a.to(DEVICE, dtype), b.to(DEVICE, dtype), acc.to(DEVICE, torch.float32))
    assert torch.equal(got.cpu().long(), acc + a @ b)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_dot_multiplies_halves_exactly(dtype: torch.dtype) -> None:
    """One product per sum, of full significands: 2p bits fit fp32."""
    g = torch.Generator().manual_seed(0)
    a = torch.zeros(16, 16)
    a.diagonal().copy_(torch.randn(16, generator=g))
    b = torch.randn(16, 32, generator=g)
    a, b = a.to(DEVICE, dtype), b.to(DEVICE, dtype)
    got = stages.dot(a, b, torch.zeros(16, 32, device=DEVICE))
    assert torch.equal(got.double(), a.diagonal().double()[:, None] * b.double())


def test_power_of_two() -> None:
    x = torch.cat([PATTERNS[:0x7F80].long() << 16, (PATTERNS[:0x7F80].long() << 16) + 0xFFFF])
    x = x.to(torch.int32).view(torch.float32)
    power, inverse = (y.cpu().double() for y in stages.power_of_two(x.to(DEVICE)))
    exponent = torch.frexp(x.double())[1] - 1
    want = powers(torch.where(x > 0, exponent, -200).clamp(-126, 126))
    assert torch.equal(power, want)
    assert torch.equal(power * inverse, torch.ones_like(power))


def test_relative_scale_divides_powers_of_two() -> None:
    exponents = torch.arange(-126, 127)
    scale = powers(exponents).float()
    below = torch.combinations(torch.arange(len(scale)), with_replacement=True)  # every pair scale <= top
    got = stages.relative_scale(scale[below[:, 0]].to(DEVICE), scale[below[:, 1]].to(DEVICE)).cpu()
    ratio = exponents[below[:, 0]] - exponents[below[:, 1]]
    want = torch.where(ratio >= -126, powers(ratio), 0.0)
    assert torch.equal(got.double(), want)


@pytest.mark.parametrize("at_once", [16, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_scale_of_all_is_the_largest(dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that have a target, however many a program looks at together."""
    monkeypatch.setattr(scales, "ALL_ROWS", at_once)
    n, zeros = 70, torch.zeros(70, device=DEVICE)
    targets = torch.zeros(n, dtype=torch.int64, device=DEVICE)
    for top in (0, 17, 69):
        upstream = torch.full((n,), 2.0**-9, device=DEVICE)
        upstream[top], targets[1], upstream[1] = -0.75 * 2.0**-5, -100, 2.0**30
        rows = (vector(targets), zeros, zeros, vector(upstream), None)
        found: Tensor = scales.scale_of_all(rows, (n, 8, 8), -100, dtype)  # type: ignore[no-untyped-call]
        assert found.tolist() == [1.0 if dtype == torch.float32 else 2.0**-6]


@pytest.mark.parametrize("softcap", [1.0, 30.0, 1 / 3, 2.0**126])
def test_soft_cap_stays_within_its_share_of_the_budget(softcap: float) -> None:
    """Every 4096th fp32 from 2^-120 to 2^7, both signs."""
    first, last = (torch.tensor(x).view(torch.int32).item() for x in (2.0**-120, 2.0**7))
    z = torch.arange(first, last, 4096, dtype=torch.int32).view(torch.float32)
    z = torch.cat([z, -z, torch.tensor([0.0, torch.inf, -torch.inf])])
    tanh, cap, slope = (y.cpu().double() for y in stages.soft_cap(z.to(DEVICE), softcap))
    z = z.double()
    scaled = z / torch.tensor(softcap).double()  # the cap as the kernel gets it, in fp32
    want = torch.tanh(z)
    assert bool(((tanh - want).abs() <= SOFTCAP_ROUNDINGS / 2 * U * want.abs()).all())
    want = softcap * torch.tanh(z / softcap)
    assert bool(((cap - want).abs() <= soft_cap(want, torch.zeros_like(want), softcap)).all())
    q = torch.exp(-2 * scaled.abs())
    want = 4 * q / (1 + q) ** 2
    bound = want * torch.expm1(8 * U + 2 * ANY.exponential(2 * scaled.abs(), 0 * scaled).largest) + 4 * EXP_UNDERFLOW
    assert bool(((slope - want).abs() <= torch.where(want > 0, bound, 4 * EXP_UNDERFLOW)).all())
