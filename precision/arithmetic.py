"""How products and sums are added up where a kernel runs: what the budget of rounding errors depends on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ccelab.kernels.backend import IS_INTERPRETED

from .formats import Format, U

MMA_TERMS = 16
"""Products that a Hopper tensor core adds at once."""

DOUBLE_U = 2.0**-53


@dataclass(frozen=True)
class Arithmetic:
    """An arithmetic that admits every order of summation, and tensor cores, which truncate."""

    name: str = "fp32 in any order, or tensor cores"

    def product(self, terms: int) -> float:
        """c such that a fp32 product of `terms` pairs is within c u sum |a||b|.

        A tensor core aligns 16 products and the accumulator to the largest exponent and drops bits under 2^-25 of it,
        then truncates to 24 bits: at most (8 + 2) u of the terms' sum per step of 16. Rounding to nearest costs u per
        addition.
        """
        return max(terms, 10 * -(-terms // MMA_TERMS)) + 1.0

    def chain(self, absolute: Tensor, largest: Tensor, d: int, block_d: int, fmt: Format) -> Tensor:
        """(N, n) a bound on the error of products over D that are summed in blocks of block_d columns, from
        A = |E||C|^T and P, the largest partial sum after whole blocks.

        A rounding error is relative to the partial sum at hand, at most P plus A's share of its own block:
        u (k1 A + k2 P) with k1 about block_d and k2 the roundings of the accumulator, instead of u D A.
        """
        block = min(block_d, d)
        if fmt.is_fp32:
            in_block, accumulator = block + 1, d
        else:
            in_block, accumulator = max(block, 10 * -(-block // MMA_TERMS) + 10), 10 * -(-d // MMA_TERMS)
        if d == 1:  # one exact product, or one rounding
            in_block, accumulator = 1, 0
        # The bound on computed partial sums is P plus the error itself, hence the division.
        return U * (in_block * absolute + accumulator * largest) / (1 - accumulator * U)

    def sum(self, terms: int) -> int:
        """Roundings on the way of one term into an fp32 sum of so many."""
        return terms


@dataclass(frozen=True)
class Interpreter(Arithmetic):
    """Our kernels in Triton's interpreter: a block's product is exact but for one rounding (`kernels.emulation`), and
    numpy sums pairwise."""

    name: str = "Triton's interpreter"

    def product(self, terms: int) -> float:
        return 1.0 + (2 * terms + 4) * DOUBLE_U / U

    def chain(self, absolute: Tensor, largest: Tensor, d: int, block_d: int, fmt: Format) -> Tensor:
        """Of the first block one rounding, of each other its own, of at most 2 P, and one of the sum. float64 sums
        twice: in the kernel and in the oracle."""
        roundings = 3 * -(-d // block_d) - 2
        return (U * roundings * largest + (2 * d + 4) * DOUBLE_U * absolute) / (1 - roundings * U)

    def sum(self, terms: int) -> int:
        """Eight running sums for up to 128 terms, joined in three steps, and halves of what is longer."""
        return min(terms, 128) // 8 + 8 + max(0, (terms - 1).bit_length() - 7)


ANY = Arithmetic()


def own() -> Arithmetic:
    """That of our own kernels in this process."""
    return Interpreter() if IS_INTERPRETED else ANY
