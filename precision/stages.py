"""Every place where a kernel rounds or drops, in execution order, with the error that this place alone may commit.

Each function bears the name of the kernels' helper that commits it (`ccelab.kernels.backend.STAGES`) and returns an
a-priori bound on exact values of the oracle, of the shape that its docstring gives. Bounds are deterministic: no
probability enters, since tensor cores truncate and the sums in storage precision stagnate, so that errors need not
cancel. What is random of a rounding to nearest in fp32 a `RandomError` says beside its bound. How an error is passed on
to the outputs is the matter of `forward_budget` and `gradient_budget`.

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
from ccelab.kernels import exponentials as stored
from ccelab.kernels.live_segments import BLOCK
from ccelab.kernels.rank1 import PARTS
from ccelab.reference import Problem

from .arithmetic import ANY, Arithmetic
from .enclosure import Enclosure
from .formats import FP16, FP32, Format, U
from .products import Products
from .random_error import RandomError

SOFTCAP_ROUNDINGS = 16
"""softcap * tanh(z / softcap) is within this many unit roundoffs, relatively: the reciprocal and a product with it, a
tanh of a few ulp, the product, and the cap itself as an fp32 number. A test measures the kernels' tanh against this."""

UNIT: float = stored.UNIT.value

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
    return SOFTCAP_ROUNDINGS * U * (logits.abs() + error) + FP32.tiny * (softcap + 1)


@_stage()
def exponentials(
    difference: Tensor, distance: Tensor, less: Tensor, is_1: Tensor, arithmetic: Arithmetic
) -> RandomError:
    """Log-sum-exp: exp(z - max) of a tile.

    (N, n), relative: the difference is rounded within `difference`, scaled by log2(e), and exponentiated. It is
    `distance` at most, and may be `less` by that much; exp(0) is exact.
    """
    exponential = arithmetic.exponential(distance, less).masked(~is_1)
    return exponential.plus(RandomError.certain(difference))


@_stage()
def fold_tile(
    terms: Tensor, margin: Tensor, segment: int, before: Tensor, rescaled: RandomError, arithmetic: Arithmetic
) -> RandomError:
    """Log-sum-exp: the sum of a tile, by segments, and of the tiles of a split; a new maximum rescales it.

    (N, 1), from the (N, n) exponentials of a tile, known to within a factor 1 + `margin`, and the (N, 1) sum of the
    tiles before, with the relative error of its rescaling. A first sum is added to 0.
    """
    after = (before + terms.sum(1, keepdim=True)) * (1 + margin)
    added = RandomError.addition(FP32.half_ulp(after), torch.minimum(before * (1 + margin), after))
    return arithmetic.tile_sum(terms, margin, segment).plus(rescaled.times(before * (1 + margin))).plus(added)


def scales_rows(variant: Variant, problem: Problem) -> bool:
    """Whether dC takes rows of E at their scales, and residuals without."""
    return problem.embeddings.dtype == torch.bfloat16 and variant.granularity == "tile"


def stores(variant: Variant, problem: Problem) -> bool:
    """Whether a call of the problem keeps exponentials for its backward pass."""
    return variant.stores(8 * problem.embeddings.element_size(), problem.softcap)


def _recomputes(variant: Variant, problem: Problem) -> bool:
    return not stores(variant, problem)


@_stage(stores)
def store_exponentials() -> tuple[float, float]:
    """Residual: exp(z - shift) is stored as fp16.

    Relative, and of the row's largest at most: 1 is stored as 2^15, so that half of fp16's smallest number is 2^-40.
    """
    return FP16.u, FP16.tiny / 2 / UNIT


@_stage()
def join_splits(
    sums: list[Tensor], margin: Tensor, rescaled: list[RandomError], log_s: Tensor, arithmetic: Arithmetic
) -> tuple[RandomError, RandomError]:
    """Log-sum-exp: the sums of the splits, rescaled and added, and their logarithm.

    (N, 1), relative to the sum, and of its logarithm. `sums` are the exact ones, of exp(z - max), known to within a
    factor 1 + `margin`, and `rescaled` has the relative errors of their rescaling.
    """
    total = torch.zeros_like(log_s)
    joined = RandomError.certain(total)
    for part, error in zip(sums, rescaled, strict=True):
        smaller, total = torch.minimum(total, part) * (1 + margin), total + part
        added = RandomError.addition(FP32.half_ulp(total * (1 + margin)), smaller)
        joined = joined.plus(error.times(part)).plus(added)
    return joined.times(torch.exp(-log_s)), arithmetic.logarithm(log_s)


