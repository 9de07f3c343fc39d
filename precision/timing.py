"""How long a call takes on a GPU, beside one cuBLAS product of the same shape in the same run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from ccelab.kernels import Schedule, Variant, gradients, launch
from ccelab.kernels.upstream import Upstream
from ccelab.reference import Problem

from .call import launch_call

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Of repetitions: the median and the quartiles."""

    median: float
    first_quartile: float
    third_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least two values."""
        first, middle, third = quantiles(values, n=4, method="inclusive")
        return cls(median=middle, first_quartile=first, third_quartile=third)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians, in milliseconds, after warm-up, interleaved with the product; memory in MiB beyond the inputs."""

    product_ms: float
    forward_ms: float
    backward_ms: float
    forward_over_product: float  # median of the ratios of neighbours
    backward_over_product: float
    forward_mib: float
    backward_mib: float  # the gradients themselves included
    repetitions: int


def timing(problem: Problem, variant: Variant, schedule: Schedule, repetitions: int = 9) -> Timing | None:
    """None on a CPU, where the interpreter's time says nothing."""
    if not has_clock(problem.embeddings.device):
        return None
    e, c = problem.embeddings, problem.classifier
    call = launch_call(problem, variant, schedule)
    n, v, _ = problem.shape
    logits = torch.empty((n, v), dtype=e.dtype, device=e.device)
    grad = torch.full((n,), 1 / n, dtype=torch.float32, device=e.device)
    upstream = Upstream(dloss=grad, dlse=None, even=True)
    wanted = (True, True, problem.bias is not None)
    room = launch.room_for(call, wanted)  # counted with neither pass: it is what one hands to the other
    _, _, row_max, log_sum = launch.forward(call, room)

    def product() -> None:
        torch.mm(e, c.T, out=logits)

    def forward() -> None:
        launch.forward(call, room)

    def backward() -> None:
        gradients.backward(call, row_max, log_sum, room, upstream, wanted, None)

    for warm_up in (product, forward, backward, product):
        warm_up()
    rounds = [pair(product, forward) for _ in range(repetitions)]
    # A backward pass may write over what it reads, which is then left to it again.
    slow = [pair(product, backward, before=forward) for _ in range(3)]
    return Timing(
        product_ms=median(p for p, _ in rounds),
        forward_ms=median(f for _, f in rounds),
        backward_ms=median(b for _, b in slow),
        forward_over_product=median(f / p for p, f in rounds),
        backward_over_product=median(b / p for p, b in slow),
        forward_mib=peak(forward, e.device),
        backward_mib=peak(backward, e.device, before=forward),
        repetitions=repetitions,
    )


def has_clock(device: torch.device) -> bool:
    """Whether times there mean anything."""
    return device.type == "cuda"


QUEUE_MS = 60.0
"""Work queued ahead of what is timed, so that its launches are made while the GPU is busy and cost it no time.

With 3 ms a forward pass on a host that was still killing processes read 7.6 products; its kernel takes 1.01. With 20 ms
the clock of a card at its power limit was still that of what had run before: products of 14.26 to 14.45 ms (H200)."""


def nothing() -> None:
    """What has to be done before a work that needs nothing."""


def pair(
    product: Callable[[], None], work: Callable[[], None], *, before: Callable[[], None] = nothing
) -> tuple[float, float]:
    """Milliseconds of the product and of the work, one right after the other; `before` them is not counted."""
    before()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
    marks[0].record()
    product()
    marks[1].record()
    torch.cuda.synchronize()
    for _ in range(math.ceil(QUEUE_MS / marks[0].elapsed_time(marks[1]))):
        product()
    marks[1].record()
    product()
    marks[2].record()
    work()
    marks[3].record()
    torch.cuda.synchronize()
    return marks[1].elapsed_time(marks[2]), marks[2].elapsed_time(marks[3])


def peak(work: Callable[[], None], device: torch.device, *, before: Callable[[], None] = nothing) -> float:
    """The most memory in MiB that the work holds at once beyond what is held already, after what is done `before`."""
    before()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - held) / MIB
