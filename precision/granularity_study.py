"""What is kept and what is lost by entries, by words of a block of rows, and by segments of a row: in float64, so that
nothing but the filter errs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels.sampling import sample_rows
from ccelab.reference import Problem
from ccelab.reference.heads import Head

from .files import read_json
from .names import GRADIENTS
from .provenance import Provenance, head_facts, provenance

SCHEMA = 1
POWERS = (-8, -10, -12, -14, -16, -18)
ROWS, COLUMNS = 128, 128
"""Of a block of rows that share words, and of a segment, as on a GPU."""
Keep = Callable[[Tensor, Tensor, float], Tensor]
"""(live (N, V) bool, softmax (N, V), eps) -> (N, V) bool: what is kept."""


@dataclass(frozen=True, kw_only=True)
class GranularityPoint:
    """One granularity at one threshold."""

    granularity: str
    power: int  # log2 of eps
    entries: float  # kept per row
    gathered: float  # per row: rows of C for dE, or of E for dC, each of which is read once for all that is kept of it
    dropped: dict[str, float]  # ||error|| / ||gradient|| of dropping the rest
    with_tail: dict[str, float]  # of giving it back along one vector


@dataclass(kw_only=True)
class GranularityStudy:
    """One point per granularity and threshold, on one head."""

    provenance: Provenance
    head: dict[str, Any]
    points: list[GranularityPoint] = field(default_factory=list)
    kind: str = "granularity"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> GranularityStudy:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "study of granularity", (SCHEMA,))

    def find(self, granularity: str, power: int) -> GranularityPoint:
        (point,) = (p for p in self.points if (p.granularity, p.power) == (granularity, power))
        return point


def by_entry(live: Tensor, softmax: Tensor, eps: float) -> Tensor:
    return live


def by_word(live: Tensor, softmax: Tensor, eps: float) -> Tensor:
    """Of a block of rows: words in which any of them has a live entry, as dE of granularity=segment keeps them."""
    blocks = torch.nn.functional.pad(live, (0, 0, 0, -len(live) % ROWS)).unflatten(0, (-1, ROWS))
    kept: Tensor = blocks.any(1).repeat_interleave(ROWS, 0)[: len(live)]
    return kept


def by_segment(live: Tensor, softmax: Tensor, eps: float) -> Tensor:
    """Of a row: words beside each other that hold a probability of eps, or a target, as dC keeps them."""
    v = live.shape[1]
    mass, found = (
        torch.nn.functional.pad(x, (0, -v % COLUMNS)).unflatten(1, (-1, COLUMNS)).sum(2) for x in (softmax, live)
    )
    kept: Tensor = ((mass >= eps) | (found > 0)).repeat_interleave(COLUMNS, 1)[:, :v]
    return kept


ENTRIES, WORDS, SEGMENTS = "entries", "words of a block", "segments of a row"
KEPT: dict[str, Keep] = {ENTRIES: by_entry, WORDS: by_word, SEGMENTS: by_segment}
SHARED = {ENTRIES: 1, WORDS: ROWS, SEGMENTS: COLUMNS}
"""Entries that are kept together, and read the same row of the other matrix."""


def granularity_study(
    head: Head, powers: Sequence[int] = POWERS, progress: Callable[[int, int, str], None] = lambda *step: None
) -> GranularityStudy:
    """Every granularity at every threshold. Holds (N, V) in float64 several times."""
    problem = Problem(embeddings=head.embeddings, classifier=head.classifier, targets=head.targets)
    study = GranularityStudy(provenance=provenance(torch.device("cpu")), head=head_facts(head, problem))
    e, c = head.embeddings.double(), head.classifier.double()
    softmax = torch.softmax(e @ c.T, 1)
    targets = torch.arange(len(e)), head.targets
    residual = softmax.clone()
    residual[targets] -= 1
    size = _norms(residual @ c, residual.T @ e)
    sample = sample_rows(head.targets, problem.ignore_index)
    for done, power in enumerate(powers):
        progress(done, len(powers), f"eps=2^{power}")
        live = residual.abs() >= 2.0**power
        live[targets] = True
        for name, keep in KEPT.items():
            kept = keep(live, softmax, 2.0**power)
            lost = torch.where(kept, 0.0, residual)
            rows, spread = lost.sum(1), lost[sample].sum(0)
            spread = spread / spread.sum().clamp(min=torch.finfo(spread.dtype).tiny)
            of_e, of_c = lost @ c, lost.T @ e
            dropped = _norms(of_e, of_c)
            with_tail = _norms(of_e - rows[:, None] * (spread @ c), of_c - spread[:, None] * (rows @ e))
            entries = float(kept.double().sum(1).mean())
            study.points.append(
                GranularityPoint(
                    granularity=name,
                    power=power,
                    entries=entries,
                    gathered=entries / SHARED[name],
                    dropped={g: dropped[g] / size[g] for g in GRADIENTS},
                    with_tail={g: with_tail[g] / size[g] for g in GRADIENTS},
                )
            )
    return study


def _norms(of_e: Tensor, of_c: Tensor) -> dict[str, float]:
    return {name: float(x.norm()) for name, x in zip(GRADIENTS, (of_e, of_c), strict=True)}
