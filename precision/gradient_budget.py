"""The error budget of the gradients: residuals, their cast, the products of tiles, and the sums along the tiles."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Variant, accumulate
from ccelab.reference.double import ResidualChunk, Stream
from ccelab.reference.formula import Rows

from . import stages
from .accumulation import Accumulation
from .arithmetic import DOUBLE_U, Arithmetic
from .filtered_sum import FilteredSum
from .formats import Format, U
from .forward_budget import ForwardError, moved_softmax
from .logit_error import LogitError, logit_error, steepest_cap
from .stages import EXP_UNDERFLOW, FP32_TINY, LARGEST_FP32, overflowing
from .terms import Terms

HEADROOM: float = accumulate.HEADROOM.value  # dE is summed at this over the scale of its row


class GradientBudget:
    """Streams over the vocabulary in the kernel's order; dE's recursion runs along tiles of V, dC's along N."""

    def __init__(
        self,
        stream: Stream,
        rows: Rows,
        variant: Variant,
        schedule: Schedule,
        error: ForwardError,
        arithmetic: Arithmetic,
        by_stage: bool,
    ) -> None:
        self.stream, self.rows, self.variant = stream, rows, variant
        self.arithmetic, self.by_stage = arithmetic, by_stage
        problem = stream.problem
        self.fmt = Format.of(problem.embeddings.dtype)
        self.tiles, self.error, self.log_s = schedule.backward, error, torch.log1p(rows.rest)
        eps = torch.finfo(problem.embeddings.dtype).eps / 32 if variant.eps is None else variant.eps
        # (N, 1) the row's own upstream scale; what comes for an ignored row, an infinity or NaN even, is not read
        self.size = torch.where(stream.valid, stream.d_loss.abs() + stream.d_lse.abs(), 0.0)
        # The oracle's own rounding, as a share of dv, which holds at least u sum |g||C|.
        self.oracle_share = DOUBLE_U / U * (sum(problem.shape) + 64)
        self.threshold = torch.where(self.size > 0, eps * self.size, 0.0)
        # Upstream gradients and their sum reach the kernel rounded to fp32: near a power of two, the larger one.
        scale = torch.where(self.size > 0, 2.0 ** torch.floor(torch.log2(self.size * (1 + 8 * U))), 0.0)
        self.scale = scale.clamp(2.0**-126, 2.0**126)  # as rounding.power_of_two has it, of a row without upstream too
        self.live_e = self.live_c = (0, 0)

    def chunks(self, order: Tensor | None) -> Iterator[tuple[Tensor, Terms, Terms | None]]:
        """(columns, bound of dC there, bound of dbias there) for each chunk of the vocabulary; dE's grows with them."""
        self._sum = self._filtered(self.stream.embeddings, self.variant.filter_e, self.scale / HEADROOM)
        for part in self.stream.residuals(self.rows, order):
            dg = self._residual_error(part)
            surely, maybe = self._live_tiles(part.residual, dg.total)
            self._walk_vocabulary(part, dg, surely, maybe)
            d_bias = None if self.stream.problem.bias is None else self._bias_bound(part.residual, dg)
            yield part.columns, self._walk_rows(part, dg, surely, maybe), d_bias

    @property
    def d_embeddings(self) -> Terms:
        """(N, D), after all chunks."""
        return self._sum.terms()

    def _filtered(self, like: Tensor, is_filtered: bool, scale: Tensor | float = 1.0) -> FilteredSum:
        total = Accumulation(self.variant.accumulate, self.fmt, like, scale)
        return FilteredSum(total, is_filtered=is_filtered, oracle_share=self.oracle_share, by_stage=self.by_stage)

    def _residual_error(self, part: ResidualChunk) -> Terms:
        """(N, n) bounds on the fp32 residual, before its cast."""
        stream, logit = self.stream, self.logit_error(part)
        dp = self.softmax_error(part, logit)
        onehot = (part.columns == stream.targets).double()
        coefficient = (part.softmax - onehot).abs() * stream.d_loss.abs() + part.softmax * stream.d_lse.abs()
        dg = dp.times(self.size)
        moved_coefficient = coefficient + dg.total
        dg.add("load_upstream", stages.load_upstream(moved_coefficient))
        dg.add("residual", stages.residual(moved_coefficient))
        softcap = stream.problem.softcap
        if softcap is not None:
            away = logit.raw.total / softcap
            slope = steepest_cap(part.raw, logit.raw.total, softcap)
            # |d sech^2 / dy| = 2 |tanh| sech^2; and a slope lies in [0, slope] whatever the error
            change = torch.where(away < 0.5, 2 * slope * away, slope)
            size, flushed = dg.total, 4 * EXP_UNDERFLOW  # of the slope, 4 q / (1 + q)^2 with q an exponential
            dg = dg.times(slope).add("recompute_logits", _times(coefficient + size, change))
            rounded = stages.soft_cap_slope(slope, part.raw, softcap)
            dg.add("soft_cap_slope", _times(coefficient + size, rounded) + flushed * (self.size + size))
        return dg.clamped(1e300).masked(stream.valid)  # an infinity times a 0 of E or C would be NaN

    def logit_error(self, part: ResidualChunk) -> LogitError:
        """(N, n) bounds on the logits computed again."""
        return logit_error(
            self.stream, part.columns, part.raw, part.logits, self.tiles, self.arithmetic, by_stage=False
        )

    def softmax_error(self, part: ResidualChunk, logit: LogitError) -> Terms:
        """(N, n) bounds on the softmax computed again, from those on its logits."""
        rows, error = self.rows, self.error
        shifted = (rows.maximum - part.logits).abs()
        exponent = (shifted + self.log_s).abs()
        moved = Terms(self.by_stage).add("recompute_logits", stages.recompute_logits(logit.capped.total))
        moved.merge(error.lse_from_logits).merge(error.log_sum).add("softmax", stages.softmax(shifted, exponent))
        # Not capped at 1: a logit of 1e9 recomputed in other tiles may lie far above the maximum that forward found.
        lse = rows.maximum + self.log_s
        dp = moved.shared(moved_softmax(part, lse, moved.total, logit.capped.total))
        dp.add("softmax", torch.full_like(part.softmax, EXP_UNDERFLOW))
        return dp

    def _live_tiles(self, g: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
        """(row blocks, vocabulary tiles) bool: tiles surely live, and tiles that may be."""
        low, high = self.threshold * (1 - 4 * U), self.threshold * (1 + 4 * U)
        surely = self._any_in_tile(((g.abs() - dg) > high) | ~g.isfinite())
        maybe = self._any_in_tile(((g.abs() + dg) > low) | ~g.isfinite())
        return surely, maybe

    def _any_in_tile(self, mask: Tensor) -> Tensor:
        n, v = self.tiles.block_n, self.tiles.block_v
        padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % v, 0, -mask.shape[0] % n))
        tiles: Tensor = padded.unflatten(1, (-1, v)).any(2).unflatten(0, (-1, n)).any(1)
        return tiles

    def _spread(self, tiles: Tensor, like: Tensor) -> Tensor:
        """(N, n) from (row blocks, vocabulary tiles)."""
        rows = _elements(tiles, self.tiles.block_n, like.shape[0])
        return _elements(rows.T, self.tiles.block_v, like.shape[1]).T

    def _weights(self, g: Tensor, dg: Terms, scale: Tensor, terms: int) -> Terms:
        """(N, n) what errors of the residual and of its product come to, as weights on |C| or |E|."""
        weight = Terms(self.by_stage).merge(dg).add("cast_residual", stages.cast_residual(g, dg.total, scale, self.fmt))
        return weight.add("tile_product", stages.tile_product(g, terms, self.arithmetic)).masked(self.stream.valid)

    def _walk_vocabulary(self, part: ResidualChunk, dg: Terms, surely: Tensor, maybe: Tensor) -> None:
        block, g = self.tiles.block_v, part.residual
        weight = self._weights(g, dg, self.scale, block)
        classifier = self.stream.classifier(part.columns)
        if not self.variant.filter_e:
            surely = maybe = torch.ones_like(surely)
        self.live_e = (self.live_e[0] + int(surely.sum()), self.live_e[1] + int(maybe.sum()))
        whole = weight.total
        for tile in range(surely.shape[1]):
            span = slice(tile * block, (tile + 1) * block)
            v = g[:, span] @ classifier[span]
            own = len(part.columns) * DOUBLE_U * v.abs()  # the oracle's
            own += (block + 1) * FP32_TINY * self.scale / HEADROOM  # sums of subnormal products
            largest = (g.abs() + whole)[:, span].sum(1, keepdim=True) * classifier[span].abs().amax(0)
            own = overflowing(largest, own, LARGEST_FP32 * self.scale)  # HEADROOM comes after the product
            dv = whole[:, span] @ classifier[span].abs() + own
            rows = (_elements(live[:, tile], self.tiles.block_n, len(v))[:, None] for live in (surely, maybe))
            self._sum.add(v, dv, own, *rows)
        if self.by_stage:
            for stage, w in weight.masked(self._spread(maybe, g)).items():
                self._sum.increments.add(stage, w @ classifier.abs())

    def _walk_rows(self, part: ResidualChunk, dg: Terms, surely: Tensor, maybe: Tensor) -> Terms:
        """(n, D) the bound of dC in these columns."""
        embeddings, block = self.stream.embeddings, self.tiles.block_n
        if not self.variant.filter_c:
            surely = maybe = torch.ones_like(surely)
        self.live_c = (self.live_c[0] + int(surely.sum()), self.live_c[1] + int(maybe.sum()))
        scale = torch.cat([s.amax().expand(len(s), 1) for s in self.scale.split(block)])
        weight = self._weights(part.residual, dg, scale, block)
        whole = weight.total
        total = self._filtered(embeddings.new_zeros((len(part.columns), embeddings.shape[1])), self.variant.filter_c)
        for place in range(surely.shape[0]):
            span = slice(place * block, (place + 1) * block)
            e = embeddings[span]
            v = part.residual[span].T @ e
            own = len(embeddings) * DOUBLE_U * v.abs()
            own += (block + 1) * FP32_TINY * (1.0 if self.fmt.is_fp32 else scale[span].amax().clamp(min=1))
            largest = (part.residual.abs() + whole)[span].sum(0)[:, None] * e.abs().amax(0)
            own = overflowing(largest, own, LARGEST_FP32 * (1.0 if self.fmt.is_fp32 else scale[span].amax()))
            dv = whole[span].T @ e.abs() + own
            columns = (_elements(live[place], self.tiles.block_v, len(v))[:, None] for live in (surely, maybe))
            total.add(v, dv, own, *columns)
        if self.by_stage:
            for stage, w in weight.masked(self._spread(maybe, part.residual)).items():
                total.increments.add(stage, w.T @ embeddings.abs())
        return total.terms()

    def _bias_bound(self, g: Tensor, dg: Terms) -> Terms:
        """(n,) the bound of dbias in these columns."""
        bias = self.stream.problem.bias
        assert bias is not None
        storage = Format.of(bias.dtype)
        size = (g.abs() + dg.total).sum(0)
        terms = Terms(self.by_stage, {stage: bound.sum(0) for stage, bound in dg.items()})
        terms.add("sum_bias", stages.sum_bias(size, len(g), self.tiles.block_n))
        total = g.sum(0).abs() + terms.total
        cast = storage.u * total + storage.tiny / 2
        fits = (size < LARGEST_FP32) & (total < storage.largest)
        return terms.add("cast_output", torch.where(fits, cast, torch.inf))


def _elements(tiles: Tensor, block: int, size: int) -> Tensor:
    """`size` entries along the first dimension from one for each block of them."""
    return tiles.repeat_interleave(block, 0)[:size]


def _times(size: Tensor, slope: Tensor) -> Tensor:
    """size * slope, and inf for an infinite size: a softmax that overflowed, times a slope of 0, is NaN."""
    return torch.where(size == torch.inf, torch.inf, size * slope)
