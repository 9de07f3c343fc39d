"""`law`: makes a pytest test of a statement about one problem, and `Trial`: what the statement may do with it."""

from __future__ import annotations

import functools
import inspect
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, reject, settings, target
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from torch import Tensor

from ccelab.kernels import Schedule, Variant, default_schedule
from ccelab.precision.arithmetic import ANY, Arithmetic, own
from ccelab.precision.budget import budget
from ccelab.precision.measure import pattern, quotient

# By its full name: pytest loads the laws as `properties.law`, whose `.promises` is another module than adapters import.
from ccelab.properties.promises import Unsupported

from .cases import SMALL, Case, Outcome, Verdict, called, judge, run
from .conditions import Applies, always
from .spec import DTYPE, Spec
from .strategies import specs
from .subject import Subject, accepted

LAW_SHARE = 0.2
"""Of a profile's examples: one of a law takes half a second in the interpreter, and there are many laws."""

PATIENCE = 200
"""Examples that a subject may refuse before a law that has seen no other is given up: it is not applicable."""


@dataclass(frozen=True)
class Law:
    """A statement and where it holds."""

    statement: Callable[[Trial], None]
    variants: tuple[str, ...]  # judged where none is chosen: the fewest that cover what the law depends on
    when: Applies
    needs: frozenset[str]  # promises
    draw: st.SearchStrategy[Spec]
    examples: float  # scales the profile's number of them
    both_kinds: bool  # whether its examples must show tiles kept and tiles skipped

    @property
    def name(self) -> str:
        return self.statement.__name__.removeprefix("test_")

    @property
    def summary(self) -> str:
        """What it states: the first paragraph of its docstring, on one line."""
        return " ".join((inspect.getdoc(self.statement) or "").partition("\n\n")[0].split())

    def refusal(self, subject: Subject, variant: Variant) -> str | None:
        """Why the law is not applicable, or None."""
        if self.draw.is_empty:
            return "it is not about the chosen dtypes"
        if missing := sorted(self.needs - subject.promises):
            return f"{subject.name} does not promise {', '.join(missing)}"
        return self.when(variant)

    def check_kinds(self, bench: Bench) -> None:
        """After all examples: a law about filtering that saw none, or nothing else, has shown nothing."""
        if self.both_kinds and bench.replay is None and (bench.variant.filter_e or bench.variant.filter_c):
            assert all(bench.tiles.values()), f"in {bench.examples} examples, tiles were {bench.tiles}"

    def test(self, *phases: Phase) -> Any:
        """A function of a bench that tries the statement on drawn specs. The same profile draws the same ones."""

        @functools.wraps(self.statement)
        def test(bench: Bench, spec: Spec) -> None:
            try:
                trial = self._try(bench, spec)
                target(min(trial.largest, 2.0), label="error over budget")
            except Unsupported as reason:
                if not bench.examples and bench.refused >= PATIENCE:
                    pytest.skip(f"not applicable: {reason}")
                reject()

        del test.__wrapped__  # its signature is not the statement's
        if self.draw.is_empty:  # skipped with its reason; hypothesis would make a test without parameters of it
            marked: Any = functools.wraps(self.statement)(lambda bench: None)
            del marked.__wrapped__
            return marked
        return settings(
            max_examples=max(1, round(settings().max_examples * LAW_SHARE * self.examples)),
            suppress_health_check=[*HealthCheck],
            phases=phases,
            deadline=None,
        )(given(spec=self.draw)(test))

    def replay(self, bench: Bench, spec: Spec) -> None:
        """The statement on one example, which hypothesis has no part in: it would look for a smaller one."""
        try:
            self._try(bench, spec)
        except Unsupported as reason:
            pytest.skip(f"not applicable: {reason}")
        except HypothesisException:
            pytest.skip("not applicable: the law assumes what this example is not")

    def _try(self, bench: Bench, spec: Spec) -> Trial:
        """The statement on an example, which is counted, and saved where the law is broken.

        Raises:
            Unsupported: the subject does not take it.
            HypothesisException: an assumption does not hold.
        """
        bench.examples += 1
        trial = Trial(bench, spec)
        try:
            check_supported(bench.subject, spec)
            self.statement(trial)
        except Unsupported:
            bench.examples -= 1
            bench.refused += 1
            raise
        except HypothesisException:
            bench.examples -= 1
            raise
        except Exception as error:
            _keep(bench, spec, self.statement, error)
            raise
        return trial


