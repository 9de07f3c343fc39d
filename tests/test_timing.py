"""What is timed is what a call does, each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import PRESETS, Variant, gradients
from ccelab.precision import timing as module
from ccelab.precision.timing import nothing, timing
from ccelab.properties.cases import SMALL, peaked


@pytest.mark.parametrize("variant", [*PRESETS, "cce-segment,eps=2^-6", "cce-no-sort,eps=2^-6,tail=rank1"])
def test_a_backward_pass_that_is_timed_again_is_the_same(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though it may write over what the forward pass left to it."""
    found: list[tuple[Tensor | None, ...]] = []
    form = gradients.backward

    def note(*arguments: Any) -> Any:
        found.append(form(*arguments))
        return found[-1]

    def pair(
        product: Callable[[], None], work: Callable[[], None], *, before: Callable[[], None] = nothing
    ) -> tuple[float, float]:
        before()
        product()
        work()
        return 1.0, 1.0

    def peak(work: Callable[[], None], device: torch.device, *, before: Callable[[], None] = nothing) -> float:
        before()
        work()
        return 1.0

    monkeypatch.setattr(module, "has_clock", lambda device: True)
    for name, stand_in in (("pair", pair), ("peak", peak)):
        monkeypatch.setattr(module, name, stand_in)
    monkeypatch.setattr(gradients, "backward", note)
    timing(peaked(d=35, variant=variant).problem(), Variant.of(variant), SMALL, repetitions=1)
    assert len(found) == 5
    for other in found[1:]:
        for one, two in zip(found[0][:2], other[:2], strict=True):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)
