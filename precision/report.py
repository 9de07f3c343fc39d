"""`Report`: measured against budget, per variant and output, with full provenance. JSON is the record."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ccelab.kernels import Schedule, Statistics, Variant, default_schedule, launch, linear_cross_entropy
from ccelab.kernels.probe import own_logits
from ccelab.reference import Problem, Solution, double
from ccelab.reference.heads import Head

from .budget import budget
from .floors import Floor, floors
from .measure import Measurement, measure
from .provenance import Provenance, provenance
from .timing import Timing, timing

SCHEMA = 1
OUTPUTS = ("loss", "lse", "d_embeddings", "d_classifier", "d_bias")
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One variant on one head."""

    variant: str
    flags: dict[str, Any]
    schedule: str
    mean_loss: float
    mean_loss_error: float  # against the oracle
    mean_loss_error_own_logits: float  # against float64 log-softmax over the kernel's own fp32 logits
    outputs: dict[str, Measurement]
    tiles: dict[str, int]  # kept and skipped, per output; the oracle's bounds on kept
    filtered_mass: dict[str, float]  # mean and max over tokens of the probability in skipped tiles of dE
    within_budget: bool
    timing: Timing | None


@dataclass(kw_only=True)
class Report:
    """A head, the truth's own figures on it, and a `Result` per variant. `complete` says whether all were measured."""

    head: dict[str, Any]
    provenance: Provenance
    floors: dict[str, Floor]
    true_mean_loss: float
    results: list[Result] = field(default_factory=list)
    complete: bool = False
    schema: int = SCHEMA

    def to_json(self) -> str:
        """JSON without NaN or infinity literals, which other languages cannot read: they become strings."""
        return json.dumps(_plain(asdict(self)), indent=1, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Replaces `path` in one step: whoever reads it finds the old file or the new one, never a half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(self.to_json())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def build_report(
    head: Head,
    variants: Sequence[Variant],
    *,
    schedule: Schedule | None = None,
    path: Path | None = None,
    progress: Progress = lambda step: None,
    timed: bool = True,
) -> Report:
    """Measures each variant on `head` with the mean loss; writes `path` after each, so that an interruption loses one."""
    problem = Problem(embeddings=head.embeddings, classifier=head.classifier, targets=head.targets)
    schedule = schedule or default_schedule(problem.embeddings.dtype, len(problem.targets))
    progress("truth: float64 oracle")
    truth = double(problem)
    progress("truth: rounding floors")
    n, v, d = problem.shape
    report = Report(
        head={
            "name": head.name,
            "tokens": n,
            "vocabulary": v,
            "hidden": d,
            "dtype": str(problem.embeddings.dtype).removeprefix("torch."),
            **{key: head.provenance[key] for key in head.provenance},
        },
        provenance=provenance(problem.embeddings.device),
        floors=floors(problem, truth),
        true_mean_loss=float(truth.reduced),
    )
    progress("truth: the kernels' own logits")
    own_loss = own_mean_loss(problem, schedule)
    for variant in variants:
        report.results.append(_result(problem, truth, own_loss, variant, schedule, progress, timed))
        report.complete = len(report.results) == len(variants)
        if path is not None:
            report.write(path)
    return report


def own_mean_loss(problem: Problem, schedule: Schedule) -> float:
    """The mean loss in float64 over the kernel's own fp32 logits: every error but that of the products."""
    call = _call(problem, Variant(), schedule)
    n, v, _ = problem.shape
    target = torch.where(problem.valid, problem.targets, 0).long()[:, None]
    step = max(1, 2**26 // max(n, 1) // schedule.forward.block_v) * schedule.forward.block_v
    parts, target_logit = [], torch.zeros((n, 1), dtype=torch.float64, device=target.device)
    for first in range(0, v, step):
        logits = own_logits(call, first, min(first + step, v)).double()
        parts.append(logits.logsumexp(1, keepdim=True))
        here = (target >= first) & (target < first + logits.shape[1])
        picked = logits.gather(1, (target - first).clamp(0, logits.shape[1] - 1))
        target_logit += torch.where(here, picked, 0.0)
    loss = torch.cat(parts, 1).logsumexp(1, keepdim=True) - target_logit
    return float(torch.where(problem.valid[:, None], loss, 0.0).sum() / max(int(problem.valid.sum()), 1))


def _call(problem: Problem, variant: Variant, schedule: Schedule) -> launch.Call:
    return launch.Call(
        problem.embeddings,
        problem.classifier,
        problem.bias,
        problem.targets,
        problem.ignore_index,
        problem.softcap,
        variant,
        schedule,
    )


def run(problem: Problem, variant: Variant, schedule: Schedule) -> tuple[Solution, Statistics]:
    """The public call on the problem's rows, with per-token losses and the gradients of its reduced loss."""
    embeddings, classifier = (x.detach().requires_grad_() for x in (problem.embeddings, problem.classifier))
    bias = None if problem.bias is None else problem.bias.detach().requires_grad_()
    stats = Statistics()
    loss, lse = linear_cross_entropy(
        embeddings,
        classifier,
        problem.targets,
        linear_bias=bias,
        reduction="none",
        ignore_index=problem.ignore_index,
        softcap=problem.softcap,
        return_lse=True,
        variant=variant,
        schedule=schedule,
        stats=stats,
    )
    d_loss, d_lse = problem.upstream()
    torch.autograd.backward((loss, lse), (d_loss.float(), d_lse.float()))
    weights = problem.row_weights()
    reduced = loss.detach().sum(dtype=torch.float64) / (
        max(float(weights.sum()), 1.0) if problem.reduction == "mean" else 1
    )
    return Solution(
        loss=loss.detach(),
        reduced=loss.detach() if problem.reduction == "none" else reduced.float(),
        lse=lse.detach(),
        d_embeddings=embeddings.grad,
        d_classifier=classifier.grad,
        d_bias=None if bias is None else bias.grad,
    ), stats


def _result(
    problem: Problem,
    truth: Solution,
    own_loss: float,
    variant: Variant,
    schedule: Schedule,
    progress: Progress,
    timed: bool,
) -> Result:
    progress(f"{variant}: forward and backward")
    got, stats = run(problem, variant, schedule)
    progress(f"{variant}: error budget")
    allowed = budget(problem, variant, schedule, order=stats.order)
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
        mean_loss_error_own_logits=mean - own_loss,
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
        within_budget=all((m.over_budget or 0.0) <= 1 and not m.nonfinite_mismatches for m in outputs.values()),
        timing=timing(problem, variant, schedule) if timed else None,
    )
