"""Fills a `Bench`: on each head every subject is checked against the truth, and then all are timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ccelab.reference import Problem, Solution, double
from ccelab.reference.heads import Head

from .bench import Bench, Cost, Place, Row, Status
from .contestant import Contestant, check, leaves_of, mean_loss, reason_of, status_of
from .energy import Energy, Meter
from .files import write_json
from .floors import floors
from .provenance import head_facts, provenance
from .timing import MIB, Spread, has_clock, pair, peak

T = TypeVar("T")
Progress = Callable[[str], None]


def side_by_side(
    heads: Iterable[Callable[[], Head]],
    contestants: Sequence[Contestant],
    *,
    device: str,
    softcap: float | None = None,
    weighted: bool = False,
    repetitions: int = 9,
    meter: Meter | None = None,
    path: Path | None = None,
    progress: Progress = lambda step: None,
) -> Bench:
    """Errors, and on a GPU times and memory, of each contestant on each head; writes `path` after every step.

    Heads are made one at a time, since each may fill much of a GPU. A contestant that fails in any way is a row that
    says how. If `weighted`, the loss is the mean of the tokens' losses with weights that are drawn. With a `meter`,
    energy is measured after the rounds.

    Raises:
        RuntimeError: a contestant left the GPU unusable; the message names it.
    """
    made = Bench(
        repetitions=repetitions,
        weighted=weighted,
        limit_watts=None if meter is None else meter.limit_watts(),
        provenance=provenance(torch.device(device)),
    )

    def save() -> None:
        if path is not None:
            write_json(made, path)

    for make in heads:
        progress("making the head")
        head = make()
        problem = Problem(embeddings=head.embeddings, classifier=head.classifier, targets=head.targets, softcap=softcap)
        if weighted:
            problem = replace(problem, reduction="none", grad_loss=_weights(problem))
        progress("truth: float64 oracle and rounding floors")
        truth = double(problem)
        place = _place(head, problem, truth)
        made.places.append(place)
        for one in contestants:
            progress(f"{place.shape}: checking {one.name}")
            place.rows.append(_checked(one, problem, truth, place))
            save()
        del truth  # gigabytes that the largest subject may need
        if has_clock(problem.embeddings.device):
            _time(place, contestants, problem, repetitions, meter, progress)
        save()
    made.complete = True
    save()
    return made


def _weights(problem: Problem) -> Tensor:
    """(N,) fp32 that add up to 1, uniform but for that; 0 where a row is ignored."""
    weights = torch.rand(len(problem.targets), generator=torch.Generator().manual_seed(0)).to(problem.embeddings.device)
    weights = torch.where(problem.valid, weights, 0.0)
    return weights / weights.sum()


def _place(head: Head, problem: Problem, truth: Solution) -> Place:
    return Place(
        head=head_facts(head, problem),
        true_mean_loss=float(mean_loss(problem, truth.reduced)),
        floors=floors(problem, truth),
        gradients_mib=sum(x.numel() * x.element_size() for x in (problem.embeddings, problem.classifier)) / MIB,
    )


@dataclass(frozen=True)
class _Failure:
    status: Status
    reason: str


def _tried(name: str, work: Callable[[], T]) -> T | _Failure:
    """What the work returns, or how it failed."""
    try:
        return work()
    except Exception as error:
        failure = _Failure(status_of(error), reason_of(error))
    # Out here the error and the frames of its traceback are gone, and with them the tensors that they held.
    gc.collect()
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise RuntimeError(
                f"{name} left the GPU unusable ({failure.reason}): bench the others without it"
            ) from lost
        torch.cuda.empty_cache()
    return failure


def _checked(one: Contestant, problem: Problem, truth: Solution, place: Place) -> Row:
    row = Row(name=one.name, paper=one.paper, version=one.version, status=Status.measured)
    if one.call is None:
        return replace(row, status=Status.not_installed, reason=one.reason)
    found = _tried(one.name, lambda: check(one, problem, truth, place.floors))
    if isinstance(found, _Failure):
        return replace(row, status=found.status, reason=found.reason)
    return replace(row, errors=found.errors, over_floor=found.over_floor, kept=found.kept)


class _Clock:
    """One contestant's works, their peaks, and (product, work) in milliseconds for every round."""

    def __init__(self, one: Contestant, problem: Problem) -> None:
        leaves = leaves_of(problem)

        def forward() -> None:
            one.forward(problem, leaves)

        def both() -> None:
            one.both(problem, leaves)

        self.name, self.device = one.name, problem.embeddings.device
        self.works: dict[str, Callable[[], None]] = {"forward": forward, "both": both}
        self.peaks: dict[str, float] = {}
        self.rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in self.works}
        self.energy: dict[str, Energy] = {}

    def weigh(self) -> None:
        """The peaks of the second call of each: the first may tune or compile."""
        for name, work in self.works.items():
            work()
            self.peaks[name] = peak(work, self.device)

    def tick(self, product: Callable[[], None]) -> None:
        """One round."""
        for name, work in self.works.items():
            self.rounds[name].append(pair(product, work))

    def measure_energy(self, meter: Meter) -> None:
        self.energy = {name: meter.measure(work) for name, work in self.works.items()}

    def cost(self, gradients_mib: float) -> Cost:
        spreads = {name: Spread.of([work for _, work in pairs]) for name, pairs in self.rounds.items()}
        ratios = {name: Spread.of([work / product for product, work in pairs]) for name, pairs in self.rounds.items()}
        return Cost(
            forward_ms=spreads["forward"],
            both_ms=spreads["both"],
            forward_over_product=ratios["forward"],
            both_over_product=ratios["both"],
            forward_mib=self.peaks["forward"],
            both_mib=self.peaks["both"],
            beyond_gradients_mib=self.peaks["both"] - gradients_mib,
        )


def _time(
    place: Place,
    contestants: Sequence[Contestant],
    problem: Problem,
    repetitions: int,
    meter: Meter | None,
    progress: Progress,
) -> None:
    """Puts costs into the rows that passed the check. Rounds go through all contestants in turn, so that a GPU which
    grows warm or slow does so for all of them."""
    clocks = {
        at: _Clock(one, problem)
        for at, (one, row) in enumerate(zip(contestants, place.rows, strict=True))
        if row.status is Status.measured
    }

    def each(what: str, work: Callable[[_Clock], None]) -> None:
        for at, clock in list(clocks.items()):
            progress(f"{place.shape}: {what}, {clock.name}")
            failed = _tried(clock.name, lambda clock=clock: work(clock))  # type: ignore[misc]
            if isinstance(failed, _Failure):
                place.rows[at] = replace(place.rows[at], status=failed.status, reason=failed.reason)
                del clocks[at]

    each("memory", _Clock.weigh)
    torch.cuda.empty_cache()
    e, c = problem.embeddings, problem.classifier
    logits = torch.empty((len(e), len(c)), dtype=e.dtype, device=e.device)

    def product() -> None:
        torch.mm(e, c.T, out=logits)

    product()
    each("warming up", lambda clock: clock.works["both"]())
    for k in range(repetitions):
        each(f"round {k + 1} of {repetitions}", lambda clock: clock.tick(product))
    if meter is not None:
        place.product_energy = meter.measure(product)
        each("energy", lambda clock: clock.measure_energy(meter))
    for at, clock in clocks.items():
        place.rows[at] = replace(place.rows[at], cost=clock.cost(place.gradients_mib), energy=clock.energy)
    pairs = [pair for clock in clocks.values() for pairs in clock.rounds.values() for pair in pairs]
    if pairs:
        place.product_ms = Spread.of([product_ms for product_ms, _ in pairs])
