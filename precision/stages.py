"""Every place where a kernel rounds or drops, in execution order, with the error that this place alone may commit.

Each function bears the name of the kernels' helper that commits it (`ccelab.kernels.backend.STAGES`) and returns an
a-priori bound on exact values of the oracle, of the shape that its docstring gives. Bounds are deterministic: no
probability enters, since tensor cores truncate and the sums in storage precision stagnate, so that errors need not
cancel. How an error is passed on to the outputs is the matter of `forward_budget` and `gradient_budget`.

u is fp32's unit roundoff `U`, u_b that of the storage format. Sources: Higham, "Accuracy and Stability of Numerical
Algorithms" (ASNA), 2002; Jeannerod and Rump, SIAM J. Matrix Anal. 34 (2013), for sums of n terms within (n-1) u sum
|x| in any order, without higher terms; Fasi et al., PeerJ CS 7 (2021), and Khattak and Mikaitis, arXiv 2512.07004, for
tensor cores; the CUDA C++ Programming Guide, for elementary functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Variant
from ccelab.reference import Problem

from .arithmetic import Arithmetic
from .formats import Format, U

SOFTCAP_ROUNDINGS = 16
"""softcap * tanh(z / softcap) is within this many unit roundoffs, relatively: the division, a tanh of a few ulp, the
product, and the cap itself as an fp32 number. A test measures the kernels' tanh against this."""

FP32_TINY = 2.0**-149
EXP_UNDERFLOW = 2.0**-126  # a result under the normal range may be flushed


@dataclass(frozen=True)
class Stage:
    """One entry of `STAGES`."""

    name: str
    bound: Callable[..., Any]
    applies: Callable[[Variant, Problem], bool]

    @property
    def what(self) -> str:
        """The first line of the bound's docstring: what is done there."""
        return (self.bound.__doc__ or "").partition("\n")[0]


STAGES: dict[str, Stage] = {}
"""In execution order, which is the order of this file."""


def _always(variant: Variant, problem: Problem) -> bool:
    return True


def _stage(applies: Callable[[Variant, Problem], bool] = _always) -> Callable[[Callable[..., Any]], Any]:
    def register(bound: Callable[..., Any]) -> Callable[..., Any]:
        STAGES[bound.__name__] = Stage(bound.__name__, bound, applies)
        return bound

    return register


def applying(variant: Variant, problem: Problem) -> list[str]:
    """The stages that a variant has on a problem, in execution order."""
    return [name for name, stage in STAGES.items() if stage.applies(variant, problem)]


def exp_roundings(x: Tensor) -> Tensor:
    """Unit roundoffs of relative error of exp(-x), x >= 0: the GPU multiplies by log2(e) and calls ex2.approx.

    2 + 1.173 |x| ulp (CUDA C++ Programming Guide, __expf); numpy's exp in the interpreter stays within 2.
    """
    return 4 + 2 * 1.173 * x


@_stage()
def dot_logits(absolute: Tensor, largest: Tensor, d: int, block_d: int, fmt: Format, arithmetic: Arithmetic) -> Tensor:
    """Logits: products over D, summed in fp32.

    (N, n), from |E||C|^T and the largest partial sum after whole blocks of block_d columns (`Arithmetic.chain`).
    Tensor cores truncate.
    """
    error = arithmetic.chain(absolute, largest, d, block_d, fmt)
    return overflowing(absolute + error, error)


LARGEST_FP32 = torch.finfo(torch.float32).max


def overflowing(size: Tensor, error: Tensor, largest: Tensor | float = LARGEST_FP32) -> Tensor:
    """`error`, or inf where a value of that size may overflow."""
    return torch.where(size < largest, error, torch.inf)


@_stage(lambda variant, problem: problem.bias is not None)
def add_bias(raw: Tensor, error: Tensor) -> Tensor:
    """Logits: the bias is added in fp32.

    (N, n), for biased logits `raw` whose products are within `error`. A bias of -inf masks its class exactly.
    """
    total = raw.abs() + error
    return torch.where(raw == -torch.inf, 0.0, overflowing(total, U * total))


