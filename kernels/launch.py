"""Host side of the kernels: allocates outputs, chooses load paths, launches. Everything is flat: N rows, no batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .accumulate import Accumulator
from .backend import IS_INTERPRETED, host_stage
from .backward import classifier_kernel, embeddings_kernel
from .combine import Partial, combine_kernel
from .indexed import indexed_dot_kernel
from .logsumexp import logsumexp_kernel
from .matrix import Matrix, Vector
from .ordering import mean_logit_order, mean_prob_order
from .sampling import sample_rows
from .schedule import Schedule, Tiles
from .statistics import Statistics
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


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """loss, lse, row maximum and log of the sum, each (N,) fp32."""
    return combine(call, forward_partial(call))


def forward_partial(call: Call) -> Partial:
    """What this vocabulary holds of the answer, one row of each result per split."""
    n, v, d = call.shape
    tiles, flags = call.schedule.forward, call.variant.flags("target")
    blocks = triton.cdiv(v, tiles.block_v)
    per_split = triton.cdiv(blocks, call.schedule.splits)
    splits = triton.cdiv(blocks, per_split)
    device = call.embeddings.device
    fused = flags.target == "fused"
    partial = Partial(
        max=torch.empty((splits, n), dtype=torch.float32, device=device),
        sum=torch.empty((splits, n), dtype=torch.float32, device=device),
        target_logit=torch.empty((splits if fused else 1, n), dtype=torch.float32, device=device),
    )
    if n == 0:
        return partial
    e, e_descriptor = operand(call.embeddings, tiles.block_n, call.schedule)
    c, c_descriptor = operand(call.classifier, tiles.block_v, call.schedule)
    bias, target = vector(call.bias), vector(call.targets)
    row_blocks = triton.cdiv(n, tiles.block_n)
    logsumexp_kernel[(row_blocks * splits,)](
        e,
        c,
        bias,
        target,
        partial.max,
        partial.sum,
        partial.target_logit if fused else None,
        call.softcap,
        n,
        v,
        d,
        per_split,
        VARIANT=flags,
        TILES=tiles,
        E_DESCRIPTOR=e_descriptor,
        C_DESCRIPTOR=c_descriptor,
        **options(tiles, call.schedule),
    )
    if not fused:
        indexed_dot_kernel[(row_blocks,)](
            _matrix(call.embeddings),
            _matrix(call.classifier),
            bias,
            target,
            partial.target_logit,
            call.softcap,
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


def backward(
    call: Call,
    row_max: Tensor,
    log_sum: Tensor,
    dloss: Tensor | None,
    dlse: Tensor | None,
    wanted: tuple[bool, bool, bool],
    stats: Statistics | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dE, dC and dbias, each where `wanted` says so."""
    n, v, d = call.shape
    if n == 0:
        outputs = (call.embeddings, call.classifier, call.bias)
        d_e, d_c, d_b = (
            torch.zeros_like(x) if x is not None and w else None for x, w in zip(outputs, wanted, strict=True)
        )
        return d_e, d_c, d_b
    tiles, variant = call.schedule.backward, call.variant
    want_e, want_c, want_bias = wanted
    e, c = _matrix(call.embeddings), _matrix(call.classifier)
    bias, target = vector(call.bias), vector(call.targets)
    order = _vocabulary_order(call, row_max, log_sum)
    if stats is not None:
        stats.order = order
    eps = torch.finfo(call.embeddings.dtype).eps / 32 if variant.eps is None else variant.eps
    inputs = (e, c, bias, target, row_max, log_sum, vector(dloss), vector(dlse), order)
    scalars = (call.softcap, eps, n, v, d, call.ignore_index)
    row_blocks, vocabulary_blocks = triton.cdiv(n, tiles.block_n), triton.cdiv(v, tiles.block_v)
    launch_options = options(tiles, call.schedule)
    d_embeddings = d_classifier = d_bias = None
    if want_e:
        acc = _accumulator(call.embeddings, variant)
        kept = mass = None
        if stats is not None:
            kept = torch.empty(row_blocks, dtype=torch.int32, device=e.ptr.device)
            mass = torch.empty(n, dtype=torch.float32, device=e.ptr.device)
        embeddings_kernel[(row_blocks,)](
            *inputs,
            acc,
            kept,
            mass,
            *scalars,
            VARIANT=variant.flags("filter_e", "accumulate"),
            TILES=tiles,
            **launch_options,
        )
        d_embeddings = cast_output(acc.sum, call.embeddings)
        if stats is not None and kept is not None:
            stats.tiles_kept_e = int(kept.sum())
            stats.tiles_skipped_e = row_blocks * vocabulary_blocks - stats.tiles_kept_e
            stats.filtered_mass_e = mass
    if want_c or want_bias:
        acc_c = _accumulator(call.classifier, variant) if want_c else Accumulator(None, None, d)
        if want_bias:
            d_bias = torch.empty(v, dtype=torch.float32, device=e.ptr.device)
        kept = mass = None
        if stats is not None and want_c:
            kept = torch.empty(vocabulary_blocks, dtype=torch.int32, device=e.ptr.device)
            mass = torch.zeros((vocabulary_blocks, n), dtype=torch.float32, device=e.ptr.device)
        classifier_kernel[(vocabulary_blocks,)](
            *inputs,
            acc_c,
            d_bias,
            kept,
            mass,
            *scalars,
            VARIANT=variant.flags("filter_c", "accumulate"),
            TILES=tiles,
            **launch_options,
        )
        d_classifier = cast_output(acc_c.sum, call.classifier)
        d_bias = cast_output(d_bias, call.bias)
        if stats is not None and kept is not None and mass is not None:
            stats.tiles_kept_c = int(kept.sum())
            stats.tiles_skipped_c = row_blocks * vocabulary_blocks - stats.tiles_kept_c
            stats.filtered_mass_c = mass.sum(0)
    return d_embeddings, d_classifier, d_bias


