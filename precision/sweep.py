"""`Sweep`: variants on one kind of head as one or more of its figures vary. Written after every point, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ccelab.kernels import Schedule, Variant, default_schedule
from ccelab.reference import heads
from ccelab.reference.heads import Head

from .axes import Axis, written
from .dead_rows import DeadRows
from .files import read_json, write_json
from .laboratory import build_report
from .provenance import Provenance, provenance
from .report import Report, Result

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """What is kept of one variant's `Result`."""

    variant: str  # as asked for; the point's values may set its eps
    error: dict[str, float]  # normwise, per output
    over_floor: dict[str, float]  # of the gradients, over two roundings
    over_budget: float
    kept: dict[str, float]  # share of the tiles of dE and dC
    mass: float  # mean probability in the skipped tiles of dE
    mean_loss_error: float
    dead_rows: DeadRows | None
    grade: str
    forward_over_product: float | None
    backward_over_product: float | None


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of every axis."""

    values: dict[str, float]
    tiles: dict[str, int]  # that a sum of dE, and one of dC, takes
    results: list[PointResult]
    commit: str | None  # of the code that measured it


@dataclass(kw_only=True)
class Sweep:
    """`settings` is everything that decides the numbers: a file of other settings is not gone on with."""

    settings: dict[str, Any]
    axes: dict[str, list[float]]
    provenance: Provenance
    points: list[Point] = field(default_factory=list)
    complete: bool = False
    kind: str = "sweep"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "sweep", (SCHEMA,))

    def grid(self) -> Iterator[dict[str, float]]:
        for values in product(*self.axes.values()):
            yield dict(zip(self.axes, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sweep measures, but for its axes."""

    head: str
    variants: tuple[str, ...]
    tokens: int
    vocabulary: int | None = None
    hidden: int | None = None
    text: str | None = None
    dtype: str = "bfloat16"
    device: str = "cpu"
    softcap: float | None = None
    bias: bool = False
    seed: int = 0

    def checked(self, axes: Sequence[Axis]) -> Settings:
        """Itself, with the variants' names as they print.

        Raises:
            ValueError: an axis stands twice, or moves nothing.
        """
        names = [axis.name for axis in axes]
        if len(set(names)) != len(names) or not names:
            raise ValueError("name every axis once, and at least one")
        variants = [Variant.parse(name) for name in self.variants]
        for variant in variants:
            if "eps" in names and not (variant.filter_e or variant.filter_c):
                raise ValueError(f"{variant} filters nothing: no eps changes it")
        return replace(self, variants=tuple(dict.fromkeys(map(str, variants))))


def sweep(
    settings: Settings,
    axes: Sequence[Axis],
    path: Path,
    *,
    progress: Callable[[int, int, str], None] = lambda done, of, step: None,
    workers: int = 1,
) -> Sweep:
    """Measures the points that `path` does not hold yet, in the order of the grid, and writes it after each.

    Raises:
        ValueError: `path` holds something else, or a sweep of other settings; the message says which differ.
    """
    settings = settings.checked(axes)
    source = provenance(torch.device(settings.device))
    found = Sweep(
        settings={**asdict(settings), "variants": list(settings.variants), **_arithmetic(source)},
        axes={axis.name: list(axis.values) for axis in axes},
        provenance=source,
    )
    if path.exists():
        found = _taken_up(found, Sweep.read(path), path)
    done = [point.values for point in found.points]
    grid = list(found.grid())
    for values in grid:
        if values in done:
            continue
        label = ", ".join(f"{name}={written(name, value)}" for name, value in values.items())
        progress(len(found.points), len(grid), label)
        found.points.append(_point(settings, values, source.commit, workers))
        found.complete = len(found.points) == len(grid)
        write_json(found, path)
    progress(len(grid), len(grid), "complete")
    return found


def _arithmetic(source: Provenance) -> dict[str, str]:
    """What two halves of a sweep must have in common beside what was asked for."""
    return {"executes": source.device, "torch": source.torch, "triton": source.triton}


