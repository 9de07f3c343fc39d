"""Host side of the forward pass, and what both passes share: operands, load paths, options. All is flat: N rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import capture
from .backend import IS_INTERPRETED
from .combine import Partial, combine_kernel
from .exponentials import Exponentials
from .indexed import indexed_dot_kernel
from .logits import SoftCap
from .logsumexp import logsumexp_kernel
from .matrix import Matrix, Vector
from .record import Record
from .schedule import ProductTiles, Schedule, Tiles
from .variant import Variant

COMBINE_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Call:
    """One flat call: what both passes need to know."""

    embeddings: Tensor  # (N, D)
    classifier: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    targets: Tensor  # (N,) int32 or int64
    ignore_index: int
    softcap: float | None
    variant: Variant
    schedule: Schedule

    @property
    def shape(self) -> tuple[int, int, int]:
        n, d = self.embeddings.shape
        return n, self.classifier.shape[0], d

    @property
    def cap(self) -> SoftCap | None:
        """The softcap as kernels take it."""
        return SoftCap.of(self.softcap)


class Room(NamedTuple):
    """For what the forward pass leaves to the backward pass beside numbers of rows."""

    record: Record | None = None
    exponentials: Exponentials | None = None


NO_ROOM = Room()


def forward(call: Call, room: Room = NO_ROOM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, lse, row maximum and log of the sum, each (N,) fp32. Fills `room`."""
    return combine(call, forward_partial(call, room))


def room_for(call: Call, wanted: tuple[bool, bool, bool]) -> Room:
    """What a backward pass will read for the gradients that are `wanted`."""
    return Room(_room_for_record(call, wanted), _room_for_exponentials(call, wanted))


def _room_for_record(call: Call, wanted: tuple[bool, bool, bool]) -> Record | None:
    is_read = any(wanted[:2]) if call.variant.granularity == "segment" else looks_ahead(call, wanted)
    if not is_read:
        return None
    n, v, _ = call.shape
    segments = triton.cdiv(v, call.schedule.segment_columns)
    splits, device = call.schedule.cut(n, v).splits, call.embeddings.device
    return Record(
        log_mass=torch.empty((segments, n), dtype=torch.float16, device=device),
        base=torch.empty((splits, n), dtype=torch.float32, device=device),
    )


def _room_for_exponentials(call: Call, wanted: tuple[bool, bool, bool]) -> Exponentials | None:
    if not call.variant.stores(8 * call.embeddings.element_size(), call.softcap) or not any(wanted):
        return None
    n, v, _ = call.shape
    tiles, block = triton.cdiv(v, call.schedule.forward.block_v), call.schedule.forward.block_v
    device = call.embeddings.device
    return Exponentials(
        entries=torch.empty((n, tiles * block), dtype=torch.float16, device=device),
        shift=torch.empty((tiles, n), dtype=torch.float32, device=device),
    )


def looks_ahead(call: Call, wanted: tuple[bool, bool, bool]) -> bool:
    """Whether the tiles that a filter drops are found before any is computed again: none has to be, since no gradient
    that is wanted takes them in, or a tail gives back what is in them. A host has to wait, which no CUDA graph can."""
    variant, least = call.variant, call.schedule.look_ahead
    of_e, of_c, of_bias = wanted
    if variant.granularity == "segment" or capture.is_captured(call.embeddings.device):
        return False
    if variant.tail == "rank1":
        return (of_e and variant.filter_e) or (of_c and variant.filter_c)
    every = (variant.filter_e or not of_e) and (variant.filter_c or not of_c) and not of_bias
    return every and (of_e or of_c) and least is not None and call.shape[1] >= least