@_stage(lambda variant, problem: problem.softcap is not None)
def soft_cap(logits: Tensor, error: Tensor, softcap: float) -> Tensor:
    """Logits: softcap * tanh(z / softcap), some 16 roundings.

    (N, n), for capped `logits` that come to within `error` of that. The quotient may be subnormal and lose 2^-150.
    """
    return SOFTCAP_ROUNDINGS * U * (logits.abs() + error) + FP32_TINY * (softcap + 1)


@_stage()
def exponentials(softmax: Tensor, distance: Tensor) -> Tensor:
    """Log-sum-exp: exp(z - max) of a tile.

    (N, 1), relative to the row's sum. Every piece of the way from z to the final maximum is rounded, scaled by log2(e),
    and exponentiated.
    """
    return (softmax * U * (5 + (1 + 2 * 1.173) * distance)).sum(1, keepdim=True)


@_stage()
def fold_tile(rescalings: Tensor, block_v: int, tiles_per_split: int, arithmetic: Arithmetic) -> Tensor:
    """Log-sum-exp: the sum of a tile, and of the tiles of a split; a new maximum rescales it.

    (N, 1), relative to the row's sum. 5 roundings for the exponential and the product of each rescaling.
    """
    return U * (5 * rescalings + arithmetic.sum(block_v) + tiles_per_split)


@_stage()
def join_splits(splits: int, log_s: Tensor) -> tuple[float, Tensor]:
    """Log-sum-exp: the sums of the splits, rescaled and added, and their logarithm.

    A relative bound on the sum, and (N, 1) on its logarithm, which is within 2 ulp.
    """
    return U * (5 + splits), 4 * U * log_s.abs()


