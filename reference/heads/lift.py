"""A head in a larger hidden size, with the same logits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .head import Head


def lift(head: Head, d: int, seed: int = 0) -> Head:
    """`head` with E and C multiplied by a (D, d) matrix of orthonormal rows: every logit stays, up to storage rounding.

    The matrix is the transposed Q of the QR decomposition of a seeded (d, D) Gaussian. A smaller D would lose logits
    and is refused; d = D is a rotation.
    """
    _, _, hidden = head.shape
    if d < hidden:
        raise ValueError(f"a head of D = {hidden} cannot be lifted to {d}: fewer dimensions would change its logits")
    device = head.targets.device
    drawn = torch.randn(d, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    # On the CPU, whatever the head's device: LAPACK and cuSOLVER choose other signs for Q.
    rows = torch.linalg.qr(drawn).Q.T.float().contiguous().to(device)
    return replace(
        head,
        embeddings=_times(head.embeddings, rows),
        classifier=_times(head.classifier, rows),
        provenance={**head.provenance, "lifted from D": hidden, "lift seed": seed},
    )


def _times(matrix: Tensor, rows: Tensor, chunk: int = 2**15) -> Tensor:
    """(R, D) times (D, d) in float32, in chunks of R because a classifier in float32 doubles its memory."""
    return torch.cat([(part.float() @ rows).to(matrix.dtype) for part in matrix.split(chunk)])
