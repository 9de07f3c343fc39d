"""`Report`: measured against budget, per variant and output, with full provenance. JSON is the record."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .floors import Floor
from .measure import Measurement
from .provenance import Provenance
from .timing import Timing

SCHEMA = 1


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

    def to_json(self) -> str:
        """JSON without NaN or infinity literals, which other languages cannot read: they become strings."""
        return json.dumps(_plain(asdict(self)), indent=1, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Report:
        """The report that `write` left at `path`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds something else, or a report of another schema.
        """
        from pydantic import TypeAdapter, ValidationError  # only reading needs it

        text = path.read_text()
        try:
            schema = json.loads(text).get("schema")
        except (ValueError, AttributeError):
            raise ValueError(f"{path} is not a report: it is not a JSON object") from None
        if schema != SCHEMA:
            raise ValueError(
                f"{path} has schema {schema}, this version of ccelab reads {SCHEMA}: make the report again"
            )
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{path} is not a report: {error}") from None

    def write(self, path: Path) -> None:
        """Replaces `path` in one step: whoever reads it finds the old file or the new one, never a half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.to_json())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
