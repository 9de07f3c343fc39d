"""What the public call takes in, and what autograd may ask of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from ccelab.kernels import PRESETS, linear_cross_entropy
from ccelab.properties.cases import DEVICE, DTYPES, draw, peaked, run


def test_a_penalty_on_gradients_is_refused() -> None:
    """torch's once_differentiable would return a gradient that no longer requires one: the penalty would vanish."""
    case = draw((5,), 9, 16, torch.float32)
    x = case.input.requires_grad_()
    loss = linear_cross_entropy(x, case.linear_weight, case.target, variant="cce-exact")
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (loss + gradient.square().sum()).backward()


@pytest.mark.parametrize("d", [7, 16, 20, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_tokens_are_no_loss(d: int, dtype: torch.dtype) -> None:
    """Whether a descriptor could load the rows or not."""
    e, c = torch.zeros((0, d), dtype=dtype, device=DEVICE), torch.ones((5, d), dtype=dtype, device=DEVICE)
    c.requires_grad_()
    loss = linear_cross_entropy(e, c, torch.zeros(0, dtype=torch.int64, device=DEVICE))
    loss.backward()
    assert float(loss.detach()) == 0
    assert c.grad is not None
    assert not bool(c.grad.any())


def test_a_view_that_is_negative_by_a_flag() -> None:
    """Kernels read memory: the flag of conj().imag must be honoured for inputs and upstream gradients."""
    case = draw((5,), 9, 16, torch.float32, reduction="none", lse=True)
    flagged = torch.complex(torch.zeros_like(case.input), -case.input).conj().imag
    assert flagged.is_neg()
    assert case.grad_loss is not None
    upstream = torch.complex(torch.zeros_like(case.grad_loss), -case.grad_loss).conj().imag
    one, other = run(case), run(replace(case, input=flagged, grad_loss=upstream))
    for name, output in one.outputs.items():
        assert torch.equal(output, other[name]), name


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"linear_bias": [0.0] * 9}, "linear_bias is a list"),
        ({"stats": {}}, "stats is a dict"),
        ({"softcap": True}, "softcap=True is not a number"),
        ({"softcap": torch.tensor(30.0)}, "is not a number"),
    ],
)
def test_what_is_of_no_use_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    case = draw((5,), 9, 16)
    with pytest.raises(TypeError, match=says):
        linear_cross_entropy(case.input, case.linear_weight, case.target, **change)


def test_numbers_of_any_kind_are_softcaps() -> None:
    case = draw((5,), 9, 16)
    kinds: list[Any] = [30, 30.0, np.float32(30), np.int64(30), Fraction(30)]
    losses = {
        float(linear_cross_entropy(case.input, case.linear_weight, case.target, softcap=softcap)) for softcap in kinds
    }
    assert len(losses) == 1


@pytest.mark.parametrize("mark", [2**53 + 1, 2**63 - 1, -(2**63)])
def test_ignore_index_may_be_any_int64(mark: int) -> None:
    case = draw((6,), 9, 16, reduction="none", ignored=0)
    x = case.target.clone()
    x[1] = mark
    loss = linear_cross_entropy(case.input, case.linear_weight, x, ignore_index=mark, shift=1, reduction="none")
    assert float(loss[0]) == 0
    with pytest.raises(ValueError, match="does not fit int64"):
        linear_cross_entropy(case.input, case.linear_weight, x, ignore_index=2**70)


@pytest.mark.parametrize("kind", [torch.int64, torch.float64, torch.complex64])
def test_autocast_does_not_make_numbers_of_anything(kind: torch.dtype) -> None:
    case = draw((5,), 9, 16)
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(TypeError, match="input is"):
        linear_cross_entropy(case.input.to(kind), case.linear_weight, case.target)


@pytest.mark.parametrize("variant", [*PRESETS, "cce-segment,eps=2^-6", "cce-no-sort,eps=2^-6,tail=rank1"])
def test_a_retained_graph_has_the_same_bits_again(variant: str) -> None:
    """Though a first pass writes over what the forward pass left to it."""
    case = peaked(d=35, variant=variant, reduction="mean")
    leaves = [x.detach().requires_grad_() for x in (case.input, case.linear_weight)]
    loss = linear_cross_entropy(leaves[0], leaves[1], case.target, variant=variant, schedule=case.schedule)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(loss, leaves), strict=True):
        assert torch.equal(one, other)