def forward_partial(call: Call, room: Room = NO_ROOM) -> Partial:
    """What this vocabulary holds of the answer, one row of each result per split; fills `room`."""
    n, v, d = call.shape
    tiles, flags = call.schedule.forward, call.variant.flags("target")
    cut, device = call.schedule.cut(n, v), call.embeddings.device
    fused = flags.target == "fused"
    partial = Partial(
        max=torch.empty((cut.splits, n), dtype=torch.float32, device=device),
        sum=torch.empty((cut.splits, n), dtype=torch.float32, device=device),
        target_logit=torch.empty((cut.splits if fused else 1, n), dtype=torch.float32, device=device),
    )
    if n == 0:
        return partial
    e, e_descriptor = operand(call.embeddings, (tiles.block_n, tiles.block_d), call.schedule)
    c, c_descriptor = operand(call.classifier, (tiles.block_v, tiles.block_d), call.schedule)
    bias, target = vector(call.bias), vector(call.targets)
    stored = None
    if room.exponentials is not None and call.schedule.descriptors and _has_descriptors(device):
        # Takes a tile's room in shared memory, that of a stage.
        stored = TensorDescriptor.from_tensor(room.exponentials.entries, [tiles.block_n, tiles.block_v])
    logsumexp_kernel[(cut.programs,)](
        e,
        c,
        bias,
        target,
        partial.max,
        partial.sum,
        partial.target_logit if fused else None,
        *room,
        stored,
        call.cap,
        n,
        v,
        d,
        cut.per_split,
        cut.whole,
        cut.blocks_of_last,
        cut.at_once,
        VARIANT=flags,
        TILES=tiles,
        SEGMENT=call.schedule.segment_columns,
        E_DESCRIPTOR=e_descriptor,
        C_DESCRIPTOR=c_descriptor,
        **options(tiles if stored is None else tiles.leaving_room, call.schedule),
    )
    if not fused:
        indexed_dot_kernel[(cut.blocks,)](
            matrix(call.embeddings),
            matrix(call.classifier),
            bias,
            target,
            partial.target_logit,
            call.cap,
            n,
            v,
            d,
            call.ignore_index,
            TILES=tiles,
            **options(tiles, call.schedule),
        )
    return partial


def combine(call: Call, partial: Partial) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, lse, row maximum and log of the sum from the partial results of any number of vocabulary shards."""
    n = call.shape[0]
    loss, lse, row_max, log_sum = (torch.empty(n, dtype=torch.float32, device=call.embeddings.device) for _ in range(4))
    if n == 0:
        return loss, lse, row_max, log_sum
    combine_kernel[(triton.cdiv(n, COMBINE_BLOCK),)](
        partial.max,
        partial.sum,
        partial.target_logit,
        vector(call.targets),
        loss,
        lse,
        row_max,
        log_sum,
        n,
        partial.max.shape[0],
        partial.target_logit.shape[0],
        call.ignore_index,
        VARIANT=call.variant.flags("target"),
        BLOCK=COMBINE_BLOCK,
        enable_fp_fusion=call.schedule.fp_fusion,
    )
    return loss, lse, row_max, log_sum


def options(tiles: Tiles | ProductTiles, schedule: Schedule) -> dict[str, Any]:
    """Of a launch."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": schedule.fp_fusion}


def matrix(x: Tensor) -> Matrix:
    """`x` as pointer loads take it."""
    return Matrix(x, x.stride(0), x.stride(1), x.shape[1])


def vector(x: Tensor | None) -> Vector | None:
    """`x` as kernels take it."""
    return None if x is None else Vector(x, x.stride(0))


def operand(x: Tensor, block: tuple[int, int], schedule: Schedule) -> tuple[Matrix | TensorDescriptor, bool]:
    """(descriptor, True) of blocks of `block` where the layout allows a tensor descriptor, (matrix, False) elsewhere.

    A descriptor needs a last dimension that is contiguous and strides and address that are multiples of 16 bytes, and
    a GPU of compute capability 9 or more.
    """
    aligned = x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0 and x.stride(0) >= x.shape[1]
    if schedule.descriptors and aligned and x.stride(1) == 1 and _has_descriptors(x.device):
        return TensorDescriptor(x, list(x.shape), list(x.stride()), list(block)), True
    return matrix(x), False


@lru_cache
def _has_descriptors(device: torch.device) -> bool:
    return IS_INTERPRETED or torch.cuda.get_device_capability(device) >= (9, 0)
