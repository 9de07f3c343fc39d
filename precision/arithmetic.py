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

MMA_TERMS = 16
"""Products that a Hopper tensor core adds at once."""

DOUBLE_U = 2.0**-53

LOG2_E_ERROR = -0.22397177639
"""Of log2(e) in fp32 (`kernels.rounding.LOG2_E`), in units of u, relatively."""


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic that admits every order of summation, tensor cores, which truncate, and fast exponentials."""

    name: str = "fp32 in any order, or tensor cores"

    def product(self, absolute: Tensor, size: Tensor, terms: int, steps: int = 1) -> Tensor:
        """The error of fp32 products of `terms` pairs, from A = sum |a||b| and their size, in so many `steps` of the
        kernel.

        A tensor core aligns 16 products and the accumulator to the largest exponent and drops bits under 2^-25 of it,
        then truncates to 24 bits: at most (8 + 2) u of the terms' sum per step of 16. Rounding to nearest costs u per
        addition.
        """
        return (max(terms, 10 * -(-terms // MMA_TERMS)) + 1) * U * absolute

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

    def tile_sum(self, terms: Tensor, margin: Tensor) -> Tensor:
        """(N, 1) the error of fp32 sums of (N, n) terms >= 0, which are computed to within a factor 1 + `margin`."""
        return terms.shape[1] * U * (1 + margin) * terms.sum(1, keepdim=True)

    def column_sum(self, g: Tensor, error: Tensor, block_n: int) -> Tensor:
        """(n,) the error of fp32 sums over the rows of g (N, n), computed within `error`: of a tile, then of tiles."""
        return (block_n + -(-len(g) // block_n)) * U * (g.abs() + error).sum(0)

    def exponential(self, x: Tensor, *, pieces: bool = False) -> Tensor:
        """Relative error of exp(-x), x >= 0: the GPU multiplies by log2(e) and calls ex2.approx.

        2 + 1.173 |x| ulp (CUDA C++ Programming Guide, __expf). `pieces`: x is covered by several exponentials, of which
        one is counted in full.
        """
        return U * (4 + 2 * 1.173 * x)

    def skew(self, x: Tensor) -> Tensor:
        """What is known of the exponent of a computed exp(-x), before any rounding."""
        return torch.zeros_like(x)

    def logarithm(self, log_s: Tensor) -> Tensor:
        """Error of a computed log s, within 2 ulp."""
        return 4 * U * log_s.abs()

    def upstream(self, gradient: Tensor) -> Enclosure:
        """What reaches the kernel of an exact upstream gradient: it comes divided by N and rounded to fp32."""
        return Enclosure.around(gradient, 2 * U * gradient.abs())

    def residual(self, first: Tensor, second: Tensor, q: Tensor) -> Tensor:
        """Rounding error of dloss (p - q) + dlse p, from the sizes of its terms: a difference, two products, a sum."""
        return 3 * U * (first + second)

    def cast(self, g: Tensor, error: Tensor, scale: Tensor, fmt: Format) -> Enclosure | None:
        """Residuals within `error` of g after their rounding to `fmt` at a power-of-two `scale`, where it is known."""
        return None


@dataclass(frozen=True)
class Interpreter(Arithmetic):
    """Our kernels in Triton's interpreter: a block's product is exact but for one rounding (`kernels.emulation`), and
    numpy sums pairwise, exponentiates and takes logarithms.

    numpy 2.4's fp32 functions with AVX-512, over all arguments: exp2 on [-126, 0] errs by at most 1.75 u, relatively;
    log by 3.96 u on (1, 4), by 1.41 u above. glibc's are within an ulp, 2 u. A test tries some on the machine at hand.
    """

    name: str = "Triton's interpreter"

    def product(self, absolute: Tensor, size: Tensor, terms: int, steps: int = 1) -> Tensor:
        """Every step rounds its own product, and all but the first the sum."""
        exact = (2 * terms + 4) * DOUBLE_U * absolute
        return exact + (FP32.half_ulp(size + exact) if steps == 1 else steps * U * (absolute + exact))

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

    def tile_sum(self, terms: Tensor, margin: Tensor) -> Tensor:
        """Eight running sums for up to 128 terms, joined in three steps, and halves of what is longer."""
        length, size = min(terms.shape[1], 128), (1 + margin)[:, :, None, None]
        running = terms.unflatten(1, (-1, length // 8, 8)).cumsum(2)
        rounding = FP32.half_ulp(running[:, :, 1:] * size).sum((1, 2, 3))
        sums = running[:, :, -1].flatten(1)  # neighbours are joined, until there is one
        while sums.shape[1] > 1:
            sums = sums.unflatten(1, (-1, 2)).sum(2)
            rounding = rounding + FP32.half_ulp(sums * (1 + margin)).sum(1)
        return rounding[:, None]

    def column_sum(self, g: Tensor, error: Tensor, block_n: int) -> Tensor:
        """One row after another in a tile, one tile after another: errors are relative to those partial sums."""
        bound, total, uncertain = (g.new_zeros(g.shape[1]) for _ in range(3))
        for rows, errors in zip(g.split(block_n), error.split(block_n), strict=True):
            uncertain = uncertain + errors.sum(0)
            # Scaled by its power of two each row's g is what it was, or subnormal.
            partial = FP32.half_ulp(rows.cumsum(0).abs() + errors.cumsum(0) + len(rows) * U * rows.abs().sum(0))
            bound = bound + partial.sum(0)
            total = total + rows.sum(0)
            bound = bound + FP32.half_ulp(total.abs() + uncertain + bound)
        return bound

    def exponential(self, x: Tensor, *, pieces: bool = False) -> Tensor:
        """The product with log2(e) is rounded, and exp2 has 2 u; log2(e) itself is a matter of `skew`."""
        if pieces:
            return (1 - LOG2_E_ERROR) * U * x + 2 * U
        return math.log(2) * FP32.half_ulp(x * (1 + 2 * U) / math.log(2)) + 2 * U

    def skew(self, x: Tensor) -> Tensor:
        """log2(e) in fp32 is 0.224 u too small."""
        return -LOG2_E_ERROR * U * x

    def logarithm(self, log_s: Tensor) -> Tensor:
        return torch.where(log_s < math.log(4), 4 * U, 2 * U) * log_s.abs()

    def upstream(self, gradient: Tensor) -> Enclosure:
        """torch's autograd divides in float64 and rounds once."""
        return Enclosure.around(gradient, 4 * DOUBLE_U * gradient.abs()).rounded()

    def residual(self, first: Tensor, second: Tensor, q: Tensor) -> Tensor:
        """p - 0 is exact, p - 1 rounds once, and so do two products and a sum, which is exact where a term is 0. The
        row's power of two, which comes later, changes no rounding."""
        terms = torch.where(q > 0, U * first, 0.0) + FP32.half_ulp(first) + FP32.half_ulp(second)
        return terms + torch.where((first > 0) & (second > 0), FP32.half_ulp(first + second), 0.0)

    def cast(self, g: Tensor, error: Tensor, scale: Tensor, fmt: Format) -> Enclosure | None:
        low, high = Enclosure.around(g / scale, error / scale).rounded(fmt.dtype)
        return Enclosure(low * scale, high * scale)


ANY = Arithmetic()


def own() -> Arithmetic:
    """That of our own kernels in this process."""
    return Interpreter() if IS_INTERPRETED else ANY