@dataclass
class Bench:
    """One law on one variant of one subject, and what was seen."""

    subject: Subject
    variant: Variant
    failures: Path
    replay: Spec | None = None
    examples: int = 0
    failure: dict[str, Any] | None = None  # the smallest example found: its spec and what was said
    refused: int = 0  # as `Unsupported`
    closest: float = 0.0
    tiles: dict[str, int] = field(default_factory=lambda: {"kept": 0, "skipped": 0})

    def __repr__(self) -> str:
        return f"{self.subject.name}, {self.variant}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As hypothesis shows it, which would go through all fields."""
        printer.text(repr(self))


@dataclass
class Trial:
    """One example: the spec, and the subject's answers on it and on problems derived from it."""

    bench: Bench
    spec: Spec
    largest: float = 0.0  # error over budget

    @property
    def variant(self) -> Variant:
        return self.bench.variant

    @property
    def is_filtered(self) -> bool:
        return self.variant.filter_e or self.variant.filter_c

    @functools.cached_property
    def case(self) -> Case:
        return self.made(self.variant)

    def made(self, variant: Variant) -> Case:
        """The call of the spec for a variant, under the schedule that the subject takes."""
        return self.spec.case(variant, self.schedule)

    @property
    def schedule(self) -> Schedule:
        return SMALL if "schedule" in self.bench.subject.promises else self.default_schedule

    @property
    def arithmetic(self) -> Arithmetic:
        """What the subject computes in: of others' kernels nothing is known."""
        return own() if self.bench.subject.name == "ours" else ANY

    @property
    def default_schedule(self) -> Schedule:
        return default_schedule(DTYPE[self.spec.dtype], self.spec.n, self.spec.d)

    def pick(self, low: int, high: int) -> int:
        """A number in low..high that the spec's seed decides."""
        return low + (self.spec.seed * 2654435761 >> 8) % (high - low + 1)

    @functools.cached_property
    def outcome(self) -> Outcome:
        return self.run(self.case)

    def run(self, case: Case) -> Outcome:
        """The subject's answers. Tiles kept and skipped are counted for the law's report."""
        outcome = run(case, accepted(self.bench.subject))
        stats = outcome.stats
        kept = (stats.tiles_kept_e or 0) + (stats.tiles_kept_c or 0)
        skipped = (stats.tiles_skipped_e or 0) + (stats.tiles_skipped_c or 0)
        self.bench.tiles["kept"] += kept
        self.bench.tiles["skipped"] += skipped
        if kept and skipped:
            event("tiles kept and skipped")
        return outcome

    def uncounted(self, case: Case) -> Outcome:
        """The answers of a subject that is not asked what it dropped."""
        return run(case, accepted(self.bench.subject), counts=False)

    def call(self, case: Case, input: Tensor, linear_weight: Tensor) -> Tensor:
        """The subject's loss at other leaves, its graph with it."""
        given = replace(case, input=input, linear_weight=linear_weight)
        loss: Tensor = called(given, accepted(self.bench.subject))
        return loss

    def judge(self, case: Case | None = None, outcome: Outcome | None = None) -> Verdict:
        """Every output within its budget."""
        case = self.case if case is None else case
        outcome = self.run(case) if outcome is None else outcome
        budgeted = case if self.bench.subject.budget is None else replace(case, variant=self.bench.subject.budget)
        verdict = judge(budgeted, outcome, arithmetic=self.arithmetic)
        for name, ratio in verdict.ratios.items():
            self._approach(ratio, functools.partial(self._overspent, name, budgeted, verdict))
        return verdict

    def _overspent(self, name: str, case: Case, verdict: Verdict) -> str:
        """Where the output is over its budget, and what the budget there is made of."""
        got, want, bound = verdict.outcome[name], getattr(verdict.truth, name), getattr(verdict.budget.bound, name)
        taken = verdict.outcome.stats
        variant, arithmetic = Variant.of(case.variant), self.arithmetic
        by_stage = budget(case.problem(), variant, case.schedule, taken=taken, arithmetic=arithmetic, by_stage=True)
        terms = by_stage.terms_at(name, _worst_place(got.reshape(want.shape), want, bound))
        made_of = ", ".join(f"{stage} {bound:.1e}" for stage, bound in terms.items())
        return f"{self._worst(name, got, want, bound)}. Allowed by stage: {made_of or 'nothing'}"

    def bounded(self, what: str, got: Tensor, want: Tensor, bound: Tensor) -> None:
        """|got - want| <= bound, elementwise."""
        error = (got.double() - want.double()).abs()
        largest = float(quotient(error, bound.double()).max()) if error.numel() else 0.0
        self._approach(largest, lambda: self._worst(what, got, want.double(), bound.double()))

    def same(self, one: Outcome | Tensor, other: Outcome | Tensor, *names: str) -> None:
        """Bit for bit the same numbers (NaN as NaN, -0 as 0); for outcomes, all outputs or the named ones."""
        if isinstance(one, Tensor) or isinstance(other, Tensor):
            assert isinstance(one, Tensor)
            assert isinstance(other, Tensor)
            self._same(names[0] if names else "output", one, other)
            return
        for name in names or one.outputs:
            if name in one.outputs:
                self._same(name, one[name], other[name])

    def _same(self, name: str, one: Tensor, other: Tensor) -> None:
        assert one.shape == other.shape, f"{name}: shape {tuple(one.shape)} and {tuple(other.shape)}"
        alike = (one == other) | (one.isnan() & other.isnan())
        if not bool(alike.all()):
            place = tuple(int(i) for i in (~alike).nonzero()[0])
            raise AssertionError(
                f"{name} differs in {int((~alike).sum())} of {alike.numel()} elements; first at {place}: "
                f"{_hex(one[place])} and {_hex(other[place])}"
            )

    def _approach(self, ratio: float, explain: Callable[[], str]) -> None:
        self.bench.closest = max(self.bench.closest, ratio)
        self.largest = max(self.largest, ratio)
        assert ratio <= 1, explain()

    def _worst(self, name: str, got: Tensor, want: Tensor, bound: Tensor) -> str:
        got, want, bound = (x.reshape(want.shape) for x in (got, want, bound))
        error = (got.double() - want).abs()
        ratio = quotient(error, bound)
        at = _worst_place(got, want, bound)
        return (
            f"{name}{list(at)} is {_hex(got[at])}, the truth is {float(want[at])!r}: off by {float(error[at]):.3e}, "
            f"allowed {float(bound[at]):.3e}; {int((ratio > 1).sum())} of {ratio.numel()} elements are over"
        )


