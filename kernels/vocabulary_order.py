"""The order in which a call's backward pass goes through the vocabulary, and where targets are in it."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import Call, matrix, options, vector
from .ordering import mean_logit_order, mean_prob_order
from .sampling import sample_rows


def vocabulary_order(call: Call, row_max: Tensor, log_sum: Tensor) -> Tensor | None:
    """(V,) int64 vocabulary ids in the order of the variant; None is the natural one."""
    e, c, bias = matrix(call.embeddings), matrix(call.classifier), vector(call.bias)
    if call.variant.order == "mean_logit":
        ids: Tensor = mean_logit_order(  # type: ignore[no-untyped-call]
            e, c, bias, vector(call.targets), call.shape, call.ignore_index, call.schedule.fp_fusion
        )
    elif call.variant.order == "mean_prob":
        tiles = call.schedule.backward
        sample = sample_rows(call.targets, call.ignore_index)
        ids = mean_prob_order(  # type: ignore[no-untyped-call]
            e, c, bias, row_max, log_sum, sample, call.cap, call.shape, tiles, options(tiles, call.schedule)
        )
    else:
        return None
    return ids


def places_of_targets(call: Call, order: Tensor | None) -> tuple[Tensor, int]:
    """(N,) where targets are in that order, and what marks rows that are ignored."""
    if order is None:
        return call.targets, call.ignore_index
    v, target = len(order), call.targets.long()
    place = torch.empty_like(order).scatter_(0, order, torch.arange(v, device=order.device))
    is_class = (target != call.ignore_index) & (target >= 0) & (target < v)
    return torch.where(is_class, place[target.clamp(0, v - 1)], -1), -1