def _taken_up(wanted: Sweep, there: Sweep, path: Path) -> Sweep:
    mine, theirs = ({**sweep.settings, **sweep.axes} for sweep in (wanted, there))
    differ = [name for name in dict.fromkeys((*mine, *theirs)) if mine.get(name) != theirs.get(name)]
    if differ:
        says = "; ".join(f"{name}: {_said(name, theirs)} there, {_said(name, mine)} asked for" for name in differ)
        raise ValueError(f"{path} is a sweep of other settings ({says}): choose another --out, or delete it")
    return there


def _said(name: str, settings: Mapping[str, object]) -> str:
    """A setting, or the values of an axis."""
    value = settings.get(name)
    if isinstance(value, list | tuple):
        return ",".join(item if isinstance(item, str) else written(name, item) for item in value)
    return "nothing" if value is None else str(value)


def _point(settings: Settings, values: Mapping[str, float], commit: str | None, workers: int) -> Point:
    head = _head(settings, values)
    n, v, d = head.shape
    schedule = _schedule(default_schedule(head.embeddings.dtype, n, d), values)
    asked = [Variant.parse(name) for name in settings.variants]
    variants = [_with_eps(variant, values["eps"]) for variant in asked] if "eps" in values else asked
    report = build_report(
        head,
        variants,
        softcap=settings.softcap,
        bias=heads.draw_bias(head, settings.seed) if settings.bias else None,
        schedule=schedule,
        workers=workers,
    )
    tiles = schedule.backward
    return Point(
        values=dict(values),
        tiles={"d_embeddings": -(-v // tiles.block_v), "d_classifier": -(-n // tiles.block_n)},
        results=[_kept(name, result, report) for name, result in zip(settings.variants, report.results, strict=True)],
        commit=commit,
    )


def _with_eps(variant: Variant, eps: float) -> Variant:
    """Its eps_e, where it has one, stays as many times smaller."""
    ratio = None if variant.eps_e is None or not variant.eps else variant.eps_e / variant.eps
    return replace(variant, eps=eps, eps_e=variant.eps_e if ratio is None else ratio * eps)


def _head(settings: Settings, values: Mapping[str, float]) -> Head:
    def size(name: str, default: int | None) -> int | None:
        return int(values[name]) if name in values else default

    head = heads.resolve(
        settings.head,
        tokens=size("tokens", settings.tokens) or settings.tokens,
        vocabulary=size("vocabulary", settings.vocabulary),
        hidden=size("hidden", settings.hidden),
        text=settings.text,
        seed=settings.seed,
        dtype=getattr(torch, settings.dtype),
        device=settings.device,
    )
    return replace(head, embeddings=head.embeddings * values.get("scale", 1.0))


def _schedule(schedule: Schedule, values: Mapping[str, float]) -> Schedule:
    if "block" not in values:
        return schedule
    block = int(values["block"])
    return replace(schedule, backward=replace(schedule.backward, block_n=block, block_v=block))


def _kept(name: str, result: Result, report: Report) -> PointResult:
    kept = {output: result.kept(output) for output in ("d_embeddings", "d_classifier")}
    times = {output: report.over_floor(result, output) for output in report.floors}
    timing = result.timing
    return PointResult(
        variant=name,
        error={output: m.normwise for output, m in result.outputs.items()},
        over_floor={output: ratio for output, ratio in times.items() if ratio is not None},
        over_budget=result.closest,
        kept={output: 1.0 if share is None else share for output, share in kept.items()},
        mass=result.filtered_mass.get("mean", 0.0),
        mean_loss_error=result.mean_loss_error,
        dead_rows=result.dead_rows,
        grade=str(result.verdict.grade) if result.verdict else "not judged",
        forward_over_product=timing.forward_over_product if timing else None,
        backward_over_product=timing.backward_over_product if timing else None,
    )
