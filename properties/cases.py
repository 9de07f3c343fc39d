"""One call of `linear_cross_entropy` as a value: draw it, run it, judge every output against its budget.

Rows are numbered as the kernels number them, so that outputs, `Problem` and `Budget` agree element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import ProductTiles, Schedule, Statistics, Tiles, Variant, linear_cross_entropy
from ccelab.precision.arithmetic import Arithmetic, own
from ccelab.precision.budget import Budget, budget
from ccelab.precision.measure import worst_ratio
from ccelab.reference import Problem, Reduction, Solution, double

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GRADIENTS = ("d_embeddings", "d_classifier", "d_bias")

SMALL = Schedule(
    forward=Tiles(block_n=16, block_v=32, block_d=16),
    backward=Tiles(block_n=16, block_v=16, block_d=32),
    product=ProductTiles(rows=16, columns=32, depth=16, warps=4, stages=2),
    splits=2,
    group=2,
    words_per_increment=32,
    rows_per_increment=32,
    row_blocks=2,
)
"""Tiles so small that ragged problems of interpreter size exceed two of them in each of N, V and D, two increments of
two tiles (dE's of three where it drops nothing), two groups, and the blocks of rows that are computed at once."""

Subject = Callable[..., Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """Arguments of a call, what comes from upstream, and which gradients are asked for."""

    input: Tensor  # (..., D), as are the next two in the call
    linear_weight: Tensor  # (V, D)
    target: Tensor  # (...)
    linear_bias: Tensor | None = None
    reduction: Reduction = "mean"
    ignore_index: int = -100
    softcap: float | None = None
    shift: int = 0
    grad_loss: Tensor | None = None  # None is ones
    grad_lse: Tensor | None = None  # None: the lse is not asked for
    wanted: tuple[bool, bool, bool] = (True, True, True)
    variant: str | Variant = "cce"
    schedule: Schedule = SMALL

    def problem(self) -> Problem:
        return Problem.from_call(
            self.input,
            self.linear_weight,
            self.target,
            linear_bias=self.linear_bias,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            softcap=self.softcap,
            shift=self.shift,
            grad_loss=self.grad_loss,
            grad_lse=self.grad_lse,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What a call returned, by the names of `Solution`, flat; an output that was not asked for is missing."""

    outputs: dict[str, Tensor]
    stats: Statistics

    def __getitem__(self, name: str) -> Tensor:
        return self.outputs[name]


@dataclass(frozen=True, eq=False, kw_only=True)
class Verdict:
    """The worst error of each output over its bound; inf where an element is NaN or infinite on one side only."""

    ratios: dict[str, float]
    truth: Solution
    budget: Budget
    outcome: Outcome

    @property
    def within(self) -> bool:
        return all(ratio <= 1 for ratio in self.ratios.values())


def draw(
    leading: tuple[int, ...] = (37,),
    v: int = 75,
    d: int = 70,
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    scale: float = 0.25,
    ignored: int = 2,
    bias: torch.dtype | None = None,
    upstream: bool = True,
    lse: bool = False,
    **options: Any,
) -> Case:
    """Gaussian E and C with logits of a standard deviation of about `scale` sqrt(d), some rows ignored."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    target = torch.randint(0, v, leading, generator=g)
    # The rest of the last tile belongs to nobody: its neighbour, the last class, is the one to get wrong.
    flat = target.reshape(-1)
    flat[-1:] = v - 1
    flat[1 : 1 + ignored] = options.get("ignore_index", -100)
    shifted = (*leading[:-1], leading[-1] - options.get("shift", 0)) if leading else ()
    reduced = options.get("reduction", "mean") != "none"
    case: dict[str, Any] = {
        "input": (normal(*leading, d) * scale).to(DEVICE, dtype),
        "linear_weight": normal(v, d).to(DEVICE, dtype),
        "target": flat.reshape(leading).to(DEVICE),
        "linear_bias": None if bias is None else normal(v).to(DEVICE, bias),
        "grad_loss": normal(*(() if reduced else shifted)).float().to(DEVICE) if upstream else None,
        "grad_lse": normal(*shifted).float().to(DEVICE) / 4 if lse else None,
    }
    return Case(**{**case, **options})


def peaked(n: int = 37, v: int = 75, d: int = 70, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Case:
    """Rows that hesitate between two of six classes and are sure that it is none of the others: what filters live on.

    In the natural order the six lie in the first, the middle and the last tiles of the vocabulary, and those between
    hold nothing worth a gradient; sorted by mean logit the six fill the first. Peaks rise with what the default eps
    of the dtype counts as nothing.
    """
    case = draw((n,), v, d, dtype, **options)
    g = torch.Generator().manual_seed(1)
    six = torch.tensor([0, 1, v // 2, v // 2 + 1, v - 2, v - 1])
    one, other = (six[torch.randint(0, 6, (n,), generator=g)].to(case.target.device) for _ in range(2))
    height = {torch.bfloat16: 0.3, torch.float16: 0.4, torch.float32: 0.7}[dtype]
    points = height * (case.linear_weight[one].double() + case.linear_weight[other].double())
    return replace(
        case, input=points.to(dtype), target=torch.where(case.target == case.ignore_index, case.target, other)
    )


def with_gaps(x: Tensor, between: float = 0.0) -> Tensor:
    """`x` as every second row of a larger tensor, whose other rows are `between`."""
    wide = x.new_full((2 * len(x), *x.shape[1:]), between)
    wide[::2] = x
    return wide[::2]


def run(case: Case, subject: Subject = linear_cross_entropy, *, counts: bool = True) -> Outcome:
    """Forward and backward; gradients arrive at fresh leaves, upstream ones keep their strides. Without `counts` the
    subject is not asked for statistics."""
    stats = Statistics()
    given = (case.input, case.linear_weight, case.linear_bias)
    leaves = [x.detach().requires_grad_(w) if x is not None else None for x, w in zip(given, case.wanted, strict=True)]
    given_leaves = replace(case, input=leaves[0], linear_weight=leaves[1], linear_bias=leaves[2])  # type: ignore[arg-type]
    result = called(given_leaves, subject, stats if counts else None)
    loss, lse = result if case.grad_lse is not None else (result, None)
    outputs = {"reduced": _rows(loss, case.shift)}
    if case.reduction == "none":
        outputs["loss"] = outputs["reduced"]
    if lse is not None:
        outputs["lse"] = _rows(lse, case.shift)
    into = [x for x in leaves if x is not None and x.requires_grad]
    if into:
        ends = [loss] if lse is None else [loss, lse]
        grads = [torch.ones_like(loss) if case.grad_loss is None else case.grad_loss, case.grad_lse][: len(ends)]
        found = iter(torch.autograd.grad(ends, into, grads))
        for name, leaf in zip(GRADIENTS, leaves, strict=True):
            if leaf is not None and leaf.requires_grad:
                gradient = next(found)
                assert gradient.dtype == leaf.dtype
                assert gradient.shape == leaf.shape
                outputs[name] = gradient.reshape(-1, gradient.shape[-1]) if name == "d_embeddings" else gradient
    return Outcome(outputs=outputs, stats=stats)


def called(case: Case, subject: Subject, stats: Statistics | None = None) -> Any:
    """What the subject returns for the case."""
    return subject(
        case.input,
        case.linear_weight,
        case.target,
        linear_bias=case.linear_bias,
        reduction=case.reduction,
        ignore_index=case.ignore_index,
        softcap=case.softcap,
        shift=case.shift,
        return_lse=case.grad_lse is not None,
        variant=case.variant,
        schedule=case.schedule,
        stats=stats,
    )


def _rows(output: Tensor, shift: int) -> Tensor:
    """An output per token as the kernel's rows, 0 where `shift` cut one off; a reduced one as it is."""
    output = output.detach()
    return torch.nn.functional.pad(output, (0, shift)).reshape(-1) if output.ndim and shift else output.reshape(-1)


def judge(
    case: Case, outcome: Outcome | None = None, *, problem: Problem | None = None, arithmetic: Arithmetic | None = None
) -> Verdict:
    """Every output of `outcome`, or of a run of `case`, against oracle and budget; `problem` where the case is cast,
    `arithmetic` where the outcome is not of our own kernels."""
    outcome = run(case) if outcome is None else outcome
    problem = case.problem() if problem is None else problem
    truth = double(problem)
    arithmetic = own() if arithmetic is None else arithmetic
    limit = budget(problem, Variant.of(case.variant), case.schedule, taken=outcome.stats, arithmetic=arithmetic)
    ratios = {
        name: worst_ratio(got, getattr(truth, name), getattr(limit.bound, name))
        for name, got in outcome.outputs.items()
    }
    return Verdict(ratios=ratios, truth=truth, budget=limit, outcome=outcome)


def assert_within_budget(case: Case, outcome: Outcome | None = None, *, problem: Problem | None = None) -> Verdict:
    """Judges the case and the number of tiles its filters kept."""
    verdict = judge(case, outcome, problem=problem)
    assert verdict.within, f"{case.variant}, {case.input.dtype}, {tuple(case.input.shape)}: {verdict.ratios}"
    miscounted = verdict.budget.miscounted(verdict.outcome.stats)
    assert miscounted is None, f"{case.variant}: {miscounted}"
    return verdict
