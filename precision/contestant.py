"""One row of a bench while it is made: a call, the check that comes before any clock, and what went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Statistics, Variant, linear_cross_entropy
from ccelab.reference import Problem, Solution

from . import table1
from .bench import Status
from .floors import Floor
from .measure import measure
from .subjects import NotInstalled, Unsupported, accepted, catalogue, find, version_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Contestant:
    """`call` is None for what cannot be called at all, and `reason` says why."""

    name: str
    call: Callable[..., Any] | None
    paper: str | None = None
    version: str | None = None
    reason: str | None = None
    is_ours: bool = False

    def forward(self, problem: Problem, leaves: Sequence[Tensor], **options: Any) -> Tensor:
        """The mean loss of (E, C), which `leaves` are, with the problem's targets, softcap and weights."""
        assert self.call is not None
        loss = self.call(*leaves, problem.targets, reduction=problem.reduction, softcap=problem.softcap, **options)
        return mean_loss(problem, loss)

    def both(self, problem: Problem, leaves: Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
        """The mean loss, dE and dC."""
        loss = self.forward(problem, leaves, **options)
        return loss, *torch.autograd.grad(loss, leaves)


class Wrong(Exception):
    """An answer that is no nearer to the truth than zeros, or of another shape, dtype or finiteness."""


def mean_loss(problem: Problem, loss: Tensor) -> Tensor:
    """() of what a call gives, or of the losses of tokens with their weights, which are `grad_loss`.

    Raises:
        Wrong: there is not a loss for every token.
    """
    if problem.grad_loss is None:
        return loss
    if not isinstance(loss, Tensor) or loss.shape != problem.grad_loss.shape:
        raise Wrong(f"reduction='none' gives no loss for every token, but {type(loss).__name__} of another shape")
    return (loss * problem.grad_loss).sum()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the check before the clock found."""

    errors: dict[str, float]
    over_floor: dict[str, float]
    kept: dict[str, float]


def gather(variants: Iterable[str], subjects: Iterable[str], *, papers: bool = False) -> list[Contestant]:
    """The named variants and subjects, and with `papers` the rows of the paper's Table 1 before them; each once.

    Raises:
        ValueError: a variant or a subject is unknown; the message says what is legal.
    """
    named = catalogue()
    rows = table1.ROWS if papers else ()
    labels = {row.variant or row.subject: row.label for row in table1.ROWS}
    variants = [str(Variant.parse(name)) for name in variants]
    wanted = [(row.variant, row.subject) for row in rows]
    wanted += [(name, None) for name in variants] + [(None, name) for name in subjects]
    made: dict[str, Contestant] = {}
    for variant, subject in wanted:
        name = variant or subject or ""
        if name not in made:
            made[name] = _variant(name, labels.get(name)) if variant else _subject(name, named, labels.get(name))
    return list(made.values())


def _variant(name: str, paper: str | None) -> Contestant:
    call = partial(linear_cross_entropy, variant=Variant.parse(name))
    version = version_of(linear_cross_entropy)
    return Contestant(name=name, call=call, paper=paper, version=version, is_ours=True)


def _subject(name: str, named: dict[str, str], paper: str | None) -> Contestant:
    try:
        call = find(name, named)
    except NotInstalled as missing:
        return Contestant(name=name, call=None, paper=paper, reason=str(missing))
    return Contestant(name=name, call=accepted(call), paper=paper, version=version_of(call))


def check(one: Contestant, problem: Problem, truth: Solution, floors: dict[str, Floor]) -> Checked:
    """Errors against the truth, of a subject that may then be timed.

    Raises:
        Wrong: it computes something else. The one threshold is the error of zeros: what it is that a clock must not
            see is work left undone, and how right an answer is, its errors say.
    """
    stats = Statistics() if one.is_ours else None
    leaves = leaves_of(problem)
    loss = one.forward(problem, leaves, **({"stats": stats} if stats else {}))
    if not isinstance(loss, Tensor) or loss.ndim:
        raise Wrong(f"the mean loss is a {type(loss).__name__} that is no single number")
    want = float(mean_loss(problem, truth.reduced))
    mean = float(loss.detach())
    errors = {"loss": abs(mean - want)}
    if not errors["loss"] < abs(want) and errors["loss"] != 0:
        raise Wrong(f"the mean loss is {mean:.6g}, the truth {want:.6g}")
    names = ("d_embeddings", "d_classifier")
    gradients = torch.autograd.grad(loss, leaves)
    for name, got, leaf in zip(names, gradients, leaves, strict=True):
        if got.dtype != leaf.dtype:
            raise Wrong(f"{name} is {got.dtype}, its input {leaf.dtype}")
        expected = getattr(truth, name)
        found = measure(name, got, expected)
        if found.nonfinite_mismatches:
            raise Wrong(f"{name} has {found.nonfinite_mismatches} elements that are NaN or infinite and should not be")
        if found.normwise >= 1:
            raise Wrong(f"{name} is no nearer to the truth than zeros: its error is {found.normwise:.3g}")
        errors[name] = found.normwise
    times = {name: floors[name].times(errors[name]) for name in names}
    over = {name: ratio for name, ratio in times.items() if ratio is not None}
    return Checked(errors=errors, over_floor=over, kept=stats.kept() if stats else {})


def leaves_of(problem: Problem) -> tuple[Tensor, Tensor]:
    """E and C as a training step has them: they want gradients."""
    return problem.embeddings.detach().requires_grad_(), problem.classifier.detach().requires_grad_()


def status_of(error: Exception) -> Status:
    """Which row an exception of a subject makes."""
    if isinstance(error, Unsupported):
        return Status.unsupported
    if isinstance(error, Wrong):
        return Status.refused
    # On a CPU torch raises a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return Status.out_of_memory
    return Status.failed


def reason_of(error: Exception) -> str:
    """One line: messages of compilers and allocators go on for pages."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = first if isinstance(error, Unsupported | Wrong) else f"{type(error).__name__}: {first}"
    return said if len(said) <= 300 else f"{said[:299]}…"
