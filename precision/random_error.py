"""`RandomError`: a rounding error, or a sum of them, as a bound that always holds and a distribution that likely does.

n errors of random sign add up to the root of n, not to n (Higham and Mary, SIAM J. Sci. Comput. 41, 2019; Ipsen and
Zhou, SIAM J. Matrix Anal. 41, 2020). The model: the k >= 1 bits that a rounding to nearest discards are equally likely
given all that was computed before, and ties are broken either way. Its error is then h (+-1/2 +-1/4 ... +-2^-k +-2^-k)
with h half a unit in the last place and signs that are independent, and so sub-Gaussian: E exp(t x) <= exp(t^2 s / 2)
with s its variance h^2 (1/3 + 2/3 4^-k), since cosh t <= exp(t^2 / 2). So are weighted sums, whose proxies s add up as
variances do (Azuma's inequality; Vershynin, "High-Dimensional Probability", 2018, 2.5 and 2.6).

Not random: an addend that is lost whole or nearly so, what a polynomial is off by, constants, filters, underflow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FAILURE = 0.01
"""Probability, in the model, that any element of any output of a problem is further off than likely."""

RANDOM_BITS = 4
"""An addend of fewer half units in the last place of its sum, by this power of two, is lost in one direction."""


class RandomError(NamedTuple):
    """|error| <= `largest`, and error = s + x with |s| <= `systematic` and x sub-Gaussian of variance `proxy`."""

    largest: Tensor
    systematic: Tensor
    proxy: Tensor

    @classmethod
    def certain(cls, bound: Tensor) -> RandomError:
        return cls(bound, bound.clone(), torch.zeros_like(bound))

    @classmethod
    def rounding(cls, half_ulp: Tensor, last: Tensor | float = torch.inf) -> RandomError:
        """To nearest: `half_ulp` of the result, and half the `last` digit of what is rounded, 0 for very many digits.

        At least one bit is discarded; where there is none, there is no error.
        """
        least = torch.minimum(half_ulp / 2, torch.as_tensor(last, dtype=half_ulp.dtype, device=half_ulp.device))
        return cls(half_ulp, torch.zeros_like(half_ulp), (half_ulp.square() + 2 * least.square()) / 3)

    @classmethod
    def addition(cls, half_ulp: Tensor, smaller: Tensor, last: Tensor | float = torch.inf) -> RandomError:
        """Of two numbers: no more than the `smaller`, since the other is representable."""
        error = torch.minimum(half_ulp, smaller)
        is_lost = smaller < 2**RANDOM_BITS * half_ulp
        return cls.rounding(error, last).certain_where(is_lost)

    def plus(self, other: RandomError) -> RandomError:
        """Of two errors that are independent of each other."""
        return RandomError(*(x + y for x, y in zip(self, other, strict=True)))

    def certain_where(self, mask: Tensor) -> RandomError:
        systematic = torch.where(mask, self.largest, self.systematic)
        return self._replace(systematic=systematic, proxy=torch.where(mask, 0.0, self.proxy))

    def rest_certain(self, largest: Tensor) -> RandomError:
        """Under a larger bound, whose rest is systematic."""
        return RandomError(largest, self.systematic + (largest - self.largest).clamp(min=0), self.proxy)

    def capped(self, bound: Tensor) -> RandomError:
        """With another bound where that is the smaller one, or this is none."""
        is_less = ~(self.largest <= bound)
        largest, systematic = (torch.where(is_less, bound, x) for x in (self.largest, self.systematic))
        return RandomError(largest, systematic, torch.where(is_less, 0.0, self.proxy))

    def times(self, factor: Tensor | float) -> RandomError:
        """`factor` >= 0."""
        factor = torch.as_tensor(factor, device=self.largest.device)
        product = RandomError(self.largest * factor, self.systematic * factor, self.proxy * factor.square())
        return product.masked(factor != 0)  # an infinite error too

    def masked(self, keep: Tensor) -> RandomError:
        """Where `keep`, 0 elsewhere."""
        return RandomError(*(torch.where(keep, x, 0.0) for x in self))

    def coinciding(self, alike: Tensor | float) -> RandomError:
        """As terms of a sum in which `alike` of them are the same error (`coincidences`)."""
        return self._replace(proxy=self.proxy * alike)

    def weighted(self, weights: Tensor) -> RandomError:
        """(m, D) sums of (m, k) errors times (k, D) `weights` >= 0."""
        return RandomError(self.largest @ weights, self.systematic @ weights, self.proxy @ weights.square())

    def sum(self, dim: int) -> RandomError:
        """Along a dimension, which is kept."""
        return RandomError(*(x.sum(dim, keepdim=True) for x in self))


def likely(error: RandomError, elements: int, share: float) -> Tensor:
    """The bound of all `elements` of an output, which holds for each of them but for a probability of `share` FAILURE.

    P(|x| > t sqrt(proxy)) <= 2 exp(-t^2 / 2) for one (Hoeffding), and a union bound.
    """
    deviations = math.sqrt(2 * math.log(2 * max(elements, 1) / (share * FAILURE)))
    return torch.fmin(error.largest, error.systematic + deviations * error.proxy.sqrt())
