"""The question and its answer: what the oracles take and return."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """One evaluation of the linear cross-entropy, flattened to N rows.

    Row i has the logits ``z_iv = cap(E_i . C_v + bias_v)`` and the target distribution
    ``q_iv = (1 - smoothing) [v = x_i] + smoothing / V`` with weight ``w_i = target_weight[x_i]`` (1 by default):
    ``loss_i = w_i (lse_i - sum_v q_iv z_iv)``. Rows whose target is `ignore_index` have loss = lse = 0 and no gradient.
    The tensors keep the storage dtype of the data: an oracle upcasts them, exactly.
    """

    embeddings: Tensor  # (N, D) bf16, fp16, fp32 or fp64
    classifier: Tensor  # (V, D) same dtype
    targets: Tensor  # (N,) integer, in [0, V) or ignore_index
    bias: Tensor | None = None  # (V,)
    ignore_index: int = -100
    softcap: float | None = None
    reduction: Reduction = "mean"
    grad_loss: Tensor | None = None  # upstream of the reduced loss: () for mean and sum, (N,) for none; None is ones
    grad_lse: Tensor | None = None  # (N,) upstream of the lse output; None is zeros
    target_weight: Tensor | None = None  # (V,)
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        n, d = self.embeddings.shape
        v = self.classifier.shape[0]
        if self.classifier.shape != (v, d):
            raise ValueError(f"classifier has shape {tuple(self.classifier.shape)}, expected (V, {d})")
        if self.targets.shape != (n,):
            raise ValueError(f"targets have shape {tuple(self.targets.shape)}, expected ({n},)")
        if n and bool(((self.targets < 0) | (self.targets >= v)).logical_and(self.valid).any()):
            raise ValueError(f"a target is neither in [0, {v}) nor ignore_index={self.ignore_index}")
        if self.bias is not None and self.bias.shape != (v,):
            raise ValueError(f"bias has shape {tuple(self.bias.shape)}, expected ({v},)")
        if self.softcap is not None and not 2.0**-126 <= self.softcap < 2.0**128:
            raise ValueError(f"softcap={self.softcap} must be a positive, finite number (normal in fp32), or None")
        if self.grad_loss is not None:
            expected = (n,) if self.reduction == "none" else ()
            if self.grad_loss.shape != expected:
                raise ValueError(f"grad_loss has shape {tuple(self.grad_loss.shape)}, expected {expected}")
        if self.grad_lse is not None and self.grad_lse.shape != (n,):
            raise ValueError(f"grad_lse has shape {tuple(self.grad_lse.shape)}, expected ({n},)")

    @classmethod
    def from_call(
        cls,
        input: Tensor,  # (..., T, D)
        linear_weight: Tensor,  # (V, D)
        target: Tensor,  # (..., T)
        *,
        linear_bias: Tensor | None = None,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        softcap: float | None = None,
        shift: int = 0,
        grad_loss: Tensor | None = None,  # () or (..., T - shift)
        grad_lse: Tensor | None = None,  # (..., T - shift)
    ) -> Problem:
        """The rows of a call to ``linear_cross_entropy``, in the row-major order of the input's leading dimensions.

        A positive `shift` keeps every input row: the last `shift` rows of each sequence have no target and count as
        ignored. Kernels tile the rows in this order, so that a budget knows which rows share a tile.
        """

        def pad(rows: Tensor | None, value: float) -> Tensor | None:
            if rows is None or rows.ndim == 0:
                return rows
            return torch.nn.functional.pad(rows, (0, shift), value=value).reshape(-1)

        aligned = pad(target.long()[..., shift:], ignore_index)
        assert aligned is not None
        return cls(
            embeddings=input.detach().reshape(-1, input.shape[-1]),
            classifier=linear_weight.detach(),
            targets=aligned.reshape(-1),
            bias=None if linear_bias is None else linear_bias.detach(),
            ignore_index=ignore_index,
            softcap=softcap,
            reduction=reduction,
            grad_loss=pad(grad_loss, 0.0),
            grad_lse=pad(grad_lse, 0.0),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, V, D)."""
        n, d = self.embeddings.shape
        return n, self.classifier.shape[0], d

    @property
    def valid(self) -> Tensor:
        """(N,) bool: the rows that are not ignored."""
        return self.targets.long() != self.ignore_index  # a narrow dtype would wrap the index

    def upstream(self) -> tuple[Tensor, Tensor]:
        """Per-row gradients of the final scalar with respect to loss_i and lse_i: two (N,) float64, 0 at ignored rows.

        The divisor of reduction="mean" is the number of valid rows (torch divides by the sum of their weights where
        `target_weight` is given, and so does this).
        """
        n = len(self.targets)
        zero = torch.zeros(n, dtype=torch.float64, device=self.embeddings.device)
        grad = zero + (1.0 if self.grad_loss is None else self.grad_loss.double())
        if self.reduction == "mean":
            count = self.row_weights().sum()
            grad = grad / torch.where(count == 0, 1.0, count)
        lse = zero if self.grad_lse is None else self.grad_lse.double()
        return torch.where(self.valid, grad, 0.0), torch.where(self.valid, lse, 0.0)

    def row_weights(self) -> Tensor:
        """(N,) float64: the weight of each row's target, 0 at ignored rows."""
        if self.target_weight is None:
            return self.valid.double()
        safe = torch.where(self.valid, self.targets, 0).long()
        return torch.where(self.valid, self.target_weight.double()[safe], 0.0)

    def to(self, device: torch.device | str) -> Problem:
        moved: dict[str, Any] = {k: t.to(device) for k, t in vars(self).items() if isinstance(t, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """The answer to a `Problem`, or an error bound for each of its entries."""

    loss: Tensor  # (N,) per row, 0 at ignored rows
    reduced: Tensor  # () for mean and sum; the same as loss for none
    lse: Tensor  # (N,) natural logarithm, 0 at ignored rows
    d_embeddings: Tensor | None = None  # (N, D)
    d_classifier: Tensor | None = None  # (V, D)
    d_bias: Tensor | None = None  # (V,)
