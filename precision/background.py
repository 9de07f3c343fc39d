"""What every variant's details need of the truth, computed once: sums of absolute terms, and how frequent words "
"are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.reference import Problem
from ccelab.reference.double import Stream


@dataclass(frozen=True, eq=False, kw_only=True)
class Background:
    """Of the exact residual g: the sums whose size against the result is an element's condition number."""

    absolute: dict[str, Tensor]  # per gradient: sum |g||c| of dE, sum |g||e| of dC, in fp32
    occurrences: Tensor  # (V,) how often each word is a target
    expected: Tensor  # (V,) float64, how often the softmax expects it


def background(problem: Problem) -> Background:
    """One more pass over the vocabulary in float64."""
    stream = Stream(problem)
    _, v, _ = problem.shape
    size_e = torch.zeros_like(stream.embeddings)
    size_c = torch.zeros(problem.classifier.shape, dtype=torch.float32, device=size_e.device)
    expected = size_e.new_zeros(v)
    for part in stream.residuals(stream.rows()):
        size_e.addmm_(part.residual.abs(), stream.classifier(part.columns).abs())
        size_c[part.columns] = (part.residual.abs().T @ stream.embeddings.abs()).float()
        expected[part.columns] = torch.where(stream.valid, part.softmax, 0.0).sum(0)
    targets = problem.targets[problem.valid].long()
    return Background(
        absolute={"d_embeddings": size_e.float(), "d_classifier": size_c},
        occurrences=torch.bincount(targets, minlength=v),
        expected=expected,
    )
