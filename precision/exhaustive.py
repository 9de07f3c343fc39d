"""The elementwise pieces of the kernels on every number of bf16: the largest error, its place, and the mean bias."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import single_stages

# isort: split
import torch
from torch import Tensor

from .files import read_json
from .formats import Format
from .measure import pattern
from .provenance import Provenance, provenance

SCHEMA = 1
SOFTCAP = 30.0
PARTNERS = 64
BF16, FP32 = Format.of(torch.bfloat16), Format.of(torch.float32)


@dataclass(frozen=True, kw_only=True)
class Function:
    """One piece. Errors are in units in the last place of the truth, in the format of the result."""

    name: str
    inputs: int  # that were tried
    compared: int  # whose true result is a normal number of the result's format, or zero
    of: str  # which inputs
    exhaustive: bool
    result: str  # format
    max_ulp: float
    mean_bias: float  # mean of (got - truth) / ulp: 0 for fair rounding
    worst_input: str  # hex of the operands
    worst_got: str
    worst_truth: str  # of float64, as float.fromhex reads it
    mismatches: int  # inputs where one side is NaN or infinite and the other is not


@dataclass(kw_only=True)
class ExhaustiveTable:
    """The pieces on one device."""

    provenance: Provenance
    functions: list[Function] = field(default_factory=list)
    kind: str = "exhaustive"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> ExhaustiveTable:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "table of every input", (SCHEMA,))


def exhaustive(device: torch.device) -> ExhaustiveTable:
    """The table of this machine: seconds on a GPU, and in the interpreter."""
    return ExhaustiveTable(provenance=provenance(device), functions=list(_functions(device)))


def every_bf16(device: torch.device | str = "cpu") -> Tensor:
    """All 2^16 patterns."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16, device=device).view(torch.bfloat16)


def _functions(device: torch.device) -> Iterator[Function]:
    x = every_bf16(device).float()
    all_inputs = "every bf16 number"
    yield _compare("exp", (x,), single_stages.exponential(x), x.double().exp(), FP32, all_inputs)
    positive = x[(x > 0) & x.isfinite()]
    yield _compare(
        "log",
        (positive,),
        single_stages.logarithm(positive),
        positive.double().log(),
        FP32,
        "every positive bf16 number",
    )
    finite = x[x.isfinite()]
    _, cap, slope = single_stages.soft_cap(finite, SOFTCAP)
    y = finite.double() / SOFTCAP
    of = f"every finite bf16 number, softcap {SOFTCAP:g}"
    yield _compare("softcap", (finite,), cap, SOFTCAP * y.tanh(), FP32, of)
    yield _compare("slope of the softcap", (finite,), slope, y.cosh().square().reciprocal(), FP32, of)
    yield _compare("bf16 to fp32", (x,), single_stages.upcast(every_bf16(device)), x.double(), FP32, all_inputs)
    edges = _rounding_edges(device)
    yield _compare(
        "fp32 to bf16",
        (edges,),
        single_stages.downcast(edges, torch.bfloat16),
        edges.double(),
        BF16,
        "every bf16 number, every tie between two, and the fp32 numbers beside each tie",
    )
    yield from _two_sums(device)


def _rounding_edges(device: torch.device) -> Tensor:
    """Where a cast to bf16 decides: its numbers, the ties between neighbours, and the fp32 numbers beside those."""
    low = (torch.arange(2**16, dtype=torch.int64, device=device) << 16)[:, None]
    bits = (low + torch.tensor([0, 0x7FFF, 0x8000, 0x8001], device=device)).flatten()
    x = torch.where(bits >= 2**31, bits - 2**32, bits).to(torch.int32).view(torch.float32)
    return x[x.abs() <= BF16.largest]


def _two_sums(device: torch.device) -> Iterator[Function]:
    """Pairs: every number, each with `PARTNERS` others whose patterns are spread evenly over all."""
    patterns = torch.arange(2**16, dtype=torch.int64, device=device)
    partners = (patterns[:, None] + 1021 * torch.arange(PARTNERS, device=device)) % 2**16
    pairs = torch.stack([patterns[:, None].expand_as(partners), partners]).flatten(1)
    a, b = torch.where(pairs >= 2**15, pairs - 2**16, pairs).to(torch.int16).view(torch.bfloat16)
    exact = a.double() + b.double()
    fits = exact.isfinite() & (exact.abs() <= BF16.largest)
    a, b, exact = a[fits], b[fits], exact[fits]
    s, t = single_stages.two_sum(a, b)
    of = f"every bf16 number, each with {PARTNERS} others"
    yield _compare("two-sum: the sum", (a, b), s, exact, BF16, of, exhaustive=False)
    yield _compare("two-sum: the rest", (a, b), t, _exact_rest(a, b, s), BF16, of, exhaustive=False)


def _exact_rest(a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """a + b - s without a rounding, where float64's a + b may have one: the larger operand less s is exact."""
    swap = b.abs().float() > a.abs().float()
    large, small = torch.where(swap, b, a).double(), torch.where(swap, a, b).double()
    return (large - s.double()) + small


def _compare(
    name: str,
    operands: tuple[Tensor, ...],
    got: Tensor,
    want: Tensor,
    fmt: Format,
    of: str,
    exhaustive: bool = True,
) -> Function:
    g, w = got.double(), want
    smallest = fmt.tiny * 2.0 ** (fmt.digits - 1)
    beyond = w.abs() > fmt.largest  # rounds to infinity, or to the largest number
    normal = w.isfinite() & ~beyond & ((w == 0) | (w.abs() >= smallest)) & g.isfinite()
    mismatches = int(((w.isnan() != g.isnan()) | (w.isfinite() & ~beyond & ~g.isfinite())).sum())
    exponent = torch.frexp(torch.where(w == 0, smallest, w)).exponent
    ulp = torch.ldexp(torch.ones_like(w), exponent - fmt.digits)
    error = torch.where(normal, (g - w) / ulp, 0.0)
    worst = int(error.abs().argmax())
    compared = int(normal.sum())
    return Function(
        name=name,
        inputs=len(w),
        compared=compared,
        of=of,
        exhaustive=exhaustive,
        result=fmt.name,
        max_ulp=float(error.abs().max()),
        mean_bias=float(error.sum()) / max(compared, 1),
        worst_input=", ".join(pattern(operand[worst]) for operand in operands),
        worst_got=pattern(got[worst]),
        worst_truth=float(w[worst]).hex(),
        mismatches=mismatches,
    )
