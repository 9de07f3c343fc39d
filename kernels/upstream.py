"""`Upstream`: what the backward pass gets from what comes after the loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Gradients by the loss and lse of each row, fp32 or None; `even` where all rows are known to have the same one."""

    dloss: Tensor | None  # (N,)
    dlse: Tensor | None  # (N,)
    even: bool = False