def _vocabulary_order(call: Call, row_max: Tensor, log_sum: Tensor) -> Tensor | None:
    """(V,) int64 vocabulary ids in the order of the variant; None is the natural one."""
    e, c, bias = _matrix(call.embeddings), _matrix(call.classifier), vector(call.bias)
    if call.variant.order == "mean_logit":
        ids: Tensor = mean_logit_order(  # type: ignore[no-untyped-call]
            e, c, bias, vector(call.targets), call.shape, call.ignore_index, call.schedule.fp_fusion
        )
    elif call.variant.order == "mean_prob":
        tiles = call.schedule.backward
        sample = sample_rows(call.targets, call.ignore_index)
        ids = mean_prob_order(  # type: ignore[no-untyped-call]
            e, c, bias, row_max, log_sum, sample, call.softcap, call.shape, tiles, options(tiles, call.schedule)
        )
    else:
        return None
    return ids


@host_stage
def cast_output(total: Tensor | None, like: Tensor | None) -> Tensor | None:
    """A complete sum in the dtype of its input. A companion of the sum is dropped."""
    return None if total is None or like is None else total.to(like.dtype)


def _accumulator(output: Tensor, variant: Variant) -> Accumulator:
    dtype = torch.float32 if variant.accumulate == "fp32" else output.dtype
    total = torch.zeros(output.shape, dtype=dtype, device=output.device)
    carries = variant.accumulate in ("kahan", "hilo")
    return Accumulator(total, torch.zeros_like(total) if carries else None, output.shape[1])


def options(tiles: Tiles, schedule: Schedule) -> dict[str, Any]:
    return {"num_warps": tiles.warps, "num_stages": tiles.stages, "enable_fp_fusion": schedule.fp_fusion}


def _matrix(x: Tensor) -> Matrix:
    return Matrix(x, x.stride(0), x.stride(1), x.shape[1])


def vector(x: Tensor | None) -> Vector | None:
    return None if x is None else Vector(x, x.stride(0))


def operand(x: Tensor, block_rows: int, schedule: Schedule) -> tuple[Matrix | TensorDescriptor, bool]:
    """(descriptor, True) where the layout allows a tensor descriptor, (matrix, False) elsewhere.

    A descriptor needs a last dimension that is contiguous and strides and address that are multiples of 16 bytes, and
    a GPU of compute capability 9 or more.
    """
    aligned = x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0 and x.stride(0) >= x.shape[1]
    capable = IS_INTERPRETED or torch.cuda.get_device_capability(x.device) >= (9, 0)
    if schedule.descriptors and capable and aligned and x.stride(1) == 1:
        block = [block_rows, schedule.forward.block_d]
        return TensorDescriptor(x, list(x.shape), list(x.stride()), block), True
    return _matrix(x), False
