"""The exact softmax of a trial's problem, and how far a computed one may be from it."""

from __future__ import annotations

from torch import Tensor

from ccelab.precision.forward_budget import forward_error
from ccelab.precision.gradient_budget import GradientBudget
from ccelab.reference.double import Stream

from .law import Trial


def softmax_and_error(trial: Trial) -> tuple[Tensor, Tensor]:
    """(N, V) float64 each, also of ignored rows."""
    schedule = trial.case.schedule
    stream = Stream(trial.case.problem())
    rows = stream.rows()
    error = forward_error(stream, rows, trial.variant, schedule, trial.arithmetic, by_stage=False)
    gradients = GradientBudget(stream, rows, trial.variant, schedule, error, trial.arithmetic, by_stage=False)
    (part,) = stream.residuals(rows)
    return part.softmax, gradients.softmax_error(part, gradients.logit_error(part)).largest
