"""The roundings of stored exponentials, in place of those of a softmax that is computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import stages
from .arithmetic import Arithmetic
from .formats import FP32
from .random_error import RandomError
from .stages import EXP_UNDERFLOW


@dataclass(frozen=True, eq=False)
class StoredSoftmax:
    """Of all entries but those that are a row's largest for certain: they are stored as 1, and the factor is their
    softmax, of the same logits and by the same differences as one that is computed again."""

    is_largest: Tensor  # (N, n)
    exponentials: RandomError  # (N, n) relative, as are the next two
    kept: Tensor
    restored: RandomError
    underflow: Tensor  # (N, n) absolute

    @classmethod
    def of(
        cls,
        is_largest: Tensor,
        distance: Tensor,
        exponent: Tensor,
        smaller: Tensor,
        log_s: Tensor,
        of_log: Tensor,
        arithmetic: Arithmetic,
    ) -> StoredSoftmax:
        """From the largest `distance` of a logit to its row's maximum, that and log s, and of the latter, known within
        `of_log`, what may be lost. The shift lies between the two, wherever the maximum was found."""
        certain = torch.zeros_like(is_largest)
        of_difference = FP32.half_ulp(distance)
        relative, least = stages.store_exponentials()
        # The factor's exponent is -log s at most.
        factor = (torch.exp(of_log - log_s) * (1 + 2.0**-16)).clamp(max=1)
        return cls(
            is_largest,
            stages.exponentials(of_difference, distance, distance, certain, arithmetic).masked(~is_largest),
            torch.where(is_largest, 0.0, relative),
            stages.restore_softmax(exponent, smaller, arithmetic).masked(~is_largest),
            torch.where(is_largest, 0.0, least * factor + 2 * EXP_UNDERFLOW),
        )
