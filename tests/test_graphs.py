"""Graphs around a call: those of torch.compile, which it leaves, and CUDA graphs, which capture it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import PRESETS, Statistics, Variant, capture, launch, linear_cross_entropy
from ccelab.properties.cases import DEVICE, SMALL, draw

LOOKING = replace(SMALL, look_ahead=0)
"""Ahead, but for a host that may not wait."""

CAPTURED = [name for name in PRESETS if name != "cce-segment"]


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a CUDA graph captured."""
    monkeypatch.setattr(capture, "is_captured", lambda device: True)


def step(variant: str) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """A loss between two other operations, and both gradients."""

    def run(e: Tensor, c: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        e, c = e.detach().requires_grad_(), c.detach().requires_grad_()
        loss = linear_cross_entropy(e * 2, c, target, variant=variant, schedule=LOOKING) + 1
        return loss.detach(), *torch.autograd.grad(loss, (e, c))

    return run


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Dynamo's own
@pytest.mark.parametrize("variant", ["cce-exact", "cce-segment"])
def test_a_compiled_function_may_call_it(variant: str) -> None:
    case = draw(variant=variant)

    def around(e: Tensor, c: Tensor) -> Tensor:
        return linear_cross_entropy(e * 2, c, case.target, variant=variant, schedule=SMALL) + 1

    found = []
    for f in (around, torch.compile(around, backend="eager")):
        leaves = [x.detach().clone().requires_grad_() for x in (case.input, case.linear_weight)]
        loss = f(*leaves)
        found.append((loss, *torch.autograd.grad(loss, leaves)))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"variant": "cce-segment"}, "capture a variant of tiles without a tail, such as cce"),
        ({"variant": "cce-no-sort,tail=rank1"}, "capture a variant of tiles without a tail, such as cce"),
        ({"stats": Statistics()}, "stats= is for"),
    ],
)
def test_what_needs_a_host_is_not_captured(options: dict[str, Any], said: str) -> None:
    case = draw()
    with pytest.raises(RuntimeError, match=said):
        linear_cross_entropy(case.input, case.linear_weight, case.target, schedule=SMALL, **options)


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("cce-segment", "capture a variant of tiles"),
        ("cce-no-sort,eps=2^-6,tail=rank1", "capture a variant of tiles"),
        ("cce-stored", "capture the forward pass with it"),
    ],
)
def test_nor_is_a_backward_pass_alone(variant: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tail=rank1 it would drop the tail."""
    case = draw()
    leaf = case.input.clone().requires_grad_()
    loss = linear_cross_entropy(leaf, case.linear_weight, case.target, variant=variant, schedule=SMALL)
    monkeypatch.setattr(capture, "is_captured", lambda device: True)
    with pytest.raises(RuntimeError, match=said):
        loss.backward()


@pytest.mark.parametrize("is_captured", [True, False])
def test_no_host_looks_ahead_for_a_graph(is_captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "is_captured", lambda device: is_captured)
    case = draw()
    call = launch.Call(
        case.input, case.linear_weight, None, case.target, -100, None, Variant.of("cce-no-sort"), LOOKING
    )
    assert (launch.room_for(call, (True, True, False)).record is None) == is_captured


@pytest.mark.usefixtures("captured")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_captured_loss_of_a_wrong_target_is_nan(reduction: Any) -> None:
    case = draw(ignored=0)
    options: dict[str, Any] = {"schedule": SMALL, "reduction": reduction}
    right = linear_cross_entropy(case.input, case.linear_weight, case.target, **options)
    assert bool(right.isfinite().all())
    assert right.dtype == torch.float32
    e, target = case.input.clone().requires_grad_(), case.target.clone()
    target[3] = len(case.linear_weight)
    wrong = linear_cross_entropy(e, case.linear_weight, target, **options)
    wrong.sum().backward()
    assert bool(wrong.isnan().all())
    assert e.grad is not None
    assert bool(e.grad.isnan().any())


@pytest.mark.gpu
@pytest.mark.parametrize("variant", [*CAPTURED, "cce,order=mean_prob", "cce,target=indexed"])
def test_a_graph_repeats_what_it_captured(variant: str) -> None:
    """Of other numbers in the same memory, bit for bit."""
    run, first, second = step(variant), draw(variant=variant), draw(variant=variant, seed=1)
    args = [x.clone() for x in (first.input, first.linear_weight, first.target)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles
        run(*args)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(*args)
    for case in (first, second):
        given = (case.input, case.linear_weight, case.target)
        for place, x in zip(args, given, strict=True):
            place.copy_(x)
        graph.replay()
        for one, other in zip(found, run(*given), strict=True):
            assert torch.equal(one, other)


@pytest.mark.gpu
def test_a_graph_is_not_begun_with_what_needs_a_host() -> None:
    case = draw(variant="cce-segment")
    with pytest.raises(RuntimeError, match="capture a variant of tiles"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        step("cce-segment")(case.input, case.linear_weight, case.target)
    assert DEVICE == "cuda"
    torch.cuda.synchronize()
    step("cce")(case.input, case.linear_weight, case.target)
