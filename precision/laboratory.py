"""Fills a `Report`: the truth of a head once, then every variant against it, by one process or several."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Variant, default_schedule
from ccelab.reference import Problem, Solution, double
from ccelab.reference.heads import Head

from .arithmetic import own
from .attribution import Attribution, attribute
from .background import Background, background
from .budget import budget
from .call import own_mean_loss, run
from .condition import condition_sample
from .dead_rows import dead_rows
from .emulation import own_machine
from .floors import Floor, floors
from .heat_map import heat_map
from .measure import measure, worst_elements
from .memory import keep_freed_memory
from .names import OUTPUTS
from .provenance import head_facts, provenance
from .report import Report, Result
from .stage_table import stage_tables
from .stages import applying
from .survival import survival
from .timing import timing
from .verdict import judge

Progress = Callable[[str], None]


def build_report(
    head: Head,
    variants: Sequence[Variant],
    *,
    softcap: float | None = None,
    bias: Tensor | None = None,
    schedule: Schedule | None = None,
    path: Path | None = None,
    progress: Progress = lambda step: None,
    workers: int = 1,
    command: str | None = None,
    by_stage: bool = True,
) -> Report:
    """Measures each variant on `head` with the mean loss; writes `path` after each, so that an interruption loses one.

    `softcap` caps the logits and `bias` (V,) is added to them, which adds dbias to what is measured.

    With `workers` above 1 as many processes share the variants: worth it on a CPU, where one process fills one core.
    Results stand in the order of `variants` all the same. `command` measures this head again when ``--variant NAME`` is
    added to it. `by_stage` says which stages errors and budgets come from, at the cost of an emulation of the kernel.
    """
    problem = Problem(
        embeddings=head.embeddings, classifier=head.classifier, targets=head.targets, bias=bias, softcap=softcap
    )
    n, _, d = problem.shape
    schedule = schedule or default_schedule(problem.embeddings.dtype, n, d)
    progress("truth: float64 oracle")
    truth = double(problem)
    progress("truth: rounding floors")
    report = Report(
        head=head_facts(head, problem),
        provenance=provenance(problem.embeddings.device),
        floors=floors(problem, truth),
        true_mean_loss=float(truth.reduced),
    )
    progress("truth: the kernels' own logits")
    setup = _Setup(problem, schedule, own_mean_loss(problem, schedule), report.floors, command, by_stage)
    bench = _Bench(setup, truth)
    workers = min(workers, len(variants))
    measured = bench.one_by_one(variants, progress) if workers < 2 else bench.shared(variants, progress, workers)
    results: dict[int, Result] = {}
    for place, result in measured:
        results[place] = result
        report.results = [results[i] for i in sorted(results)]
        report.complete = len(results) == len(variants)
        if path is not None:
            report.write(path)
    return report


@dataclass(frozen=True, eq=False)
class _Setup:
    """What is asked of every variant; small enough to be sent to each worker."""

    problem: Problem
    schedule: Schedule
    own_loss: float
    floors: dict[str, Floor]
    command: str | None
    by_stage: bool


class _Bench:
    """What every variant is measured against."""

    def __init__(self, setup: _Setup, truth: Solution) -> None:
        self.setup, self.truth = setup, truth

    @cached_property
    def background(self) -> Background:
        return background(self.setup.problem)

    def one_by_one(self, variants: Sequence[Variant], progress: Progress) -> Iterator[tuple[int, Result]]:
        for place, variant in enumerate(variants):
            yield place, self.result(variant, progress)

    def shared(self, variants: Sequence[Variant], progress: Progress, workers: int) -> Iterator[tuple[int, Result]]:
        """Variants as they finish, those of many stages first. Workers leave Ctrl-C to this process, which ends them on
        any exception."""
        threads = max(1, (os.cpu_count() or 1) // workers)
        stages = [len(applying(variant, self.setup.problem)) for variant in variants]
        places = sorted(range(len(variants)), key=lambda place: -stages[place])
        context = multiprocessing.get_context("spawn")
        setup = (self.setup, threads)
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=setup)
        try:
            waiting = {pool.submit(_measure, variants[place]): place for place in places}
            progress(_pending(variants, waiting.values()))
            for done in as_completed(list(waiting)):
                yield waiting.pop(done), done.result()
                progress(_pending(variants, waiting.values()))
            pool.shutdown()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise

    def result(self, variant: Variant, progress: Progress) -> Result:
        problem, truth, schedule = self.setup.problem, self.truth, self.setup.schedule
        progress(f"{variant}: forward and backward")
        got, stats = run(problem, variant, schedule)
        progress(f"{variant}: error budget")
        by_stage = self.setup.by_stage
        allowed = budget(problem, variant, schedule, taken=stats, arithmetic=own(), by_stage=by_stage)
        outputs = {}
        for name in OUTPUTS:
            value, want, bound = (getattr(x, name) for x in (got, truth, allowed.bound))
            if value is not None and want is not None:
                outputs[name] = _Output(value, want, bound)
        measured = {name: measure(name, o.got, o.want, o.bound) for name, o in outputs.items()}
        mean = float(got.reduced)
        mass = stats.filtered_mass_e
        progress(f"{variant}: where the error is")
        tiles = {"d_embeddings": schedule.backward.block_n, "d_classifier": schedule.backward.block_v}
        orders = {"d_classifier": stats.order}
        gradients = {name: outputs[name] for name in tiles if name in outputs}
        dc = gradients.get("d_classifier")
        found: dict[str, Attribution] = {}
        if by_stage:
            found = attribute(problem, truth, got, variant, schedule, own_machine(), stats)
        progress(f"{variant}: timing")
        result = Result(
            variant=str(variant),
            flags=asdict(variant),
            schedule=str(schedule),
            mean_loss=mean,
            mean_loss_error=mean - float(truth.reduced),
            mean_loss_error_own_logits=mean - self.setup.own_loss,
            outputs=measured,
            tiles={
                "kept_e": stats.tiles_kept_e or 0,
                "skipped_e": stats.tiles_skipped_e or 0,
                "live_e_at_least": allowed.tiles_live_e[0],
                "live_e_at_most": allowed.tiles_live_e[1],
                "kept_c": stats.tiles_kept_c or 0,
                "skipped_c": stats.tiles_skipped_c or 0,
                "live_c_at_least": allowed.tiles_live_c[0],
                "live_c_at_most": allowed.tiles_live_c[1],
            },
            filtered_mass={"mean": float(mass.mean()), "max": float(mass.max())} if mass is not None else {},
            within_budget=allowed.miscounted(stats) is None
            and all((m.over_budget or 0.0) <= 1 and not m.nonfinite_mismatches for m in measured.values()),
            timing=timing(problem, variant, schedule),
            stages=stage_tables(allowed.stage_norms, found, {name: o.want for name, o in outputs.items()}),
            survival={name: survival(o.got, o.want, o.bound) for name, o in outputs.items()},
            heat_maps={
                name: heat_map(o.got, o.want, o.bound, tiles[name], orders.get(name)) for name, o in gradients.items()
            },
            conditions={
                name: condition_sample(o.got, o.want, self.background.absolute[name]) for name, o in gradients.items()
            },
            worst={name: worst_elements(o.got, o.want, o.bound) for name, o in outputs.items()},
            dead_rows=None if dc is None else dead_rows(dc.got, dc.want, self.background),
            reproduce=self.setup.command and f"{self.setup.command} --variant {shlex.quote(str(variant))}",
        )
        return replace(result, verdict=judge(result, self.setup.floors))


class _Output(NamedTuple):
    got: Tensor
    want: Tensor
    bound: Tensor


def _pending(variants: Sequence[Variant], places: Iterable[int]) -> str:
    left = [str(variants[place]) for place in sorted(places)]
    return f"{len(variants) - len(left)} of {len(variants)} variants measured; left: {', '.join(left)}"


_worker: _Bench


def _start_worker(setup: _Setup, threads: int) -> None:
    """The oracle is asked again: that takes less time than sending its answer."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    keep_freed_memory()
    _worker = _Bench(setup, double(setup.problem))


def _measure(variant: Variant) -> Result:
    return _worker.result(variant, lambda step: None)
