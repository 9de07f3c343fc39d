"""How much the answers of one variant change with the schedule, and whether they repeat under each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Variant, default_schedule
from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.reference import Problem, Solution, double
from ccelab.reference.heads import Head

from .arithmetic import own
from .budget import budget
from .call import run
from .files import read_json
from .floors import floors
from .formats import Format
from .measure import measure, worst_ratio
from .names import GRADIENTS
from .program_order import last_program_first
from .provenance import Provenance, head_facts, provenance

SCHEMA = 1
SPREAD_OUTPUTS = ("loss", *GRADIENTS)


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A schedule by what sets it apart from the default one."""

    name: str
    changes: str  # the kind of the change, for the colour of its points
    schedule: Schedule


@dataclass(frozen=True, kw_only=True)
class ScheduleRun:
    """One variant under one schedule."""

    name: str
    changes: str
    schedule: str
    error: dict[str, float]  # normwise, per output
    over_floor: dict[str, float]  # of the gradients, over two roundings
    over_budget: float  # the worst element of the outputs above
    kept: dict[str, float]  # share of the tiles of dE and dC
    repeats: bool  # whether a second run gave the same bits of every output, and kept the same number of tiles
    as_default: dict[str, bool]  # whether an output has the bits that it has under the first schedule


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What the schedules have in common in one output: bits per element (`common_bits`), over its elements."""

    digits: int  # of the output's format: the most there can be
    median: float
    first_percentile: float
    same: float  # share of the elements that are the same under every schedule


@dataclass(frozen=True, kw_only=True)
class VariantSpread:
    """One variant under all schedules."""

    variant: str
    runs: list[ScheduleRun]
    agreement: dict[str, Agreement]

    @property
    def deterministic(self) -> bool:
        """Whether every schedule's second run gave the same bits."""
        return all(run.repeats for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class HeadSpread:
    """All variants on one head."""

    head: dict[str, Any]
    variants: list[VariantSpread] = field(default_factory=list)


@dataclass(kw_only=True)
class ScheduleStudy:
    """One or more heads."""

    provenance: Provenance
    repeated: str  # how the second runs were made
    heads: list[HeadSpread] = field(default_factory=list)
    complete: bool = False
    kind: str = "schedules"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> ScheduleStudy:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "study of schedules", (SCHEMA,))


def alternatives(base: Schedule) -> list[Alternative]:
    """`base`, and schedules that differ from it in one thing; the last one in two.

    Warps and stages are left out: they change when things happen, and in the interpreter nothing at all.
    """

    def backward(**sizes: int) -> Schedule:
        return replace(base, backward=replace(base.backward, **sizes))

    def forward(**sizes: int) -> Schedule:
        return replace(base, forward=replace(base.forward, **sizes))

    rows, columns, depth = "rows of a backward tile", "columns of a backward tile", "block of D, backward"
    ahead = "forward tile and splits"
    return [
        Alternative(name="default", changes="default", schedule=base),
        Alternative(name="32 rows", changes=rows, schedule=backward(block_n=32)),
        *(Alternative(name=f"{v} columns", changes=columns, schedule=backward(block_v=v)) for v in (128, 64, 32)),
        Alternative(name="32 rows, 64 columns", changes="both", schedule=backward(block_n=32, block_v=64)),
        Alternative(name="D by 16, backward", changes=depth, schedule=backward(block_d=16)),
        Alternative(name="64 columns, forward", changes=ahead, schedule=forward(block_v=64)),
        Alternative(name="D by 16, forward", changes=ahead, schedule=forward(block_d=16)),
        Alternative(name="1 split", changes=ahead, schedule=replace(base, splits=1, workers=None)),
        Alternative(name="pointer loads", changes=ahead, schedule=replace(base, descriptors=False)),
    ]


def schedule_study(
    heads: Sequence[Head],
    variants: Sequence[Variant],
    *,
    progress: Callable[[int, int, str], None] = lambda done, of, step: None,
    choose: Callable[[Schedule], list[Alternative]] = alternatives,
) -> ScheduleStudy:
    """On each head every variant under every schedule that `choose` makes of the default one, twice each."""
    study = ScheduleStudy(
        provenance=provenance(heads[0].embeddings.device),
        repeated="with the programs of every launch in the reverse order" if IS_INTERPRETED else "once more",
    )
    steps = len(heads) * len(variants)
    for head in heads:
        problem = Problem(embeddings=head.embeddings, classifier=head.classifier, targets=head.targets)
        n, _, d = problem.shape
        setting = _Setting(problem, choose(default_schedule(problem.embeddings.dtype, n, d)))
        spread = HeadSpread(head=head_facts(head, problem))
        for variant in variants:
            progress(len(study.heads) * len(variants) + len(spread.variants), steps, f"{head.name}, {variant}")
            spread.variants.append(setting.spread(variant))
        study.heads.append(spread)
    study.complete = True
    progress(steps, steps, "complete")
    return study


