"""Where an output's error comes from: the bound of every stage beside the error that was measured in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .attribution import Attribution


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage; None where it was not computed."""

    stage: str
    predicted: float | None = None  # Frobenius norm of the stage's bound / ||truth||
    measured: float | None = None  # norm of the error that the stage alone causes / ||truth||
    share: float | None = None  # of the measured error


@dataclass(frozen=True, kw_only=True)
class StageTable:
    """The stages of one output in the order of execution."""

    rows: list[StageRow] = field(default_factory=list)
    machine: str | None = None  # whose arithmetic the measured errors are: the device's own, or an emulation of one
    explained: float | None = None  # how much of the error the stages account for together
    residue: float | None = None  # what they leave, / ||truth||

    def share(self, stage: str) -> float:
        """Of the measured error; 0 where the stage is not among them or was not measured."""
        return next((row.share or 0.0 for row in self.rows if row.stage == stage), 0.0)


def stage_tables(
    norms: Mapping[str, Mapping[str, float]],
    attributions: Mapping[str, Attribution],
    truth: Mapping[str, Tensor],
) -> dict[str, StageTable]:
    """One table per output of `truth` of which anything is known.

    `norms` are those of the bounds by stage (`Budget.stage_norms`), in the order of execution, and absolute.
    """
    tables = {}
    for output, want in truth.items():
        bounds = dict(norms.get(output, {}))
        found = attributions.get(output)
        measured = {} if found is None else {stage.stage: stage for stage in found.stages}
        size = float(want.double().norm())
        rows = [
            StageRow(
                stage=name,
                predicted=bounds[name] / size if name in bounds and size else None,
                measured=measured[name].error if name in measured else None,
                share=measured[name].share if name in measured else None,
            )
            for name in (*bounds, *(name for name in measured if name not in bounds))
        ]
        if rows:
            tables[output] = StageTable(
                rows=rows,
                machine=found.machine if found else None,
                explained=found.explained if found else None,
                residue=found.residue if found else None,
            )
    return tables
