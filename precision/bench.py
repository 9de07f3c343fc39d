"""`Bench`: variants and other people's subjects side by side: error, time and memory on the same heads, in one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from .energy import Energy
from .files import read_json
from .floors import Floor
from .provenance import Provenance
from .timing import Spread

SCHEMA = 1


class Status(StrEnum):
    """What became of a row; all but the first come with a reason."""

    measured = "measured"
    not_installed = "not installed"
    unsupported = "unsupported"
    refused = "refused"  # a wrong answer, which is not timed
    out_of_memory = "out of memory"
    failed = "failed"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Times in milliseconds, and over the product timed right before; memory in MiB beyond the inputs.

    The forward pass is that of training: it keeps, and may compute, what the backward pass needs.
    """

    forward_ms: Spread
    both_ms: Spread  # forward and backward
    forward_over_product: Spread
    both_over_product: Spread
    forward_mib: float
    both_mib: float
    beyond_gradients_mib: float  # of forward and backward, less dE and dC themselves


@dataclass(frozen=True, kw_only=True)
class Row:
    """One subject on one head."""

    name: str  # a flag string, or a subject's name
    status: Status
    paper: str | None = None  # its row of the paper's Table 1
    version: str | None = None  # of the package that it wraps
    reason: str | None = None
    errors: dict[str, float] = field(default_factory=dict)  # |mean loss - truth| in nats; dE and dC normwise
    over_floor: dict[str, float] = field(default_factory=dict)  # dE and dC over two roundings
    kept: dict[str, float] = field(default_factory=dict)  # share of the tiles of dE and dC, of our variants
    cost: Cost | None = None  # None without a GPU
    energy: dict[str, Energy] = field(default_factory=dict)  # of "forward" and "both", where it was asked for

    @property
    def products(self) -> float:
        """What forward and backward pass take, of a row that was timed."""
        assert self.cost is not None
        return self.cost.both_over_product.median


@dataclass(kw_only=True)
class Place:
    """One head, the truth's own figures on it, and the rows."""

    head: dict[str, Any]
    true_mean_loss: float
    floors: dict[str, Floor]
    gradients_mib: float
    product_ms: Spread | None = None  # of all the products that rows were timed beside
    product_energy: Energy | None = None
    rows: list[Row] = field(default_factory=list)

    @property
    def shape(self) -> str:
        return f"N={self.head['tokens']} V={self.head['vocabulary']} D={self.head['hidden']}"


@dataclass(kw_only=True)
class Bench:
    """`complete` says whether all places were measured."""

    repetitions: int
    provenance: Provenance
    places: list[Place] = field(default_factory=list)
    weighted: bool = False  # whether the loss is a mean with weights that are drawn
    limit_watts: float | None = None  # what the GPU may draw, where energy was asked for
    complete: bool = False
    kind: str = "bench"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> Bench:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "bench", (SCHEMA,))

    @property
    def timed(self) -> bool:
        return any(row.cost for place in self.places for row in place.rows)

    def true_mean(self, place: Place) -> str:
        """The truth's mean loss on one of the places, in words."""
        return f"true {'weighted ' if self.weighted else ''}mean loss {place.true_mean_loss:.6f}"

    def worst(self, what: str) -> dict[str, tuple[float, str]]:
        """Per row the largest median of `what`, a ratio of `Cost`, and the shape where it is."""
        found: dict[str, tuple[float, str]] = {}
        for place in self.places:
            for row in place.rows:
                if row.cost is not None:
                    here = (getattr(row.cost, what).median, place.shape)
                    found[row.name] = max(found.get(row.name, here), here)
        return found
