"""`attribute`: which stage an output's error comes from, by an emulation in which stages are switched on one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant
from ccelab.reference import Problem, Solution

from .emulation import ORDER, Emulation, Machine, Piece, stages_of, up_to


@dataclass(frozen=True, kw_only=True)
class StageError:
    """What one stage adds to the error of one output when those before it round already."""

    stage: str
    error: float  # ||e_k|| / ||truth||, Frobenius, with e_k the change of the output as the stage is switched on
    share: float  # <e_k, e> / ||e||^2 with e the sum of all e_k: shares sum to 1; negative where a stage undoes others


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The error of one output, stage by stage."""

    machine: str  # whose arithmetic was emulated
    stages: list[StageError]  # those that the output passes through, in execution order
    error: float  # ||e|| / ||truth|| of the emulation
    explained: float | None  # 1 - ||measured - emulated||^2 / ||measured - truth||^2; None where nothing was measured
    residue: float | None  # ||measured - emulated|| / ||truth||


def attribute(
    problem: Problem,
    truth: Solution,
    got: Solution | None,
    variant: Variant,
    schedule: Schedule,
    machine: Machine,
    taken: Statistics | None = None,
) -> dict[str, Attribution]:
    """Attributions of loss, reduced, lse, d_embeddings, d_classifier and d_bias (with a bias), by name.

    `truth` has all of them in float64; `got`, where given, is what the kernel returned. `taken` is what that
    call decided, see `budget`. Elements that are not finite in the truth, the
    emulation or `got` enter nothing. Of dC only some columns exist at once, with all stages' versions of them.

    Raises:
        ValueError: the problem or schedule has what is not emulated.
    """
    emulation = Emulation(problem, variant, schedule, machine, taken)
    idle = emulation.idle()
    stages = [stage for stage in ORDER if stage not in idle]
    totals: dict[str, _Totals] = {}
    for piece in emulation.pieces([up_to(stage) for stage in stages]):
        want = getattr(truth, piece.output)
        if want is None:
            continue
        measured = None if got is None else getattr(got, piece.output)
        if piece.rows is not None:
            want = want[piece.rows]
            measured = None if measured is None else measured[piece.rows]
        totals.setdefault(piece.output, _Totals(len(stages))).take(piece, want, measured)
    return {name: total.attribution(machine.name, stages, name) for name, total in totals.items()}


@dataclass(eq=False)
class _Totals:
    """Sums over the pieces of one output, float64."""

    count: int
    along: list[float] = field(default_factory=list)  # <e_k, e>
    own: list[float] = field(default_factory=list)  # ||e_k||^2
    truth: float = 0.0  # squared norms, as are the rest
    error: float = 0.0
    measured: float = 0.0
    residue: float = 0.0
    was_measured: bool = False

    def __post_init__(self) -> None:
        self.along, self.own = [0.0] * self.count, [0.0] * self.count

    def take(self, piece: Piece, want: Tensor, measured: Tensor | None) -> None:
        want, last = want.double(), piece.values[-1].double()
        finite = want.isfinite() & last.isfinite()
        if measured is not None:
            finite &= measured.isfinite()
        every = bool(finite.all())
        want = want if every else torch.where(finite, want, 0.0)

        def error(x: Tensor) -> Tensor:
            return x.double() - want if every else torch.where(finite, x.double() - want, 0.0)

        e = error(last)
        self.truth += _dot(want, want)
        self.error += _dot(e, e)
        previous, before = None, torch.zeros_like(e)
        for k, value in enumerate(piece.values):
            if value is previous:  # the stage does nothing here
                continue
            now = error(value)
            step = (now - before).nan_to_num(0.0, 0.0, 0.0)
            self.along[k] += _dot(step, e)
            self.own[k] += _dot(step, step)
            previous, before = value, now
        if measured is not None:
            self.was_measured = True
            found = error(measured)
            self.measured += _dot(found, found)
            self.residue += _dot(found - e, found - e)

    def attribution(self, machine: str, stages: Sequence[str], output: str) -> Attribution:
        size = math.sqrt(self.truth) or 1.0
        passed = stages_of(output)
        listed = [
            StageError(
                stage=stage,
                error=math.sqrt(self.own[k]) / size,
                share=self.along[k] / self.error if self.error else 0.0,
            )
            for k, stage in enumerate(stages)
            if stage in passed
        ]
        explained = None
        if self.was_measured:
            explained = 1 - self.residue / self.measured if self.measured else float(self.residue == 0)
        return Attribution(
            machine=machine,
            stages=listed,
            error=math.sqrt(self.error) / size,
            explained=explained,
            residue=math.sqrt(self.residue) / size if self.was_measured else None,
        )


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))
