"""`budget`: how far a variant's outputs may be from the truth on a problem, per output element and per stage.

A-priori bounds for the arithmetic of the kernels (`stages`), evaluated on the exact values of the oracle. Rigorous to
the order they are written in: no constant is fitted. Four terms need more than a norm. Storage accumulation follows the
exact partial sums, since ``(T - 1) u sum |v|`` would pass a zero gradient. The filter's term is the dropped sum itself,
by the oracle's own decisions, plus the tiles too close to eps to call. Roundings of numbers that are known enter with
their sign (`enclosure`), and so does the error of a row's log sum in a sum over the vocabulary (`filtered_sum`).

Beside it stands a likely bound, of what is known to be random (`random_error`): it may fail, with a known probability,
and is the bound itself where an arithmetic does not round to nearest throughout. Verdicts are by the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant
from ccelab.reference import Problem, Solution
from ccelab.reference.double import Stream

from . import forward_budget
from .arithmetic import ANY, Arithmetic
from .forward_budget import forward_error
from .gradient_budget import GradientBudget
from .measure import worst_ratio
from .order import order_of
from .random_error import RandomError, likely
from .segment_budget import SegmentBudget
from .stages import STAGES, stores
from .tail_budget import TailBudget
from .terms import Terms

KEPT = 2**24
"""Elements up to which the bound of every stage of an output is kept; above, its norm alone (dC at the paper's shape
has 2^29, of 5 GB for every stage)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Budget:
    """The bound of every output element, and what the filters must have done.

    The last two are empty unless the budget was asked for by stage. A stage's bound is what it may add to the error of
    an output by way of everything after it; the stages of an output sum to its bound.
    """

    bound: Solution
    likely: Solution  # no more than `bound`, nor exceeded anywhere but for a probability of `random_error.FAILURE`
    tiles_live_e: tuple[int, int]  # at least, at most this many tiles of dE are kept
    tiles_live_c: tuple[int, int]
    stages: dict[str, dict[str, Tensor]]  # by output and stage, for outputs of at most KEPT elements
    stage_norms: dict[str, dict[str, float]]  # Frobenius, by output and stage

    def miscounted(self, stats: Statistics) -> str | None:
        """What is wrong with the numbers of tiles that a call kept, or None; what was not counted is not wrong."""
        for name, kept, (least, most) in (
            ("dE", stats.tiles_kept_e, self.tiles_live_e),
            ("dC", stats.tiles_kept_c, self.tiles_live_c),
        ):
            if kept is not None and not least <= kept <= most:
                return f"{kept} tiles of {name} were kept; {least} to {most} are live"
        return None

    def exceeded_by(self, outputs: dict[str, Tensor], truth: Solution) -> dict[str, float]:
        """The outputs (by their names in `Solution`) that are further from the truth than allowed, and the worst error
        over its bound; inf where an element is NaN or infinite on one side only."""
        ratios = {
            name: worst_ratio(got, getattr(truth, name), getattr(self.bound, name)) for name, got in outputs.items()
        }
        return {name: ratio for name, ratio in ratios.items() if not ratio <= 1}

    def terms_at(self, output: str, place: tuple[int, ...]) -> dict[str, float]:
        """What each stage may add to the error of one element, largest first; 0 is left out."""
        found = {stage: float(bound[place]) for stage, bound in self.stages.get(output, {}).items()}
        return dict(sorted(((k, v) for k, v in found.items() if v), key=lambda item: -item[1]))


