"""One language-model head as the loss sees it: the rows E, the classifier C and the targets x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Head:
    """Embeddings E (N, D), classifier C (V, D) and targets x (N,) of one head, with where they came from.

    Logits are ``E @ C.T`` of the stored values: whatever made the head, its statistics are those of these tensors.
    """

    embeddings: Tensor  # (N, D)
    classifier: Tensor  # (V, D), dtype and device of `embeddings`
    targets: Tensor  # (N,) int64 in [0, V)
    name: str
    provenance: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or self.classifier.ndim != 2:
            raise ValueError("embeddings must be (N, D) and classifier (V, D)")
        n, d = self.embeddings.shape
        v = self.classifier.shape[0]
        if self.classifier.shape[1] != d:
            raise ValueError(f"classifier has shape {tuple(self.classifier.shape)}, expected ({v}, {d})")
        if self.targets.shape != (n,) or self.targets.dtype != torch.int64:
            raise ValueError(f"targets are {self.targets.dtype} {tuple(self.targets.shape)}, expected int64 ({n},)")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, V, D)."""
        n, d = self.embeddings.shape
        return n, self.classifier.shape[0], d

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Head:
        """The same head on another device, or with E and C rounded to another dtype."""
        return replace(
            self,
            embeddings=self.embeddings.to(device=device, dtype=dtype),
            classifier=self.classifier.to(device=device, dtype=dtype),
            targets=self.targets.to(device=device),
        )

    def tokens(self, n: int) -> Head:
        """The first n rows over the same vocabulary."""
        if not 0 < n <= len(self.targets):
            raise ValueError(f"{n} tokens asked of a head that has {len(self.targets)}")
        return replace(self, embeddings=self.embeddings[:n], targets=self.targets[:n])