class _Setting:
    """A problem, its schedules, and what its answers are held to."""

    def __init__(self, problem: Problem, schedules: list[Alternative]) -> None:
        self.problem, self.schedules, self.truth = problem, schedules, double(problem)
        self.floors = floors(problem, self.truth)

    def spread(self, variant: Variant) -> VariantSpread:
        ranges = {name: _Range() for name in SPREAD_OUTPUTS}
        runs: list[ScheduleRun] = []
        first: Solution | None = None
        for one in self.schedules:
            answer, result = self._measured(variant, one, first)
            first = first or answer
            runs.append(result)
            for name, output in _outputs(answer):
                ranges[name].add(output)
        agreement = {name: found.agreement() for name, found in ranges.items()}
        return VariantSpread(variant=str(variant), runs=runs, agreement=agreement)

    def _measured(self, variant: Variant, one: Alternative, first: Solution | None) -> tuple[Solution, ScheduleRun]:
        """The answer under one schedule, and what is kept of it; `first` is that under the first schedule."""
        got, stats = run(self.problem, variant, one.schedule)
        with last_program_first() if IS_INTERPRETED else nullcontext():
            again, stats_again = run(self.problem, variant, one.schedule)
        limit = budget(self.problem, variant, one.schedule, taken=stats, arithmetic=own(), by_stage=False)
        wanted = dict(_outputs(self.truth))
        errors = {name: measure(name, x, wanted[name]).normwise for name, x in _outputs(got)}
        ratios = [worst_ratio(x, wanted[name], getattr(limit.bound, name)) for name, x in _outputs(got)]
        times = {name: floor.times(errors[name]) for name, floor in self.floors.items()}
        return got, ScheduleRun(
            name=one.name,
            changes=one.changes,
            schedule=str(one.schedule),
            error=errors,
            over_floor={name: ratio for name, ratio in times.items() if ratio is not None},
            over_budget=max(ratios),
            kept=stats.kept(),
            repeats=stats.kept() == stats_again.kept()
            and all(same_bits(x, getattr(again, name)) for name, x in vars(got).items() if x is not None),
            as_default={name: same_bits(x, getattr(first or got, name)) for name, x in _outputs(got)},
        )


def _outputs(answer: Solution) -> Iterator[tuple[str, Tensor]]:
    for name in SPREAD_OUTPUTS:
        output = getattr(answer, name)
        assert output is not None
        yield name, output


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same patterns: NaN is NaN, and 0 is not -0."""
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


class _Range:
    """The least and the largest of what the elements of one output have been, in float64."""

    def __init__(self) -> None:
        self.low = self.high = torch.empty(0)
        self.digits = 0

    def add(self, output: Tensor) -> None:
        x = output.double()
        first = not self.digits
        self.digits = Format.of(output.dtype).digits
        self.low, self.high = (x, x) if first else (torch.minimum(self.low, x), torch.maximum(self.high, x))

    def agreement(self) -> Agreement:
        bits = common_bits(self.low, self.high, self.digits).flatten().sort().values
        return Agreement(
            digits=self.digits,
            median=float(bits[len(bits) // 2]),
            first_percentile=float(bits[len(bits) // 100]),
            same=float((self.low == self.high).double().mean()),
        )


def common_bits(low: Tensor, high: Tensor, digits: int) -> Tensor:
    """Significant bits that two numbers a and b have in common, elementwise: log2(abs(a + b) / (2 abs(a - b))), and no
    fewer than 0 nor more than the `digits` of their format, which equal numbers have.

    Source: Chesneaux and Jézéquel, "Dynamical control of computations using the trapezoidal and Simpson's rules",
    Journal of Universal Computer Science 4(1), 1998, there in decimal digits.
    """
    found = torch.log2((low + high).abs() / (2 * (high - low).abs()))
    return torch.where(low == high, float(digits), found.clamp(0.0, float(digits)))
