"""Refuses bad input, with messages that say what would be accepted."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from .schedule import Schedule
from .variant import Variant

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TARGET_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
REDUCTIONS = ("none", "mean", "sum")
NOT_YET = ("weight", "label_smoothing", "options")


def check_keywords(unknown: dict[str, object]) -> None:
    """Raises TypeError for the keywords of torch's function that do not exist here yet, and for unknown ones."""
    for name in unknown:
        if name in NOT_YET:
            raise TypeError(f"linear_cross_entropy does not support {name}= yet; leave it out")
        raise TypeError(f"linear_cross_entropy got an unexpected keyword {name!r}")


def check_tensors(input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> None:
    """Raises TypeError for what is no dense tensor."""
    tensors = {"input": input, "linear_weight": linear_weight, "target": target}
    for name, value in (tensors if linear_bias is None else {**tensors, "linear_bias": linear_bias}).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
        if value.layout != torch.strided or value.is_nested:
            raise TypeError(f"{name} has layout {value.layout}, expected a dense (strided) tensor")


def autocast(x: Tensor, name: str) -> Tensor:
    """`x` in autocast's dtype.

    Raises:
        TypeError: it is of no dtype that autocast is for: whole numbers would become plausible ones.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    return x.to(torch.get_autocast_dtype(x.device.type))


def check_arguments(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    reduction: str,
    ignore_index: int,
    softcap: float | None,
    shift: int,
) -> None:
    """Raises TypeError or ValueError where shapes, dtypes, devices or options do not fit together."""
    if linear_weight.ndim != 2:
        raise ValueError(f"linear_weight has shape {tuple(linear_weight.shape)}, expected (V, D)")
    v, d = linear_weight.shape
    if input.ndim < 1 or input.shape[-1] != d:
        raise ValueError(f"input has shape {tuple(input.shape)}, expected (..., {d}) to match linear_weight ({v}, {d})")
    if target.shape != input.shape[:-1]:
        raise ValueError(f"target has shape {tuple(target.shape)}, expected input's leading {tuple(input.shape[:-1])}")
    if v == 0 or d == 0:
        raise ValueError(f"linear_weight has shape ({v}, {d}); V and D must be at least 1")
    if input.dtype not in DTYPES or linear_weight.dtype != input.dtype:
        raise TypeError(
            f"input is {input.dtype} and linear_weight {linear_weight.dtype}; both must have the same dtype out of "
            + ", ".join(map(str, DTYPES))
        )
    if target.dtype not in TARGET_DTYPES:
        raise TypeError(
            f"target is {target.dtype}, expected class indices in one of {', '.join(map(str, TARGET_DTYPES))}"
        )
    tensors = {"linear_weight": linear_weight, "target": target}
    if linear_bias is not None:
        if linear_bias.shape != (v,):
            raise ValueError(f"linear_bias has shape {tuple(linear_bias.shape)}, expected ({v},)")
        if linear_bias.dtype not in (input.dtype, torch.float32):
            raise TypeError(f"linear_bias is {linear_bias.dtype}, expected {input.dtype} or torch.float32")
        tensors["linear_bias"] = linear_bias
    for name, tensor in tensors.items():
        if tensor.device != input.device:
            raise ValueError(f"{name} is on {tensor.device} and input on {input.device}; move them to one device")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is unknown; legal values: {', '.join(REDUCTIONS)}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index={ignore_index!r} is not an int")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index={ignore_index} does not fit int64")
    if softcap is not None and (isinstance(softcap, bool) or not isinstance(softcap, Real)):
        raise TypeError(f"softcap={softcap!r} is not a number")
    if softcap is not None and not _is_normal(softcap):
        raise ValueError(f"softcap={softcap!r} must be a positive, finite number (normal in fp32), or None for no cap")
    length = target.shape[-1] if target.ndim else 1
    if (
        isinstance(shift, bool)
        or not isinstance(shift, int)
        or not 0 <= shift < max(length, 1)
        or (shift and not target.ndim)
    ):
        raise ValueError(
            f"shift={shift!r} is out of range; legal values: 0 to {max(length - 1, 0)} for T = {length} targets"
        )


def check_schedule(variant: Variant, schedule: Schedule) -> None:
    """Raises ValueError where a tail of tiles could not be told from the record of segments."""
    block, segment = schedule.backward.block_v, schedule.segment_columns
    if (variant.granularity, variant.tail) == ("tile", "rank1") and block % segment:
        raise ValueError(
            f"tail=rank1 reads what tiles lose from segments, and the schedule's backward tiles of {block} words hold "
            f"no whole segment of {segment}; set segment={block}, or make the tiles wider"
        )


def _is_normal(softcap: float) -> bool:
    info = torch.finfo(torch.float32)
    return bool(info.tiny <= softcap <= info.max)
