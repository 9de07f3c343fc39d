"""Relative errors of elements against their condition numbers: what cancellation explains, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

POINTS = 400
EXTREMES = 20  # of either coordinate: the largest are always among the points


@dataclass(frozen=True, kw_only=True)
class ConditionSample:
    """Elements of one gradient."""

    condition: list[float]  # sum of |terms| / |sum of terms|, at least 1
    error: list[float]  # |got - truth| / |truth|
    elements: int  # that could have been drawn: truth not 0, all finite


def condition_sample(got: Tensor, want: Tensor, absolute: Tensor) -> ConditionSample:
    """At most `POINTS` elements: the largest condition numbers, the largest relative errors, and the rest evenly spaced
    over the gradient, so that the same gradient always shows the same points."""
    conditions, errors, total = [], [], 0
    columns = want.shape[1]
    step = max(1, 2**24 // columns)
    stride = max(1, want.numel() // (POINTS - 2 * EXTREMES))
    for start in range(0, len(want), step):
        g, w = got[start : start + step].double().flatten(), want[start : start + step].flatten()
        usable = g.isfinite() & w.isfinite() & (w != 0)
        total += int(usable.sum())
        size = torch.where(usable, w.abs(), 1.0)
        condition = torch.where(usable, absolute[start : start + step].double().flatten() / size, 0.0)
        error = torch.where(usable, (g - w).abs() / size, -1.0)
        few = min(EXTREMES, len(w))
        even = torch.arange(-(start * columns) % stride, len(w), stride, device=w.device)
        chosen = torch.cat([condition.topk(few).indices, error.topk(few).indices, even]).unique()
        chosen = chosen[usable[chosen]]
        conditions.append(condition[chosen])
        errors.append(error[chosen])
    condition, error = torch.cat(conditions), torch.cat(errors)
    few = min(EXTREMES, len(error))
    extreme = torch.cat([condition.topk(few).indices, error.topk(few).indices])
    rest = torch.linspace(0, max(len(error) - 1, 0), min(len(error), POINTS - 2 * EXTREMES), device=error.device).long()
    chosen = torch.cat([extreme, rest]).unique()
    # The sum of |terms| is held in fp32 and a sum of one term is exact: rounding may put it below 1.
    return ConditionSample(
        condition=_digits(condition[chosen].clamp(min=1)), error=_digits(error[chosen]), elements=total
    )


def _digits(x: Tensor) -> list[float]:
    """Four digits: a point of a plot is not seen to move by the fifth."""
    return [float(f"{value:.4g}") for value in x.tolist()]
