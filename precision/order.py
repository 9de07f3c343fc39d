"""The oracle's own vocabulary orders, for budgets and emulations where no kernel's order is at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Statistics, Variant
from ccelab.kernels.sampling import sample_rows
from ccelab.reference import Problem
from ccelab.reference.double import Stream


def order_of(problem: Problem, variant: Variant, taken: Statistics | None) -> Tensor | None:
    """(V,) vocabulary ids as a call took them, where it says so, and else the oracle's own; None is natural."""
    if taken is None or taken.order is None or variant.order == "none":
        return vocabulary_order(problem, variant)
    return taken.order


def vocabulary_order(problem: Problem, variant: Variant) -> Tensor | None:
    """(V,) vocabulary ids as the variant walks them, by float64 figures, ties in the natural order; None is natural."""
    if variant.order == "none":
        return None
    figures = _mean_logits(problem) if variant.order == "mean_logit" else mean_probabilities(problem)
    return torch.sort(figures, descending=True, stable=True).indices


def _mean_logits(problem: Problem) -> Tensor:
    stream = Stream(problem)
    mean = stream.embeddings.sum(0) / max(int(problem.valid.sum()), 1)
    logit = torch.cat([stream.classifier(columns) @ mean for columns in stream.columns()])
    return logit if problem.bias is None else logit + problem.bias.double()


def mean_probabilities(problem: Problem) -> Tensor:
    """(V,) over the rows that the kernel samples."""
    stream = Stream(problem)
    sample = sample_rows(problem.targets, problem.ignore_index)
    return torch.cat([part.softmax[sample].mean(0) for part in stream.residuals(stream.rows())])