@_stage(lambda variant, problem: variant.target == "indexed")
def indexed_dot(absolute: Tensor, d: int, block_d: int) -> Tensor:
    """Target logit by Algorithm 1: one chain over the D steps per column, then a tree over the columns.

    (N, 1), from (N, 1) |E_i| . |C_t|.
    """
    return (-(-d // block_d) + block_d + 1) * U * absolute


@_stage()
def token_loss(result: Tensor, operands: Tensor, first: Tensor, error: Tensor) -> RandomError:
    """Loss (m - z_t) + log s, or (m + log s) - z_t; lse m + log s.

    (N,), from the exact result, the smaller of the last operation's `operands`, what the first comes to, and the error
    of either: a rounding each. The difference of two logits may overflow where neither does.
    """
    rounding = RandomError.addition(FP32.half_ulp(result.abs() + error), operands.abs() + error)
    rounding = rounding.plus(RandomError.rounding(FP32.half_ulp(first.abs() + error)))
    largest = overflowing(torch.maximum(result.abs(), first.abs()) + error, rounding.largest)
    return rounding._replace(largest=largest)


@_stage(lambda variant, problem: problem.reduction != "none")
def reduce_losses(reduced: Tensor, error: Tensor) -> Tensor:
    """Reduced loss: the float64 sum is rounded to fp32.

    (), like the exact one, from losses that make it wrong by `error`.
    """
    total = reduced.abs() + error
    return overflowing(total, FP32.half_ulp(total * (1 + 2.0**-50)).clamp(min=FP32.tiny / 2))


@_stage()
def load_upstream(first: Tensor, second: Tensor, d_loss: Enclosure, d_lse: Enclosure) -> Tensor:
    """Residual: upstream gradients come divided by N and rounded to fp32.

    (N, n), from the sizes of their factors p - onehot and p, and what is known of them (`Arithmetic.upstream`).
    """
    return first * d_loss.radius + second * d_lse.radius


@_stage(_recomputes)
def recompute_logits(error: Tensor) -> Tensor:
    """Residual: the logit computed again in the tiles of the backward pass, with bias and cap.

    (N, n), the `error` of such logits: as dot_logits, add_bias and soft_cap have it.
    """
    return error


@_stage(_recomputes)
def softmax(
    difference: Tensor, exponent: Tensor, smaller: Tensor, last: Tensor, less: Tensor, arithmetic: Arithmetic
) -> tuple[RandomError, Tensor]:
    """Residual: exp((z - max) - log s).

    (N, n), relative: the first difference is rounded within `difference`; the second to the size of the exponent, but
    it loses no more than the `smaller` operand. The exponent is the largest, and may be smaller by `less`. And what of
    it may be the same for all classes of a token: where z - max has few digits (half its `last`), those that are
    rounded off are those of log s alone.
    """
    second = RandomError.addition(FP32.half_ulp(exponent), smaller, last)
    rounding = RandomError.certain(difference).plus(second).plus(arithmetic.exponential(exponent, less))
    return rounding, torch.where(second.proxy > 0, torch.minimum(second.largest, last), 0.0)


@_stage(stores)
def restore_softmax(exponent: Tensor, smaller: Tensor, arithmetic: Arithmetic) -> RandomError:
    """Residual: what is stored, times exp((shift - max) - log s).

    (N, n), relative: two differences, an exponential and a product. `exponent` is the largest of each, and the second
    difference loses no more than its `smaller` operand. It is one number for a row's words of one tile.
    """
    half = FP32.half_ulp(exponent)
    differences = RandomError.rounding(half).plus(RandomError.addition(half, smaller, last=0.0))
    return differences.plus(arithmetic.exponential(exponent, exponent)).plus(RandomError.rounding(U + 0 * half))


@_stage()
def residual(
    minus: Tensor, p: Tensor, onehot: Tensor, d_loss: Enclosure, d_lse: Enclosure, arithmetic: Arithmetic
) -> RandomError:
    """Residual: dloss (p - onehot) + dlse p in fp32.

    (N, n), from the sizes of p - onehot and p, and from the upstream gradients.
    """
    return arithmetic.residual(minus, p, onehot, d_loss, d_lse)


@_stage(lambda variant, problem: problem.softcap is not None)
def soft_cap_slope(slope: Tensor, raw: Tensor, softcap: float) -> Tensor:
    """Residual: the derivative of the softcap at the computed logit.

    (N, n), for the steepest `slope` within the error of the logits `raw`; without that error.
    """
    y = raw.abs() / softcap
    return torch.where(slope == 0, 0.0, slope * ((8 + 2 * y) * U + 2 * ANY.exponential(2 * y, y).largest))


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

    (N, n), at a power-of-two `scale`. fp32 residuals are scaled, and may be subnormal. What rows of E that dC takes at
    their scale lose there is of this stage, too.
    """
    if fmt.is_fp32:
        return torch.full_like(g, FP32.tiny)
    return fmt.u * (g.abs() + error) + fmt.tiny / 2 * scale


@_stage()
def tile_product(absolute: Tensor, size: Tensor, terms: int, arithmetic: Arithmetic, steps: int = 1) -> RandomError:
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
) -> RandomError:
    """Sum: an increment is added under the variant's scheme.

    Of the sum's shape, from the largest sizes of the sum after and before, and of the increment as it was cast.
    storage, fp32: one rounding; |rn(s + x) - (s + x)| <= |x|, |s| too, since both are representable: a sum that
    stagnates loses x, no more, and the first increment is exact.
    kahan: rn(c + x) rounds, c being at most u_b |s|; the TwoSum behind it is exact (Knuth, TAOCP 2, 4.2.2).
    hilo: the fp32 sum, and the low part rounded.
    """
    if scheme == "kahan":
        low = torch.minimum(fmt.half_ulp(size + fmt.u * before) + half_tiny, fmt.u * before)
        return RandomError.certain(low)
    if scheme == "hilo":
        low = (4 * U * U if fmt.is_fp32 else 2 * U + fmt.u * fmt.u) * total + half_tiny
        return RandomError.certain(low)
    if scheme == "fp32":
        return RandomError.addition(FP32.half_ulp(total), torch.minimum(size, before))
    return RandomError.certain(torch.minimum(fmt.half_ulp(total) + half_tiny, torch.minimum(size, before)))


@_stage(lambda variant, problem: variant.tail == "rank1")
def add_tail(size: Tensor, given_back: Tensor, count: int) -> Tensor:
    """Sum: what rows lost to the filter is given back along one vector.

    Of the sum's shape, from its largest `size` and that of what is given back, along a vector that sums `count`
    products: in fp32 every 64th one of a part after the other, then 64 such sums and the parts in fp64. Eight more
    roundings are those of a row's loss times its upstream gradients, of the product and of the addition.
    """
    return U * ((-(-count // (PARTS * BLOCK)) + 8) * given_back + size)


@_stage(lambda variant, problem: problem.bias is not None)
def sum_bias(g: Tensor, error: Tensor, block_n: int, arithmetic: Arithmetic) -> RandomError:
    """dbias: residuals are summed over the rows of a tile and over the tiles, in fp32.

    (n,), from residuals g (N, n) that are computed within `error`.
    """
    bound = arithmetic.column_sum(g, error, block_n)
    return bound.plus(RandomError.certain(torch.full_like(bound.largest, 2 * len(g) * FP32.tiny)))


@_stage()
def cast_output(scheme: str, total: Tensor, fmt: Format) -> Tensor:
    """Output: the fp32 sum is rounded to the storage dtype, or the companion of the sum is dropped.

    Of the sum's shape, from its largest size.
    """
    if fmt.is_fp32 and scheme in ("storage", "fp32"):
        return torch.full_like(total, fmt.tiny / 2)  # of a row's power of two
    if scheme == "storage":
        return torch.full_like(total, fmt.tiny)
    return fmt.half_ulp(total) + fmt.tiny
