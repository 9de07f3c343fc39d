"""What a subject may promise beyond being right: laws that need one of these skip a subject that does not make it.

A subject makes promises with an attribute ``promises``, a set of these names, and says with ``budget`` whose error
bounds it wants to be held to (a `Variant`, or a flag string). `promising` attaches them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ccelab.precision.subjects import Unsupported

__all__ = ["EXACT", "OURS", "PROMISES", "Unsupported", "promising", "require_bias_dtype"]

PROMISES = {
    "bit-exact": "equal problems give equal bits: exact scaling, permuted tokens and added zeros change nothing",
    "filter": "gradients are filtered as ARCHITECTURE.md says, and `stats` counts tiles",
    "accumulator": "gradient sums follow the scheme that the variant names",
    "schedule": "takes `schedule`, so that a small problem has many tiles",
    "fused-target": "the target's logit is one of those in the sum: the loss is never negative",
    "checks-targets": "a target outside the vocabulary is an error",
    "ignored-is-zero": "loss and lse are 0 at ignored rows, and a mean over nothing is 0",
    "lse": "returns the lse, differentiable, with return_lse=True",
    "bias": "takes linear_bias",
    "softcap": "takes softcap",
    "float16": "takes fp16",
    "float32": "takes fp32",
}
OURS = frozenset(PROMISES)
EXACT = ("bit-exact", "schedule")
"""What a relation needs that holds for every bit under one schedule."""


def require_bias_dtype(peer: str, input: Tensor, linear_bias: Tensor | None) -> None:
    """Raises Unsupported for a bias of another dtype than the input, for peers that multiply in one dtype."""
    if linear_bias is not None and linear_bias.dtype != input.dtype:
        raise Unsupported(f"{peer} takes a bias of the input's dtype alone")


def promising(
    *promises: str, budget: str = "cce-exact", package: tuple[str, str] | None = None, version: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Attaches promises, a budget, and the package that must be installed (its import name, and how to get it), or the
    version of what the subject wraps where that needs no package of its own."""

    def attach(function: Callable[..., Any]) -> Callable[..., Any]:
        function.promises = frozenset(promises)  # type: ignore[attr-defined]
        function.budget = budget  # type: ignore[attr-defined]
        function.package = package  # type: ignore[attr-defined]
        function.version = version  # type: ignore[attr-defined]
        return function

    return attach
