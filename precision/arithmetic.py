"""How products and sums are added up where a kernel runs: what the budget of rounding errors depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels.backend import IS_INTERPRETED

from .enclosure import Enclosure
from .formats import FP32, Format, U
from .products import Products, blockwise
from .random_error import RandomError

MMA_TERMS = 16
"""Products that a Hopper tensor core adds at once."""

DOUBLE_U = 2.0**-53

LOG2_E_ERROR = -0.22397177639
"""Of log2(e) in fp32 (`kernels.rounding.LOG2_E`), in units of u, relatively."""


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic that admits every order of summation, tensor cores, which truncate, and fast exponentials."""

    name: str = "fp32 in any order, or tensor cores"
    rounds_to_nearest: bool = False  # everywhere; then errors are random, else certain

    def product(self, absolute: Tensor, size: Tensor, terms: int, steps: int = 1) -> RandomError:
        """The error of fp32 products of `terms` pairs, from A = sum |a||b| and their size, in so many `steps` of the
        kernel.

        A tensor core aligns 16 products and the accumulator to the largest exponent and drops bits under 2^-25 of it,
        then truncates to 24 bits: at most (8 + 2) u of the terms' sum per step of 16. Rounding to nearest costs u per
        addition.
        """
        return RandomError.certain((max(terms, 10 * -(-terms // MMA_TERMS)) + 1) * U * absolute)

    def underflow(self, terms: int, steps: int) -> float:
        """What such a product may lose beside that, where it or any of its terms is subnormal, once scaled too."""
        return (terms + 1) * FP32.tiny

    def logits(self, e: Tensor, c: Tensor, block_d: int, fmt: Format) -> Products:
        """E C^T, (N, n), that is summed in blocks of block_d columns.

        A rounding error is relative to the partial sum at hand, at most P, the largest after whole blocks, plus the
        share of its own block in A = |E||C|^T: u (k1 A + k2 P) with k1 about block_d and k2 the roundings of the
        accumulator, instead of u D A.
        """
        d = e.shape[1]
        block = min(block_d, d)
        if fmt.is_fp32:
            in_block, accumulator = block + 1, d
        else:
            in_block, accumulator = max(block, 10 * -(-block // MMA_TERMS) + 10), 10 * -(-d // MMA_TERMS)
        if d == 1:  # one exact product, or one rounding
            in_block, accumulator = 1, 0
        absolute = e.new_zeros(len(e), len(c))
        partial, largest = torch.zeros_like(absolute), torch.zeros_like(absolute)
        for product, size in blockwise(e, c, block_d):
            absolute += size
            partial += product
            torch.maximum(largest, partial.abs(), out=largest)
        # The bound on computed partial sums is P plus the error itself, hence the division.
        error = U * (in_block * absolute + accumulator * largest) / (1 - accumulator * U)
        return Products(absolute, error, None)

    def tile_sum(self, terms: Tensor, margin: Tensor, segment: int) -> RandomError:
        """(N, 1) the error of fp32 sums of (N, n) terms >= 0, which are computed to within a factor 1 + `margin`: of
        each `segment` of columns, then of those."""
        return RandomError.certain(terms.shape[1] * U * (1 + margin) * terms.sum(1, keepdim=True))

    def column_sum(self, g: Tensor, error: Tensor, block_n: int) -> RandomError:
        """(n,) the error of fp32 sums over the rows of g (N, n), computed within `error`: of a tile, then of tiles."""
        return RandomError.certain((block_n + -(-len(g) // block_n)) * U * (g.abs() + error).sum(0))

    def exponential(self, x: Tensor, less: Tensor) -> RandomError:
        """Relative error of exp(-x), x >= 0, or an x that is `less` by that much: the GPU multiplies by log2(e) and
        calls ex2.approx.

        2 + 1.173 |x| ulp (CUDA C++ Programming Guide, __expf).
        """
        return RandomError.certain(U * (4 + 2 * 1.173 * x))

    def skew(self, x: Tensor) -> Tensor:
        """What is known of the exponent of a computed exp(-x), before any rounding."""
        return torch.zeros_like(x)

    def logarithm(self, log_s: Tensor) -> RandomError:
        """Error of a computed log s, within 2 ulp."""
        return RandomError.certain(4 * U * log_s.abs())

    def upstream(self, gradient: Tensor) -> Enclosure:
        """What reaches the kernel of an exact upstream gradient: it comes divided by N and rounded to fp32."""
        return Enclosure.around(gradient, 2 * U * gradient.abs())

    def residual(self, minus: Tensor, p: Tensor, q: Tensor, d_loss: Enclosure, d_lse: Enclosure) -> RandomError:
        """Rounding error of dloss (p - q) + dlse p, from the sizes of p - q and p: two products, two sums."""
        return RandomError.certain(3 * U * (minus * d_loss.largest + p * d_lse.largest))

    def cast(self, g: Tensor, error: Tensor, scale: Tensor, fmt: Format) -> Enclosure | None:
        """Residuals within `error` of g after their rounding to `fmt` at a power-of-two `scale`, where it is known."""
        return None


LOG_HALVES = ((2.0, 3.06, 0.85), (4.0, 2.33, 0.55), (8.0, 1.75, 0.55), (64.0, 1.42, 0.55))
"""Of numpy's log from the first number on: the largest error in halves of a unit in the last place, and its variance
proxy in squares of them. It has more than one rounding inside."""

LOG_BIAS = 0.125
"""In such halves: the mean over 8000 arguments in a row."""

EXP2_REST_NEAR_0 = 0.4
"""What numpy's exp2 adds to half a unit in the last place on [-2^-10, 0], in such halves."""


def _addition(a: Tensor, b: Tensor, factor: Tensor) -> RandomError:
    """(N, 1) all errors of (N, k) sums a + b of numbers >= 0, computed to within a factor."""
    return RandomError.addition(FP32.half_ulp((a + b) * factor), torch.minimum(a, b) * factor).sum(1)


def _numpy_sum(terms: Tensor, size: Tensor) -> tuple[RandomError, Tensor]:
    """(N, 1) the error of all sums along the last dimension of (N, k, n), a power of two, and (N, k) those: one after
    another below 8 terms; eight running sums for up to 128, joined in three steps; and halves of what is longer."""
    n = terms.shape[2]
    lanes = terms[..., None] if n < 8 else terms.unflatten(2, (-1, min(n, 128) // 8, 8)).flatten(1, 2)
    running = lanes.cumsum(2)
    rounding = _addition(running[:, :, :-1].flatten(1), lanes[:, :, 1:].flatten(1), size)
    sums = running[:, :, -1].flatten(1)  # neighbours are joined, until there is one of each
    while sums.shape[1] > terms.shape[1]:
        rounding = rounding.plus(_addition(sums[:, ::2], sums[:, 1::2], size))
        sums = sums.unflatten(1, (-1, 2)).sum(2)
    return rounding, sums


@dataclass(frozen=True)
class Interpreter(Arithmetic):
    """Our kernels in Triton's interpreter: a block's product is exact but for one rounding (`kernels.emulation`), and
    numpy sums pairwise, exponentiates and takes logarithms.

    numpy 2.4's fp32 functions with AVX-512, over all arguments: exp2 on [-126, 0] errs by at most 1.75 u, relatively,
    and 2.01 halves of a unit in the last place, 1.35 on [-2^-10, 0]; log by 3.96 u on (1, 4), above 2 as LOG_HALVES
    has it. glibc's are within 1.01 and, above 2, 1.08 halves. A test tries some on the machine at hand. The last
    rounding of exp2 is as random as any other; what its table is off by is not: over a narrow range it has one sign.
    """

    name: str = "Triton's interpreter"
    rounds_to_nearest: bool = True

    def product(self, absolute: Tensor, size: Tensor, terms: int, steps: int = 1) -> RandomError:
        """Every step rounds its own product, and all but the first the sum: on the way that is at most the sum of all
        terms of one sign, and in the end the result."""
        exact = (2 * terms + 4) * DOUBLE_U * absolute
        if steps == 1:
            return RandomError.rounding(FP32.half_ulp(size + exact), last=0.0).plus(RandomError.certain(exact))
        of_products = RandomError.rounding(U * (absolute + exact), last=0.0)
        on_the_way, last = (FP32.half_ulp((x + exact) * (1 + 2 * steps * U)) for x in ((absolute + size) / 2, size))
        of_sums = (steps - 2) * on_the_way + last
        return of_products.plus(RandomError.certain(of_sums + exact))

    def underflow(self, terms: int, steps: int) -> float:
        """Sums of subnormal numbers are exact."""
        return (steps + 1) * FP32.tiny / 2

    def logits(self, e: Tensor, c: Tensor, block_d: int, fmt: Format) -> Products:
        """Products of numbers that are known: so are their roundings, unless one is a tie but for float64's error.

        float64 sums twice: in the kernel and here.
        """
        absolute = e.new_zeros(len(e), len(c))
        total = Enclosure(torch.zeros_like(absolute), torch.zeros_like(absolute))
        for product, size in blockwise(e, c, block_d):
            absolute += size
            block = Enclosure.around(product, (2 * min(block_d, e.shape[1]) + 4) * DOUBLE_U * size).rounded()
            total = total.plus(block)
        return Products(absolute, total.error(e @ c.T).largest + (2 * e.shape[1] + 4) * DOUBLE_U * absolute, total)

    def tile_sum(self, terms: Tensor, margin: Tensor, segment: int) -> RandomError:
        within, sums = _numpy_sum(terms.unflatten(1, (-1, segment)), 1 + margin)
        across, _ = _numpy_sum(sums[:, None], 1 + margin)
        return within.plus(across)

    def column_sum(self, g: Tensor, error: Tensor, block_n: int) -> RandomError:
        """One row after another in a tile, one tile after another: errors are relative to those partial sums."""
        total, uncertain = g.new_zeros(g.shape[1]), g.new_zeros(g.shape[1])
        bound = RandomError.certain(total)
        for rows, errors in zip(g.split(block_n), error.split(block_n), strict=True):
            # Scaled by its power of two each row's g is what it was, or subnormal.
            partial = rows.cumsum(0).abs() + errors.cumsum(0) + len(rows) * U * rows.abs().sum(0)
            before = torch.cat([torch.zeros_like(partial[:1]), partial[:-1]])
            added = RandomError.addition(FP32.half_ulp(partial), torch.minimum(before, rows.abs() + errors)).sum(0)
            bound = bound.plus(RandomError(*(x[0] for x in added)))
            here = rows.sum(0)
            uncertain = uncertain + errors.sum(0)
            smaller = torch.minimum(total.abs(), here.abs()) + uncertain + bound.largest
            total = total + here
            bound = bound.plus(RandomError.addition(FP32.half_ulp(total.abs() + uncertain + bound.largest), smaller))
        return bound

    def exponential(self, x: Tensor, less: Tensor) -> RandomError:
        """The product with log2(e) is rounded, and exp2 has 1.75 u; log2(e) itself is a matter of `skew`."""
        product = math.log(2) * FP32.half_ulp(x * (1 + 2 * U) / math.log(2))
        # of a result that is no smaller than exp(-x), with the ulp of one that may be larger
        half = (FP32.half_ulp(torch.exp(less - x)) / torch.exp(-x)).nan_to_num(nan=U).clamp(max=U)
        rest = torch.where(x < 2.0**-10, EXP2_REST_NEAR_0 * half, half)
        random = RandomError.rounding(product, last=0.0).plus(RandomError.rounding(half, last=0.0))
        return random.plus(RandomError.certain(rest))

    def skew(self, x: Tensor) -> Tensor:
        """log2(e) in fp32 is 0.224 u too small."""
        return -LOG2_E_ERROR * U * x

    def logarithm(self, log_s: Tensor) -> RandomError:
        half = FP32.half_ulp(log_s.abs() * (1 + 2.0**-16))
        largest, proxy = 4 * U * log_s.abs(), math.inf * half
        for least, halves, square in LOG_HALVES:
            is_above = log_s >= math.log(least)
            largest = torch.where(is_above, halves * half, largest)
            proxy = torch.where(is_above, square * half.square(), proxy)
        random = RandomError(largest, LOG_BIAS * half, proxy)
        return random.certain_where(proxy == math.inf)

    def upstream(self, gradient: Tensor) -> Enclosure:
        """torch's autograd divides in float64 and rounds once."""
        return Enclosure.around(gradient, 4 * DOUBLE_U * gradient.abs()).rounded()

    def residual(self, minus: Tensor, p: Tensor, q: Tensor, d_loss: Enclosure, d_lse: Enclosure) -> RandomError:
        """p - 0 is exact, and p - 1 from p = 1/2 on (Sterbenz); products with powers of two are, and a sum with 0. The
        row's power of two, which comes later, changes no rounding."""
        inexact = torch.where((q > 0) & (minus >= 0.5), FP32.half_ulp(minus), 0.0)
        difference = RandomError.addition(inexact, p).times(d_loss.largest)
        first, second = minus * d_loss.largest, p * d_lse.largest
        for size, factor in ((first, d_loss), (second, d_lse)):
            is_power = (factor.low == factor.high) & (torch.frexp(factor.low).mantissa.abs() == 0.5)
            difference = difference.plus(RandomError.rounding(torch.where(is_power, 0.0, FP32.half_ulp(size))))
        return difference.plus(RandomError.addition(FP32.half_ulp(first + second), torch.minimum(first, second)))

    def cast(self, g: Tensor, error: Tensor, scale: Tensor, fmt: Format) -> Enclosure | None:
        low, high = Enclosure.around(g / scale, error / scale).rounded(fmt.dtype)
        return Enclosure(low * scale, high * scale)


ANY = Arithmetic()


def own() -> Arithmetic:
    """That of our own kernels in this process."""
    return Interpreter() if IS_INTERPRETED else ANY
