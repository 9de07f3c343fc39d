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
from ccelab.kernels.segments import BLOCK, PARTS
from ccelab.reference import Problem

from .arithmetic import ANY, Arithmetic
from .enclosure import Enclosure
from .formats import FP32, Format, U
from .products import Products

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


@_stage()
def dot_logits(products: Products) -> Tensor:
    """Logits: products over D, summed in fp32.

    (N, n), as `Arithmetic.logits` has it: tensor cores truncate.
    """
    return overflowing(products.absolute + products.error, products.error)


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
    return torch.where(raw == -torch.inf, 0.0, overflowing(total, FP32.half_ulp(total)))


@_stage(lambda variant, problem: problem.softcap is not None)
def soft_cap(logits: Tensor, error: Tensor, softcap: float) -> Tensor:
    """Logits: softcap * tanh(z / softcap), some 16 roundings.

    (N, n), for capped `logits` that come to within `error` of that. The quotient may be subnormal and lose 2^-150.
    """
    return SOFTCAP_ROUNDINGS * U * (logits.abs() + error) + FP32_TINY * (softcap + 1)


@_stage()
def exponentials(softmax: Tensor, distance: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Log-sum-exp: exp(z - max) of a tile.

    (N, 1), relative to the row's sum. Every piece of the way from z to the final maximum is rounded, scaled by log2(e),
    and exponentiated.
    """
    return (softmax * (U * distance + arithmetic.exponential(distance, pieces=True))).sum(1, keepdim=True)


@_stage()
def fold_tile(terms: Tensor, margin: Tensor, before: Tensor, is_rescaled: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Log-sum-exp: the sum of a tile, and of the tiles of a split; a new maximum rescales it.

    (N, 1), from the (N, n) exponentials of a tile, known to within a factor 1 + `margin`, and the (N, 1) sum of the
    tiles before. Rescaling takes an exponential and a product; a first sum is added to 0.
    """
    rescaled = torch.where(is_rescaled, (arithmetic.exponential(0 * before) + U) * before, 0.0)
    added = torch.where(before > 0, U * (before + terms.sum(1, keepdim=True)), 0.0)
    return arithmetic.tile_sum(terms, margin) + (1 + margin) * (rescaled + added)


@_stage()
def join_splits(splits: int, log_s: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
    """Log-sum-exp: the sums of the splits, rescaled and added, and their logarithm.

    (N, 1), relative to the sum, and of its logarithm. A single split is multiplied by exp(0) = 1.
    """
    zero = torch.zeros_like(log_s)
    joined = arithmetic.exponential(zero) + U * splits if splits > 1 else zero
    return joined, arithmetic.logarithm(log_s)


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
    rounding = FP32.half_ulp(first.abs() + error) + FP32.half_ulp(second.abs() + error)
    return overflowing(torch.maximum(first.abs(), second.abs()) + error, rounding)


@_stage(lambda variant, problem: problem.reduction != "none")
def reduce_losses(reduced: Tensor, error: Tensor) -> Tensor:
    """Reduced loss: the float64 sum is rounded to fp32.

    (), like the exact one, from losses that make it wrong by `error`.
    """
    total = reduced.abs() + error
    return overflowing(total, FP32.half_ulp(total * (1 + 2.0**-50)).clamp(min=FP32_TINY / 2))


@_stage()
def load_upstream(first: Tensor, second: Tensor, d_loss: Enclosure, d_lse: Enclosure) -> Tensor:
    """Residual: upstream gradients come divided by N and rounded to fp32.

    (N, n), from the sizes of their factors p - onehot and p, and what is known of them (`Arithmetic.upstream`).
    """
    return first * d_loss.radius + second * d_lse.radius


@_stage()
def recompute_logits(error: Tensor) -> Tensor:
    """Residual: the logit computed again in the tiles of the backward pass, with bias and cap.

    (N, n), the `error` of such logits: as dot_logits, add_bias and soft_cap have it.
    """
    return error


@_stage()
def softmax(shifted: Tensor, exponent: Tensor, smaller: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Residual: exp((z - max) - log s).

    (N, n), relative: the two differences, from their largest sizes, and the exponential. The first is exact where it
    is no larger than z or max, the `smaller` of which is at least so large (Sterbenz; Higham, ASNA, theorem 2.5).
    """
    difference = torch.where(shifted <= smaller, 0.0, FP32.half_ulp(shifted))
    return difference + FP32.half_ulp(exponent) + arithmetic.exponential(exponent)


@_stage()
def residual(first: Tensor, second: Tensor, onehot: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Residual: dloss (p - onehot) + dlse p in fp32.

    (N, n), from the sizes of the two terms.
    """
    return arithmetic.residual(first, second, onehot)


@_stage(lambda variant, problem: problem.softcap is not None)
def soft_cap_slope(slope: Tensor, raw: Tensor, softcap: float) -> Tensor:
    """Residual: the derivative of the softcap at the computed logit.

    (N, n), for the steepest `slope` within the error of the logits `raw`; without that error.
    """
    y = raw.abs() / softcap
    return torch.where(slope == 0, 0.0, slope * (8 * U + 2 * ANY.exponential(2 * y)))


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
def tile_product(absolute: Tensor, size: Tensor, terms: int, arithmetic: Arithmetic, steps: int = 1) -> Tensor:
    """Increment: the product of a tile of residuals, summed in fp32.

    Of the increment's shape, from |g||C| or |g|^T|E| and its largest size. Where it may overflow is the matter of
    `gradient_budget`.
    """
    return arithmetic.product(absolute, size, terms, steps)


@_stage(lambda variant, problem: variant.accumulate in ("storage", "kahan"))
def cast_increment(size: Tensor, half_tiny: Tensor | float, fmt: Format) -> Tensor | float:
    """Sum: the increment is rounded to the storage dtype.

    Of the increment's shape, from its largest `size`.
    """
    return 0.0 if fmt.is_fp32 else fmt.half_ulp(size) + half_tiny


@_stage()
def add_increment(
    scheme: str, total: Tensor, before: Tensor, size: Tensor, half_tiny: Tensor | float, fmt: Format
) -> Tensor:
    """Sum: an increment is added under the variant's scheme.

    Of the sum's shape, from the largest sizes of the sum after and before, and of the increment as it was cast.
    storage, fp32: one rounding; |rn(s + x) - (s + x)| <= |x|, |s| too, since both are representable: a sum that
    stagnates loses x, no more, and the first increment is exact.
    kahan: rn(c + x) rounds, c being at most u_b |s|; the TwoSum behind it is exact (Knuth, TAOCP 2, 4.2.2).
    hilo: the fp32 sum, and the low part rounded.
    """
    if scheme == "kahan":
        return torch.minimum(fmt.half_ulp(size + fmt.u * before) + half_tiny, fmt.u * before)
    if scheme == "hilo":
        return (4 * U * U if fmt.is_fp32 else 2 * U + fmt.u * fmt.u) * total + half_tiny
    rounding = FP32.half_ulp(total) if scheme == "fp32" else fmt.half_ulp(total) + half_tiny
    return torch.minimum(rounding, torch.minimum(size, before))


@_stage(lambda variant, problem: variant.tail == "rank1")
def add_tail(size: Tensor, given_back: Tensor, count: int) -> Tensor:
    """Sum: what rows lost to the filter is given back along one vector.

    Of the sum's shape, from its largest `size` and that of what is given back, along a vector that sums `count`
    products: in fp32 every 64th one of a part after the other, then 64 such sums, in fp64 over the parts. Eight more
    roundings are those of a row's loss times its upstream gradients, of the product and of the addition.
    """
    return U * ((-(-count // (PARTS * BLOCK)) + BLOCK + 8) * given_back + size)


@_stage(lambda variant, problem: problem.bias is not None)
def sum_bias(g: Tensor, error: Tensor, block_n: int, arithmetic: Arithmetic) -> Tensor:
    """dbias: residuals are summed over the rows of a tile and over the tiles, in fp32.

    (n,), from residuals g (N, n) that are computed within `error`.
    """
    return arithmetic.column_sum(g, error, block_n) + 2 * len(g) * FP32_TINY


@_stage()
def cast_output(scheme: str, total: Tensor, fmt: Format) -> Tensor:
    """Output: the fp32 sum is rounded to the storage dtype, or the companion of the sum is dropped.

    Of the sum's shape, from its largest size.
    """
    if scheme == "storage" or (scheme == "fp32" and fmt.is_fp32):
        return torch.full_like(total, fmt.tiny)
    return fmt.half_ulp(total) + fmt.tiny
