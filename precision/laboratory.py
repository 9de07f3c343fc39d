"""Fills a `Report`: the truth of a head once, then every variant against it, by one process or several."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Variant, default_schedule
from ccelab.reference import Problem, Solution, double
from ccelab.reference.heads import Head

from .arithmetic import own
from .budget import budget
from .call import own_mean_loss, run
from .floors import floors
from .measure import measure
from .provenance import provenance
from .report import Report, Result
from .timing import timing

OUTPUTS = ("loss", "lse", "d_embeddings", "d_classifier", "d_bias")
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
) -> Report:
    """Measures each variant on `head` with the mean loss; writes `path` after each, so that an interruption loses one.

    `softcap` caps the logits and `bias` (V,) is added to them, which adds dbias to what is measured.

    With `workers` above 1 as many processes share the variants: worth it on a CPU, where one process fills one core.
    Results stand in the order of `variants` all the same.
    """
    problem = Problem(
        embeddings=head.embeddings, classifier=head.classifier, targets=head.targets, bias=bias, softcap=softcap
    )
    n, v, d = problem.shape
    schedule = schedule or default_schedule(problem.embeddings.dtype, n, d)
    progress("truth: float64 oracle")
    truth = double(problem)
    progress("truth: rounding floors")
    report = Report(
        head={
            "name": head.name,
            "tokens": n,
            "vocabulary": v,
            "hidden": d,
            "dtype": str(problem.embeddings.dtype).removeprefix("torch."),
            "softcap": softcap,
            "bias": bias is not None,
            **head.provenance,
        },
        provenance=provenance(problem.embeddings.device),
        floors=floors(problem, truth),
        true_mean_loss=float(truth.reduced),
    )
    progress("truth: the kernels' own logits")
    bench = _Bench(problem, schedule, truth, own_mean_loss(problem, schedule))
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


class _Bench:
    """What every variant is measured against."""

    def __init__(self, problem: Problem, schedule: Schedule, truth: Solution, own_loss: float) -> None:
        self.problem, self.schedule, self.truth, self.own_loss = problem, schedule, truth, own_loss

    def one_by_one(self, variants: Sequence[Variant], progress: Progress) -> Iterator[tuple[int, Result]]:
        for place, variant in enumerate(variants):
            yield place, self.result(variant, progress)

    def shared(self, variants: Sequence[Variant], progress: Progress, workers: int) -> Iterator[tuple[int, Result]]:
        """Variants as they finish. Workers leave Ctrl-C to this process, which ends them on any exception."""
        threads = max(1, (os.cpu_count() or 1) // workers)
        context = multiprocessing.get_context("spawn")
        setup = (self.problem, self.schedule, self.own_loss, threads)
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=setup)
        try:
            waiting = {pool.submit(_measure, variant): place for place, variant in enumerate(variants)}
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
        problem, truth, schedule = self.problem, self.truth, self.schedule
        progress(f"{variant}: forward and backward")
        got, stats = run(problem, variant, schedule)
        progress(f"{variant}: error budget")
        allowed = budget(problem, variant, schedule, order=stats.order, arithmetic=own())
        outputs = {}
        for name in OUTPUTS:
            value, want, bound = (getattr(x, name) for x in (got, truth, allowed.bound))
            if value is not None and want is not None:
                outputs[name] = measure(name, value, want, bound)
        mean = float(got.reduced)
        mass = stats.filtered_mass_e
        progress(f"{variant}: timing")
        return Result(
            variant=str(variant),
            flags=asdict(variant),
            schedule=str(schedule),
            mean_loss=mean,
            mean_loss_error=mean - float(truth.reduced),
            mean_loss_error_own_logits=mean - self.own_loss,
            outputs=outputs,
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
            and all((m.over_budget or 0.0) <= 1 and not m.nonfinite_mismatches for m in outputs.values()),
            timing=timing(problem, variant, schedule),
        )


def _pending(variants: Sequence[Variant], places: Iterable[int]) -> str:
    left = [str(variants[place]) for place in sorted(places)]
    return f"{len(variants) - len(left)} of {len(variants)} variants measured; left: {', '.join(left)}"


_worker: _Bench


def _start_worker(problem: Problem, schedule: Schedule, own_loss: float, threads: int) -> None:
    """The oracle is asked again: that takes less time than sending its answer."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _worker = _Bench(problem, schedule, double(problem), own_loss)


def _measure(variant: Variant) -> Result:
    return _worker.result(variant, lambda step: None)
