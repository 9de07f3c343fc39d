"""`ResidualError`: how far fp32 residuals, and what the tensor core gets of them, are from the exact ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import stages
from .arithmetic import Arithmetic
from .formats import Format
from .random_error import RandomError
from .terms import Terms


@dataclass(frozen=True, eq=False)
class ResidualError:
    """A computed residual is within `own` of g + `known` + kappa `alike`, as a softmax is (`SoftmaxError`)."""

    known: Tensor  # (N, n)
    alike: Tensor | None  # (N, n)
    kappa: Terms | None  # (N, 1)
    own: Terms  # (N, n)
    random: RandomError | None = None  # (N, n), whose bound `own` is, where it is known
    random_kappa: RandomError | None = None  # (N, 1)
    common: Tensor | None = None  # (N, n) what of `random` may be the same for all entries of a row

    def along_rows(self, entries: Tensor) -> ResidualError:
        """As terms of sums over the vocabulary, so many of which have the same error (`coincidences`)."""
        if self.random is None or self.common is None:
            return self
        random = self.random.coinciding(entries)
        return replace(self, random=random._replace(systematic=random.systematic + self.common))

    def along_columns(self, entries: Tensor, rows: Tensor, same_log: Tensor) -> ResidualError:
        """As terms of sums over the tokens, so many of which have the same error, and so many the same kappa or the
        same log sum."""
        if self.random is None or self.random_kappa is None or self.common is None:
            return self
        random = self.random.coinciding(entries)
        random = random._replace(systematic=random.systematic + torch.where(same_log > 1, self.common, 0.0))
        return replace(self, random=random, random_kappa=self.random_kappa.coinciding(rows))

    def apart(self) -> ResidualError:
        """As if kappa were another number in every entry."""
        if self.alike is None or self.kappa is None:
            return self
        own = Terms(self.own.by_stage).merge(self.own).merge(self.kappa.times(self.alike.abs()))
        random = self.random
        if random is not None and self.random_kappa is not None:
            random = random.plus(self.random_kappa.times(self.alike.abs()))
        return ResidualError(self.known, None, None, own, random)

    def cast(
        self, g: Tensor, scale: Tensor, underflow: Tensor, fmt: Format, arithmetic: Arithmetic, valid: Tensor
    ) -> ResidualError:
        """After the rounding of g at a power-of-two `scale`, to storage dtype; fp32 is only scaled.

        Where the arithmetic knows the computed residual well enough, its rounding is known. `underflow` is what another
        scale, where that is not certain, might make of it.
        """
        apart = self.apart()
        error = apart.own.total
        rounding = stages.cast_residual(g + self.known, error, scale, fmt)
        enclosed = None if fmt.is_fp32 else arithmetic.cast(g + self.known, error, scale, fmt)
        if enclosed is None:
            own = Terms(self.own.by_stage).merge(self.own).add("cast_residual", rounding).masked(valid)
            random = None if self.random is None else self.random.rest_certain(own.total).masked(valid)
            return ResidualError(self.known, self.alike, self.kappa, own, random, self.random_kappa)
        certain = enclosed.low.isfinite() & enclosed.high.isfinite() & (underflow < torch.inf)
        known = torch.where(certain, enclosed.middle - g, self.known)
        radius = torch.where(certain, enclosed.radius + underflow, error + rounding)
        before = torch.minimum(radius, error)
        own = apart.own.shared(before).add("cast_residual", radius - before).masked(valid)
        return ResidualError(torch.where(valid, known, 0.0), None, None, own)

    def of_scaled_rows(self, g: Tensor, loss: Tensor) -> ResidualError:
        """Of a cast residual of g in a product with rows that lost up to `loss` (N, 1) of every entry, in parts."""
        size = (g + self.known).abs() + self.apart().own.total
        lost = torch.where(loss > 0, size * loss, 0.0)
        own = Terms(self.own.by_stage).merge(self.own).add("cast_residual", lost)
        return replace(self, own=own)
