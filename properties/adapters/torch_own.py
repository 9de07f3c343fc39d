"""torch's own ways to a linear cross-entropy, as subjects: `--subject torch`, `torch-compile`, `torch-native`,
`torch-chunked`, which never stores all logits, and `torch-eight-chunks`, which stores them in the storage dtype alone.

Each takes what torch takes and promises nothing beyond; options that it lacks are not among its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccelab.properties.promises import Unsupported, promising, require_bias_dtype


@promising("bias", "float16", "float32", version=str(torch.__version__))
def eager(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """F.linear and F.cross_entropy over fp32 logits: the products' result is in the storage dtype."""
    bias = None if linear_bias is None else linear_bias.to(input.dtype)
    logits = F.linear(input, linear_weight, bias).float()
    return F.cross_entropy(logits, target.long(), reduction=reduction, ignore_index=ignore_index)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(eager)


@functools.wraps(eager, assigned=())  # its parameters and its promises
def compiled(*args: Any, **kwargs: Any) -> Tensor:
    """`eager` under torch.compile, which would run as it is from the ninth kind of problem on."""
    with torch._dynamo.config.patch(recompile_limit=256):
        return _compiled()(*args, **kwargs)


@functools.wraps(eager, assigned=())
def native(input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    """torch.nn.functional.linear_cross_entropy, from torch 2.13 on.

    Raises:
        RuntimeError: this torch does not have it.
        Unsupported: the bias has another dtype than the input: torch's linear takes one dtype.
    """
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise RuntimeError(f"torch {torch.__version__} has no linear_cross_entropy; it came with 2.13")
    require_bias_dtype("torch", input, options.get("linear_bias"))
    loss: Tensor = function(input, linear_weight, target.long(), **options)
    return loss.float()


@functools.wraps(eager, assigned=())
def chunked(input: Tensor, linear_weight: Tensor, target: Tensor, **options: Any) -> Tensor:
    """`native` with the options that choose its chunked path, at their defaults."""
    made: Any = getattr(torch.nn, "LinearCrossEntropyOptions", dict)()
    return native(input, linear_weight, target, options=made, **options)


@functools.cache
def _compiled_sum() -> Callable[..., Tensor]:
    def upcast_sum(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        return F.cross_entropy(logits.float(), target, ignore_index=ignore_index, reduction="sum")

    return torch.compile(upcast_sum)


@promising("bias", "float16", "float32", version=str(torch.__version__))
def eight_chunks(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    """The way of Torch Tune's `CEWithChunkedOutputLoss`: the logits of an eighth of the tokens at a time become fp32.

    The paper's Table 1 has it as "Torch Tune (8 chunks)". As there, the cast and the loss of a chunk are compiled.

    Raises:
        Unsupported: a loss per token is asked for, which Torch Tune's has not.
    """
    if reduction == "none":
        raise Unsupported("Torch Tune's chunks have no loss per token")
    bias = None if linear_bias is None else linear_bias.to(input.dtype)
    logits = [F.linear(rows, linear_weight, bias) for rows in input.chunk(8)]
    with torch._dynamo.config.patch(recompile_limit=256):
        sums = [_compiled_sum()(z, t, ignore_index) for z, t in zip(logits, target.long().chunk(8), strict=True)]
    total = torch.stack(sums).sum()
    return total if reduction == "sum" else total / (target != ignore_index).sum()
