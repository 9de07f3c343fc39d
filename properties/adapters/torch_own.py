"""torch's own ways to a linear cross-entropy, as subjects: `--subject torch`, `torch-compile`, `torch-native`,
and `torch-chunked`, which never stores all logits.

Each takes what torch takes and promises nothing beyond; options that it lacks are not among its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ccelab.properties.promises import promising, require_bias_dtype


@promising("bias", "float16", "float32")
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