def budget(
    problem: Problem,
    variant: Variant,
    schedule: Schedule,
    *,
    taken: Statistics | None = None,
    arithmetic: Arithmetic = ANY,
    by_stage: bool = False,
) -> Budget:
    """Bounds for `variant` under `schedule`.

    `taken` is what the call decided: its vocabulary order, what it kept and what it gave back. Where it says nothing,
    the oracle decides; a tail that the oracle gives back is not a call's to the last digit, so that tail=rank1 wants to
    be told. The problem's rows are numbered as the kernel numbers them: which rows share a tile matters to the filter.
    The default `arithmetic` holds for anyone's kernels, `arithmetic.own()` for ours in this process. `by_stage` costs a
    product of matrices per stage and gradient.
    """
    order = order_of(problem, variant, taken)
    stream = Stream(problem, _chunk(problem, variant, schedule, by_stage))
    rows = stream.rows()
    forward = stream.forward(rows)
    error = forward_error(stream, rows, variant, schedule, arithmetic, by_stage)
    ledger = _Ledger(by_stage)
    found = forward_budget.outputs(stream, rows, forward, error, variant)
    bounds = {name: ledger.whole(name, terms) for name, (terms, _) in found.items()}
    _, v, d = problem.shape
    of_columns = {"d_classifier": stream.embeddings.new_zeros((v, d))}
    if problem.bias is not None:
        of_columns["d_bias"] = stream.embeddings.new_zeros(v)
    gradients = _kind(variant)(stream, rows, variant, schedule, error, arithmetic, by_stage, taken)
    probable = _Probable(len(bounds) + len(of_columns) + 1)
    if arithmetic.rounds_to_nearest:
        for name, (_, random) in found.items():
            probable.whole(name, random)
    for name, columns, (terms, random) in gradients.of_columns(order):
        whole = of_columns[name]
        whole[columns] = ledger.part(name, tuple(whole.shape), columns, terms)
        if gradients.is_random:
            probable.part(name, whole, columns, random)
    terms, random = gradients.d_embeddings
    bounds |= {"d_embeddings": ledger.whole("d_embeddings", terms), **of_columns}
    if gradients.is_random:
        probable.whole("d_embeddings", random)
    return Budget(
        bound=Solution(**bounds),
        likely=Solution(**(bounds | probable.bounds)),
        tiles_live_e=gradients.live_e,
        tiles_live_c=gradients.live_c,
        stages=ledger.stages,
        stage_norms={
            name: {stage: math.sqrt(squares[stage]) for stage in STAGES if stage in squares}
            for name, squares in ledger.squares.items()
        },
    )


def _kind(variant: Variant) -> type[GradientBudget]:
    if variant.granularity == "segment":
        return SegmentBudget
    return TailBudget if variant.tail == "rank1" else GradientBudget


def _chunk(problem: Problem, variant: Variant, schedule: Schedule, by_stage: bool) -> int:
    """Columns per chunk: whole tiles of the forward pass and increments of dE, and float64 temporaries of half a
    gigabyte, or of many by stage an eighth of one."""
    block = schedule.backward.block_v
    step = math.lcm(schedule.forward.block_v, schedule.merged("e", variant, stores=stores(variant, problem)) * block)
    return max(1, 2 ** (24 if by_stage else 26) // max(problem.shape[0], 1) // step) * step


class _Probable:
    """Bounds that fail with a probability of `random_error.FAILURE`, of which every output has the same share."""

    def __init__(self, outputs: int) -> None:
        self.share = 1 / outputs
        self.bounds: dict[str, Tensor] = {}

    def whole(self, output: str, random: RandomError) -> None:
        self.bounds[output] = likely(random, random.largest.numel(), self.share)

    def part(self, output: str, like: Tensor, columns: Tensor, random: RandomError) -> None:
        """Of an output that is like another, in some of its rows."""
        whole = self.bounds.setdefault(output, torch.zeros_like(like))
        whole[columns] = likely(random, like.numel(), self.share)


class _Ledger:
    """Books what stages may add: norms always, elements where they are few."""

    def __init__(self, by_stage: bool) -> None:
        self.by_stage = by_stage
        self.stages: dict[str, dict[str, Tensor]] = {}
        self.squares: dict[str, dict[str, float]] = {}

    def whole(self, output: str, terms: Terms) -> Tensor:
        """The total of an output that comes in one piece."""
        total = terms.total
        for stage, bound in terms.items() if self.by_stage else ():
            self._book(output, stage, bound)
            if total.numel() <= KEPT:
                self.stages.setdefault(output, {})[stage] = bound.expand(total.shape)
        return total

    def part(self, output: str, shape: tuple[int, ...], columns: Tensor, terms: Terms) -> Tensor:
        """The total of an output of the given shape in some of its rows."""
        for stage, bound in terms.items() if self.by_stage else ():
            self._book(output, stage, bound)
            if math.prod(shape) <= KEPT:
                kept = self.stages.setdefault(output, {})
                kept.setdefault(stage, bound.new_zeros(shape))[columns] = bound
        return terms.total

    def _book(self, output: str, stage: str, bound: Tensor) -> None:
        squares = self.squares.setdefault(output, {})
        squares[stage] = squares.get(stage, 0.0) + float(bound.double().square().sum())
