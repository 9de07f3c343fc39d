"""Two reports of one head against each other: what got worse, beyond what noise explains.

The kernels are bitwise repeatable, so that on one machine and version every error repeats to its last digit, and any
change has a cause. Between versions or machines roundings fall otherwise. What that alone can move is the band:

- averages over n elements (normwise, rms): 2 %, and 3 standard deviations of either root mean square, 3 / sqrt(n);
- extremes (largest, worst row, worst / budget, errors of the mean loss): 25 %, since one element decides them; an
  error of the mean loss under one ulp of the loss itself counts as that ulp;
- signed bias: a tenth of the normwise error, below which it does not show;
- times, over a product in the same run: 5 %. Memory: 1 %. Neither is compared across devices.

`threshold` replaces the relative part of every band. Numbers without an order (mismatches, verdicts) have none: worse
by anything is worse.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from .report import Report, Result
from .verdict import Grade, failures


class Change(StrEnum):
    """In the order in which they are shown."""

    worse = "worse"
    better = "better"
    same = "same"


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One metric of one output of one variant."""

    variant: str
    output: str
    metric: str
    before: float | str
    after: float | str
    band: float  # the absolute difference that noise explains
    change: Change

    @property
    def ratio(self) -> float:
        if isinstance(self.before, str) or isinstance(self.after, str):
            return math.inf
        ratio = self.after / self.before if self.before else math.inf if self.after else 1.0
        return math.inf if math.isnan(ratio) else ratio


AVERAGES = ("normwise", "rms")
EXTREMES = ("largest", "worst_row_error", "over_budget")
COSTS = ("forward_over_product", "backward_over_product", "forward_mib", "backward_mib")
METRICS = (
    *AVERAGES,
    *EXTREMES,
    "signed_bias",
    "nonfinite_mismatches",
    "mean_loss_error",
    "mean_loss_error_own_logits",
    *COSTS,
    "verdict",
)


HEAD = (
    *("name", "tokens", "vocabulary", "hidden", "dtype", "softcap", "bias"),
    *("generator", "seed", "spread", "weights_sha256", "text_sha256", "window", "first token"),
    *("lifted from D", "lift seed"),
)
"""What makes two problems one: versions of what computed a head may differ."""


def diff(
    before: Report, after: Report, *, metrics: Collection[str] = METRICS, threshold: float | None = None
) -> list[Delta]:
    """Every metric of every variant of `before`, the worst regression first; a variant or output that is gone is one.

    Raises:
        ValueError: the reports are of different heads, or share no variant, or a metric is unknown.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"unknown metric {', '.join(unknown)}; legal: {', '.join(METRICS)}")
    if differ := [key for key in HEAD if before.head.get(key) != after.head.get(key)]:
        says = "; ".join(f"{key}: {before.head.get(key)} and {after.head.get(key)}" for key in differ)
        raise ValueError(f"the reports are of different heads ({says})")
    now = {result.variant: result for result in after.results}
    if not any(result.variant in now for result in before.results):
        names = (", ".join(result.variant for result in report.results) for report in (before, after))
        raise ValueError("the reports share no variant: {} before, {} after".format(*names))
    same_device = before.provenance.device == after.provenance.device
    found: list[Delta] = []
    for old in before.results:
        new = now.get(old.variant)
        if new is None:
            found.append(_exact(old.variant, "", "verdict", "measured", "gone", Change.worse))
        else:
            found += (d for d in _deltas(old, new, threshold, same_device) if d.metric in metrics or d.after == "gone")
    order = list(Change)
    return sorted(found, key=lambda d: (order.index(d.change), -abs(math.log(max(d.ratio, 1e-300)))))


def _deltas(old: Result, new: Result, threshold: float | None, same_device: bool) -> Iterator[Delta]:
    def delta(output: str, metric: str, a: float, b: float, relative: float, least: float = 0.0) -> Delta:
        band = (relative if threshold is None else threshold) * a + least
        a_is_number, b_is_number = not math.isnan(a), not math.isnan(b)
        if a_is_number and b_is_number:
            change = Change.worse if b > a + band else Change.better if b < a - band else Change.same
        else:  # an error that is no number is worse than any
            change = _compare(b_is_number, a_is_number)
        return Delta(variant=old.variant, output=output, metric=metric, before=a, after=b, band=band, change=change)

    for output, a in old.outputs.items():
        b = new.outputs.get(output)
        if b is None:
            yield _exact(old.variant, output, "verdict", "measured", "gone", Change.worse)
            continue
        for metric in AVERAGES:
            statistical = 3 / math.sqrt(a.elements) * getattr(a, metric)
            yield delta(output, metric, getattr(a, metric), getattr(b, metric), 0.02, statistical)
        for metric in EXTREMES:
            yield delta(output, metric, getattr(a, metric) or 0.0, getattr(b, metric) or 0.0, 0.25)
        yield delta(output, "signed_bias", abs(a.signed_bias), abs(b.signed_bias), 0.0, 0.1 * a.normwise)
        counts = a.nonfinite_mismatches, b.nonfinite_mismatches
        yield _exact(old.variant, output, "nonfinite_mismatches", float(counts[0]), float(counts[1]), _compare(*counts))
    ulp = abs(old.mean_loss) * 2.0**-23
    for metric in ("mean_loss_error", "mean_loss_error_own_logits"):
        yield delta("mean loss", metric, abs(getattr(old, metric)), abs(getattr(new, metric)), 0.25, ulp)
    if old.timing and new.timing and same_device:
        for metric in COSTS:
            a_cost, b_cost = getattr(old.timing, metric), getattr(new.timing, metric)
            yield delta("cost", metric, a_cost, b_cost, 0.01 if metric.endswith("mib") else 0.05)
    if old.verdict is None or new.verdict is None:  # schema 1 has none, but tells failures
        grades = [Grade.failed if failures(result) else Grade.passed for result in (old, new)]
    else:
        grades = [old.verdict.grade, new.verdict.grade]
    places = (list(Grade).index(grade) for grade in grades)
    yield _exact(old.variant, "", "verdict", str(grades[0]), str(grades[1]), _compare(*places))


def _exact(variant: str, output: str, metric: str, before: float | str, after: float | str, change: Change) -> Delta:
    return Delta(variant=variant, output=output, metric=metric, before=before, after=after, band=0.0, change=change)


def _compare(a: float, b: float) -> Change:
    return Change.worse if b > a else Change.better if b < a else Change.same
