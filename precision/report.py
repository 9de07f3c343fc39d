"""`Report`: measured against budget, per variant and output, with full provenance. JSON is the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .condition import ConditionSample
from .dead_rows import DeadRows
from .files import read_json, to_json, write_json
from .floors import Floor
from .heat_map import HeatMap
from .measure import Element, Measurement
from .provenance import Provenance
from .stage_table import StageTable
from .survival import Survival
from .timing import Timing
from .verdict import Verdict

SCHEMA = 2
READABLE = (1, 2)
"""A report of schema 1 lacks everything of a `Result` that has a default, and is shown without it."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One variant on one head."""

    variant: str
    flags: dict[str, Any]
    schedule: str
    mean_loss: float
    mean_loss_error: float  # against the oracle
    mean_loss_error_own_logits: float  # against float64 log-softmax over the kernel's own fp32 logits
    outputs: dict[str, Measurement]
    tiles: dict[str, int]  # kept and skipped, per output; the oracle's bounds on kept
    filtered_mass: dict[str, float]  # mean and max over tokens of the probability in skipped tiles of dE
    within_budget: bool
    timing: Timing | None
    # Per output, where it could be computed.
    verdict: Verdict | None = None
    stages: dict[str, StageTable] = field(default_factory=dict)
    survival: dict[str, Survival] = field(default_factory=dict)
    heat_maps: dict[str, HeatMap] = field(default_factory=dict)
    conditions: dict[str, ConditionSample] = field(default_factory=dict)
    worst: dict[str, list[Element]] = field(default_factory=dict)
    dead_rows: DeadRows | None = None
    reproduce: str | None = None  # the command that measures this variant on this head again

    @property
    def closest(self) -> float:
        """The largest error over its bound, of all outputs."""
        return max(m.over_budget or 0.0 for m in self.outputs.values())

    def kept(self, output: str) -> float | None:
        """The share of its tiles that a gradient's filter kept; None where no tiles were counted."""
        side = {"d_embeddings": "e", "d_classifier": "c"}[output]
        kept, skipped = self.tiles[f"kept_{side}"], self.tiles[f"skipped_{side}"]
        return kept / (kept + skipped) if kept + skipped else None


@dataclass(kw_only=True)
class Report:
    """A head, the truth's own figures on it, and a `Result` per variant. `complete` says whether all were measured."""

    head: dict[str, Any]
    provenance: Provenance
    floors: dict[str, Floor]
    true_mean_loss: float
    results: list[Result] = field(default_factory=list)
    complete: bool = False
    schema: int = SCHEMA

    def result(self, variant: str) -> Result:
        """Raises StopIteration where the variant was not measured."""
        return next(result for result in self.results if result.variant == variant)

    def over_floor(self, result: Result, output: str) -> float | None:
        """The error of a gradient over that of two roundings; None where those cost nothing."""
        return self.floors[output].times(result.outputs[output].normwise)

    def to_json(self) -> str:
        return to_json(self)

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report that `write` left at `path`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else, or a report of another schema.
        """
        return read_json(cls, path, "report", READABLE)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        write_json(self, path)