@_stage(lambda variant, problem: variant.target == "indexed")
def indexed_dot(absolute: Tensor, d: int, block_d: int) -> Tensor:
    """Target logit by Algorithm 1: one chain over the D steps per column, then a tree over the columns.

    (N, 1), from (N, 1) |E_i| . |C_t|.
    """
    return (-(-d // block_d) + block_d + 1) * U * absolute


@_stage()
def token_loss(first: Tensor, second: Tensor, error: Tensor) -> Tensor:
    """Loss (m - z_t) + log s, or (m + log s) - z_t; lse m + log s.

    (N,), from the two exact results and the error of the operands: a rounding each. The difference of two logits may
    overflow where neither does.
    """
    return overflowing(torch.maximum(first.abs(), second.abs()) + error, U * (first.abs() + second.abs() + error))


@_stage(lambda variant, problem: problem.reduction != "none")
def reduce_losses(reduced: Tensor, error: Tensor) -> Tensor:
    """Reduced loss: the float64 sum is rounded to fp32.

    (), like the exact one, from losses that make it wrong by `error`.
    """
    total = reduced.abs() + error
    return overflowing(total, 2 * U * total)


@_stage()
def load_upstream(coefficient: Tensor) -> Tensor:
    """Residual: upstream gradients come divided by N and rounded to fp32.

    (N, n), from the (N, n) terms of the residual in absolute value.
    """
    return 2 * U * coefficient


@_stage()
def recompute_logits(error: Tensor) -> Tensor:
    """Residual: the logit computed again in the tiles of the backward pass, with bias and cap.

    (N, n), the `error` of such logits: as dot_logits, add_bias and soft_cap have it.
    """
    return error


@_stage()
def softmax(shifted: Tensor, exponent: Tensor) -> Tensor:
    """Residual: exp((z - max) - log s).

    (N, n), relative: the two differences, and the exponential.
    """
    return U * (shifted + exponent) + U * exp_roundings(exponent)


@_stage()
def residual(coefficient: Tensor) -> Tensor:
    """Residual: dloss (p - onehot) + dlse p in fp32.

    (N, n), from the (N, n) terms in absolute value: a difference, two products, a sum.
    """
    return 3 * U * coefficient


@_stage(lambda variant, problem: problem.softcap is not None)
def soft_cap_slope(slope: Tensor, raw: Tensor, softcap: float) -> Tensor:
    """Residual: the derivative of the softcap at the computed logit.

    (N, n), for the steepest `slope` within the error of the logits `raw`; without that error.
    """
    y = raw.abs() / softcap
    return torch.where(slope == 0, 0.0, slope * U * (8 + 2 * exp_roundings(2 * y)))


@_stage(lambda variant, problem: variant.filter_e or variant.filter_c)
def is_live(dropped: Tensor) -> Tensor:
    """Filter: tiles are left out of the sum.

    The absolute value of the sum of what is dropped, which the oracle's own decisions give; tiles too close to eps to
    call count in full.
    """
    return dropped.abs()


@_stage()
def cast_residual(g: Tensor, error: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """Increment: the residual is rounded to the storage dtype.

    (N, n), at a power-of-two `scale`. fp32 residuals are scaled, and may be subnormal.
    """
    if fmt.is_fp32:
        return torch.full_like(g, FP32_TINY)
    return fmt.u * (g.abs() + error) + fmt.tiny / 2 * scale


@_stage()
def tile_product(g: Tensor, terms: int, arithmetic: Arithmetic) -> Tensor:
    """Increment: the product of a tile of residuals, summed in fp32.

    (N, n) weights on |C| or |E|. Where it may overflow is the matter of `gradient_budget`.
    """
    return arithmetic.product(terms) * U * g.abs()


@_stage(lambda variant, problem: variant.accumulate in ("storage", "kahan"))
def cast_increment(size: Tensor, half_tiny: Tensor | float, fmt: Format) -> Tensor | float:
    """Sum: the increment is rounded to the storage dtype.

    Of the increment's shape, from its largest `size`.
    """
    return 0.0 if fmt.is_fp32 else fmt.u * size + half_tiny


@_stage()
def add_increment(
    scheme: str, total: Tensor, before: Tensor, size: Tensor, half_tiny: Tensor | float, fmt: Format
) -> Tensor:
    """Sum: an increment is added under the variant's scheme.

    Of the sum's shape, from the largest sizes of the sum after and before, and of the increment as it was cast.
    storage: |rn(s + x) - (s + x)| <= |x| too, since s itself is representable: a sum that stagnates loses x, no more.
    kahan: rn(c + x) rounds, c being at most u_b |s|; the TwoSum behind it is exact (Knuth, TAOCP 2, 4.2.2).
    hilo: the fp32 sum, and the low part rounded. fp32: one rounding.
    """
    if scheme == "storage":
        return torch.minimum(fmt.u * total + half_tiny, size)
    if scheme == "kahan":
        return fmt.u * (size + fmt.u * before) + half_tiny
    if scheme == "hilo":
        return (4 * U * U if fmt.is_fp32 else 2 * U + fmt.u * fmt.u) * total + half_tiny
    return U * total


@_stage(lambda variant, problem: problem.bias is not None)
def sum_bias(size: Tensor, rows: int, block_n: int) -> Tensor:
    """dbias: residuals are summed over the rows of a tile and over the tiles, in fp32.

    (n,), from the (n,) sums of their largest sizes.
    """
    return (block_n + -(-rows // block_n)) * U * size + 2 * rows * FP32_TINY


@_stage()
def cast_output(scheme: str, total: Tensor, fmt: Format) -> Tensor:
    """Output: the fp32 sum is rounded to the storage dtype, or the companion of the sum is dropped.

    Of the sum's shape, from its largest size.
    """
    if scheme == "storage" or (scheme == "fp32" and fmt.is_fp32):
        return torch.full_like(total, fmt.tiny)
    return fmt.u * total + fmt.tiny
