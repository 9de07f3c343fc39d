"""Error bounds of a gradient sum as it takes in increments, one recursion per scheme, per output element."""

from __future__ import annotations

import torch
from torch import Tensor

from . import stages
from .formats import FP32, Format
from .random_error import RandomError
from .stages import LARGEST_FP32, overflowing
from .tail import Tail
from .terms import Terms


class Accumulation:
    """Runs along the exact partial sums s_t of increments v_t and carries a bound B_t on the computed sum's error."""

    def __init__(self, scheme: str, fmt: Format, like: Tensor, scale: Tensor | float = 1.0) -> None:
        """`scale`, a power of two, is what the sums are multiplied by in the end: till then they underflow later."""
        self.scheme = "fp32" if scheme == "storage" and fmt.is_fp32 else scheme
        self.fmt = fmt
        self.scale = scale
        self.half_tiny = fmt.tiny / 2 * scale
        self.sum = torch.zeros_like(like)
        self.error = torch.zeros_like(like)
        self.common: Tensor | float = 0.0  # what an error that all increments have alike comes to in their sum
        self.cast = torch.zeros_like(like)  # what the casts of increments have of `error`
        self.added = RandomError.certain(torch.zeros_like(like))  # and what the additions have

    def add(self, v: Tensor, dv: Tensor, alike: Tensor | float = 0.0, common: Tensor | float = 0.0) -> None:
        """One more increment, exactly v and computed within dv and `alike`; the latter adds up to `common` so far."""
        before = self.sum.abs() + self.error + self.common
        self.sum, self.common = self.sum + v, common
        size = v.abs() + dv + alike
        if self.scheme in ("storage", "kahan"):
            cast = stages.cast_increment(size, self.half_tiny, self.fmt)
            self.cast = self.cast + cast
            dv, size = dv + cast, size + cast
        self.error = self.error + dv
        total = self.sum.abs() + self.error + self.common
        rounding = stages.add_increment(self.scheme, total, before, size, self.half_tiny, self.fmt)
        limit = LARGEST_FP32 if self.scheme == "fp32" else self.fmt.largest
        largest = torch.maximum(size, total + rounding.largest)
        rounding = rounding.rest_certain(overflowing(largest, rounding.largest, limit * self.scale))
        self.added = self.added.plus(rounding)
        self.error = self.error + rounding.largest

    def output_cast(self, tail: Tail | None = None) -> Tensor:
        """What the cast of the result adds to `error`: the companion is dropped, or the fp32 buffer rounded, as the sum
        of both and a tail is."""
        if tail is None:
            size, scheme = self.sum.abs() + self.error + self.common, self.scheme
        else:
            size, scheme = (self.sum + tail.product).abs() + self.error + self.common + self.tail_added(tail), "fp32"
        cast = stages.cast_output(scheme, size + self.fmt.tiny, self.fmt)
        return overflowing(size + cast, cast, self.fmt.largest)

    def tail_added(self, tail: Tail | None) -> Tensor:
        """What adding a tail to the sum rounds, and its companion before."""
        if tail is None:
            return torch.zeros_like(self.sum)
        size = self.sum.abs() + self.error + self.common
        joined = FP32.half_ulp(size) if self.scheme in ("kahan", "hilo") else torch.zeros_like(size)
        return joined + tail.added(size + joined, size + joined, self.scale, self.scale)

    def result(self, tail: Tail | None = None) -> Tensor:
        """The bound on the value that is returned."""
        return self.error + self.common + self.tail_added(tail) + self.output_cast(tail)

    def terms(self, by_stage: bool, increments: Terms, tail: Tail | None = None) -> Terms:
        """The bound of `result` by stage, given what `increments` contribute through their own errors."""
        if not by_stage:
            return Terms(by_stage).add("", self.result(tail))
        terms = Terms(by_stage).merge(increments)
        if self.scheme in ("storage", "kahan"):
            terms.add("cast_increment", self.cast)
        if tail is not None:
            terms.add("add_tail", self.tail_added(tail))
        return terms.add("add_increment", self.added.largest).add("cast_output", self.output_cast(tail))
