"""A target that is no class is an error and never a number. It is found while the forward pass runs, which must not
follow it out of the classifier."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ccelab.kernels import linear_cross_entropy
from ccelab.properties.cases import DEVICE, DTYPES, SMALL

V, D = 11, 8


def call(*targets: int, kind: torch.dtype = torch.int64, dtype: torch.dtype = torch.bfloat16, **options: Any) -> None:
    e, c = (torch.zeros(*shape, D, dtype=dtype, device=DEVICE, requires_grad=True) for shape in ((2, 3), (V,)))
    target = torch.tensor(targets, dtype=kind, device=DEVICE).reshape(2, 3)
    loss = linear_cross_entropy(e, c, target, schedule=SMALL, **options)
    loss.backward()


@pytest.mark.parametrize("variant", ["cce", "cce,target=indexed", "cce-segment"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", [V, V + 20, -1, -99, -101, 2**31 - 1])
def test_a_target_out_of_range_never_gives_a_number(wrong: int, dtype: torch.dtype, variant: str) -> None:
    said = rf"2 target\(s\) out of range, the first is {wrong} at row 4; legal values: 0 to 10, or ignore_index=-100"
    for kind in (torch.int64, torch.int32):
        with pytest.raises(ValueError, match=said):
            call(0, -100, 1, 2, wrong, wrong, kind=kind, dtype=dtype, variant=variant)


def test_no_address_is_made_of_a_wrong_target() -> None:
    """It would be far outside of anything that is allocated."""
    with pytest.raises(ValueError, match="1 target"):
        call(0, 0, 0, 0, 0, 2**62, variant="cce,target=indexed")


def test_shift_hides_only_the_targets_that_it_cuts_off() -> None:
    call(V, 0, 0, -1, 0, 0, shift=1)
    with pytest.raises(ValueError, match="1 target"):
        call(0, 0, V, 0, 0, 0, shift=1)