def _worst_place(got: Tensor, want: Tensor, bound: Tensor) -> tuple[int, ...]:
    """Of the largest error over its bound, NaN on one side only before all; the three have one shape."""
    ratio = torch.where(want.isnan() != got.isnan(), torch.inf, quotient((got.double() - want).abs(), bound))
    place = torch.unravel_index(ratio.argmax(), want.shape) if want.ndim else ()
    return tuple(int(i) for i in place)


def _hex(x: Tensor) -> str:
    return f"{float(x)!r} ({pattern(x)})"


def check_supported(subject: Subject, spec: Spec) -> None:
    """Whether the subject promises to take the spec's options.

    Raises:
        Unsupported: it does not.
    """
    wants = {
        "bias": spec.bias is not None,
        "softcap": spec.softcap is not None,
        "lse": spec.lse,
        "float16": spec.dtype == "float16",
        "float32": spec.dtype == "float32",
        "ignored-is-zero": spec.reduction == "mean" and spec.n == 1 and spec.ignored > 0,  # a mean over nothing
    }
    if missing := [name for name, wanted in wants.items() if wanted and name not in subject.promises]:
        raise Unsupported(f"{subject.name} does not promise {', '.join(missing)}")


def law(
    *variants: str,
    when: Applies = always,
    needs: Sequence[str] = (),
    draw: st.SearchStrategy[Spec] | None = None,
    examples: float = 1.0,
    both_kinds: bool = False,
) -> Callable[[Callable[[Trial], None]], Any]:
    """Makes a test of a statement. `examples` scales the profile's number of them, for costly or for simple laws."""

    def make(statement: Callable[[Trial], None]) -> Any:
        made = Law(statement, variants, when, frozenset(needs), specs() if draw is None else draw, examples, both_kinds)
        test = made.test(*(phase for phase in Phase if phase is not Phase.explain))  # it traces every line of Triton
        test.law = made
        return test

    return make


def _keep(bench: Bench, spec: Spec, statement: Callable[..., None], error: Exception) -> None:
    """Saves the example and says how to come back to it. The last one kept is the smallest that was found."""
    law_name = statement.__name__
    path = bench.failures / f"{law_name.removeprefix('test_')}-{zlib.crc32(str(bench.variant).encode()):08x}.json"
    spec.save(path)
    bench.failure = {"spec": asdict(spec), "message": str(error) or type(error).__name__}
    judged = f"--variant '{bench.variant}'" if bench.subject.budget is None else f"--subject {bench.subject.name}"
    summary = (statement.__doc__ or "").strip().partition("\n")[0]
    error.add_note(
        f"law: {summary}\non: {bench.subject.name}, {bench.variant}, {spec}\n"
        f"again: pytest --pyargs ccelab.properties -k {law_name} {judged} --replay {path}"
    )
