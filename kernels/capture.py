"""CUDA graphs: a call that is captured runs later, without its host, which then can refuse nothing."""

from __future__ import annotations

import torch

from .statistics import Statistics
from .variant import Variant


def is_captured(device: torch.device) -> bool:
    """Whether launches on `device` go into a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_capture(device: torch.device, variant: Variant, stats: Statistics | None, uses_up: bool = False) -> None:
    """Raises RuntimeError where a host takes part in a pass that is captured, or where that `uses_up` what a pass left
    to it that is not."""
    if not is_captured(device):
        return
    if variant.granularity == "segment" or variant.tail == "rank1":
        raise RuntimeError(
            "granularity=segment and tail=rank1 have the host count what rows keep, which a CUDA graph cannot: capture "
            "a variant of tiles without a tail, such as cce"
        )
    if stats is not None:
        raise RuntimeError("stats= is for the host, which a CUDA graph runs without: leave it out of what is captured")
    if uses_up:
        raise RuntimeError(
            "exponentials=stored are used up by one backward pass, and a CUDA graph may run it again: capture the "
            "forward pass with it"
        )
