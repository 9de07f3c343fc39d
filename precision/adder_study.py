"""How far one dot product is from the truth as it grows, on each model of an adder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .files import read_json
from .formats import U
from .provenance import Provenance, provenance

SCHEMA = 1
LENGTHS = (64, 128, 256, 512, 1024, 2304, 4096, 8192)
DRAWS = 256
Dot = Callable[[str, Tensor, Tensor], Tensor]
"""(machine, a (..., m, D), b (..., D, n)) -> (..., m, n) in fp32: `emulation.adders.dot`."""


@dataclass(frozen=True, kw_only=True)
class AdderPoint:
    """Errors over draws, in unit roundoffs of fp32 times sum |a||b|."""

    machine: str
    terms: str  # "positive" or "signed"
    length: int  # D
    bias: float  # mean of the signed error; of positive terms, what truncation leaves
    rms: float
    largest: float


@dataclass(kw_only=True)
class AdderStudy:
    """One point per machine, kind of terms, and D."""

    provenance: Provenance
    draws: int
    points: list[AdderPoint] = field(default_factory=list)
    kind: str = "adders"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> AdderStudy:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "study of adders", (SCHEMA,))


def adder_study(dot: Dot, machines: Sequence[str], lengths: Sequence[int] = LENGTHS, draws: int = DRAWS) -> AdderStudy:
    """bf16 operands, drawn alike for every machine: positive in [1, 2), where errors of one sign show, and normal."""
    study = AdderStudy(provenance=provenance(torch.device("cpu")), draws=draws)
    for machine in machines:
        for terms in ("positive", "signed"):
            for length in lengths:
                generator = torch.Generator().manual_seed(length)
                a, b = (_operands(terms, draws, length, generator) for _ in range(2))
                got = dot(machine, a[:, None, :], b[:, :, None]).flatten().double()
                terms_exact = a.double() * b.double()
                error = (got - terms_exact.sum(1)) / (U * terms_exact.abs().sum(1))
                study.points.append(
                    AdderPoint(
                        machine=machine,
                        terms=terms,
                        length=length,
                        bias=float(error.mean()),
                        rms=float(error.square().mean().sqrt()),
                        largest=float(error.abs().max()),
                    )
                )
    return study


def _operands(terms: str, draws: int, length: int, generator: torch.Generator) -> Tensor:
    if terms == "positive":
        return (1 + torch.rand((draws, length), generator=generator)).bfloat16()
    return torch.randn((draws, length), generator=generator).bfloat16()
