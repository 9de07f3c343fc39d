"""How far a computed logit can be from E_i . C_v + bias, capped."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Tiles
from ccelab.reference import formula
from ccelab.reference.double import Stream
from ccelab.reference.formula import FLOAT64

from .formats import Format, U

SOFTCAP_ROUNDINGS = 16
"""softcap * tanh(z / softcap) is within this many unit roundoffs, relatively: the division, a tanh of a few ulp, the
product, and the cap itself as an fp32 number. A test measures the kernels' tanh against this."""

MMA_TERMS = 16
"""Products that a Hopper tensor core adds at once (Khattak and Mikaitis, arXiv 2512.07004; Fasi et al.,
PeerJ CS 2021)."""


def product_roundings(terms: int) -> float:
    """c such that a fp32 product of `terms` pairs is within c u sum |a||b|: rounded in any order, or truncated.

    A tensor core aligns 16 products and the accumulator to the largest exponent and drops bits under 2^-25 of it, then
    truncates to 24 bits: at most (8 + 2) u of the terms' sum per step of 16. Rounding to nearest costs u per addition.
    """
    return max(terms, 10 * -(-terms // MMA_TERMS)) + 1.0


LARGEST_FP32 = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class LogitError:
    """(N, n) bounds on the errors of logits in a tile, inf where fp32 may overflow."""

    raw: Tensor  # before the cap
    capped: Tensor


def steepest_cap(raw: Tensor, error: Tensor, softcap: float) -> Tensor:
    """The largest derivative of the softcap within `error` of the logits `raw`: that of the point nearest to 0."""
    slope: Tensor = formula.cap_derivative(FLOAT64, (raw.abs() - error).clamp(min=0), softcap)
    return slope


def logit_error(stream: Stream, columns: Tensor, raw: Tensor, logits: Tensor, tiles: Tiles, fmt: Format) -> LogitError:
    """Bounds for logits computed in tiles of this shape; `raw` and `logits` (N, n) are the exact ones.

    With B = block_d, A = |E||C|^T and P the largest partial sum after whole blocks of B terms: a rounding error is
    relative to the partial sum at hand, which is at most P plus A's share of its own block. So the bound is
    ``u (k1 A + k2 P)`` with k1 about B and k2 the number of roundings of the accumulator, instead of ``u D A``.

    A softcap passes an error on times its slope, the largest on the way from z to the computed z, and adds its own
    roundings: logits that are saturated have next to no error.
    """
    embeddings, classifier = stream.embeddings, stream.classifier(columns)
    d, block = embeddings.shape[1], min(tiles.block_d, embeddings.shape[1])
    absolute, partial, largest = (torch.zeros_like(raw) for _ in range(3))
    for start in range(0, d, tiles.block_d):
        e, c = embeddings[:, start : start + tiles.block_d], classifier[:, start : start + tiles.block_d]
        absolute.addmm_(e.abs(), c.abs().T)
        partial.addmm_(e, c.T)
        torch.maximum(largest, partial.abs(), out=largest)
    steps = -(-d // MMA_TERMS)
    if fmt.is_fp32:
        in_block, accumulator = block + 1, d
    else:
        in_block, accumulator = max(block, 10 * -(-block // MMA_TERMS) + 10), 10 * steps
    if d == 1:  # one exact product, or one rounding
        in_block, accumulator = 1, 0
    # The bound on computed partial sums is P plus the error itself, hence the division.
    error = U * (in_block * absolute + accumulator * largest) / (1 - accumulator * U)
    error = torch.where(absolute + error < LARGEST_FP32, error, torch.inf)
    if stream.problem.bias is not None:
        total = raw.abs() + error
        # A bias of -inf masks its class exactly.
        error = torch.where(raw == -torch.inf, 0.0, torch.where(total < LARGEST_FP32, error + U * total, torch.inf))
    if stream.problem.softcap is None:
        return LogitError(error, error)
    softcap = stream.problem.softcap
    slope = steepest_cap(raw, error, softcap)
    capped = torch.where(error == 0, 0.0, torch.where(slope == 0, 0.0, error * slope)).clamp(max=2 * softcap)
    return LogitError(error, capped + SOFTCAP_ROUNDINGS * U * (logits.abs() + capped))
