"""`emulate`: the outputs of a variant on a problem, with the rounding of each stage on, off, or undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant
from ccelab.reference import Problem, Solution

from ..order import order_of
from .forward import Forward
from .gradients import Gradients
from .machine import Machine
from .modes import Mode, Modes
from .residuals import Backward, Residuals
from .segments import SegmentGradients
from .setup import Setup


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows `rows` (None: all) of one output, by its name in `Solution`, one tensor per run. Runs may share tensors."""

    output: str
    rows: Tensor | None
    values: list[Tensor]


class Emulation:
    """A variant under a schedule on a problem.

    `taken` is what a call decided: its vocabulary order, the segments that it kept and what it gave back. Where it says
    nothing, the oracle decides.

    Raises:
        ValueError: see `Setup`.
    """

    def __init__(
        self,
        problem: Problem,
        variant: Variant,
        schedule: Schedule,
        machine: Machine,
        taken: Statistics | None = None,
    ) -> None:
        self.setup = Setup(problem, variant, schedule, machine)
        self.taken = taken
        order = order_of(problem, variant, taken)
        self.order = torch.arange(self.setup.v, device=self.setup.device) if order is None else order.long()

    def idle(self) -> tuple[str, ...]:
        """Stages that do nothing for this problem and variant."""
        problem, variant = self.setup.problem, self.setup.variant
        idle = {
            "add_bias": problem.bias is None,
            "soft_cap": problem.softcap is None,
            "indexed_dot": variant.target == "fused",
            "store_exponentials": not self.setup.stores,
            "restore_softmax": not self.setup.stores,
            "recompute_logits": self.setup.stores,
            "softmax": self.setup.stores,
            "soft_cap_slope": problem.softcap is None,
            "is_live": not (variant.filter_e or variant.filter_c),
            "cast_increment": variant.accumulate in ("hilo", "fp32") or self.setup.dtype == torch.float32,
            "add_tail": variant.tail == "drop",
            "sum_bias": problem.bias is None,
        }
        return tuple(stage for stage, nothing in idle.items() if nothing)

    def pieces(self, runs: Sequence[Modes]) -> Iterator[Piece]:
        """Every output of every run, piece by piece: rows of dC and dbias as the vocabulary is walked, dE at the end.

        A stage that is idle is off, so that runs which differ in it alone share all they compute.
        """
        idle = self.idle()
        runs = [modes.but(idle, "off") for modes in runs]
        setup, n = self.setup, self.setup.n
        forward = Forward(setup, runs)
        yield Piece("loss", None, [forward.loss(modes)[:n, 0] for modes in runs])
        yield Piece("reduced", None, [forward.reduced(modes) for modes in runs])
        yield Piece("lse", None, [forward.lse(modes)[:n, 0] for modes in runs])
        backward = Backward(setup, forward)
        gradients = (
            SegmentGradients(setup, backward, runs, self.taken)
            if setup.variant.granularity == "segment"
            else Gradients(setup, backward, runs, self.taken)
        )
        for ids in self._chunks(len(backward.rows.valid)):
            part = Residuals(backward, ids)
            columns = ids[part.columns.inside]
            yield Piece("d_classifier", columns, gradients.chunk(part))
            if setup.problem.bias is not None:
                yield Piece("d_bias", columns, gradients.d_bias(part))
        yield Piece("d_embeddings", None, gradients.d_embeddings())

    def _chunks(self, rows: int) -> Iterator[Tensor]:
        """Vocabulary ids of whole tiles in the kernel's order, V where there is none."""
        block = self.setup.backward_tiles.block_v
        elements = 2**22 if self.setup.device.type == "cpu" else 2**25
        block *= self.setup.merged("e")  # whole increments
        if self.setup.stores:  # and whole tiles of the forward pass
            block = math.lcm(block, self.setup.schedule.forward.block_v)
        step = max(1, min(elements // rows, elements // 2 // self.setup.d) // block) * block
        missing = -len(self.order) % self.setup.backward_tiles.block_v
        padded = torch.nn.functional.pad(self.order, (0, missing), value=self.setup.v)
        yield from padded.split(step)


def emulate(
    problem: Problem,
    variant: Variant,
    schedule: Schedule,
    machine: Machine,
    on: Modes | Mapping[str, Mode] | Callable[[str], Mode],
    taken: Statistics | None = None,
) -> Solution:
    """The outputs with the given modes; `all_on()` is the kernel, `all_off()` the truth but for float64's rounding.

    Outputs are fp32 or the storage dtype where their last stage is on, float64 where it is off.

    Raises:
        ValueError: a stage is unknown, or the problem or schedule has what is not emulated (see `Setup`).
    """
    outputs: dict[str, Any] = {}
    for piece in Emulation(problem, variant, schedule, machine, taken).pieces([Modes.of(on)]):
        value = piece.values[0]
        if piece.rows is None:
            outputs[piece.output] = value
        else:
            if piece.output not in outputs:
                outputs[piece.output] = value.new_zeros((problem.shape[1], *value.shape[1:]))
            outputs[piece.output][piece.rows] = value
    return Solution(**outputs)
