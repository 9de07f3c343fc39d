"""The error budget of the gradients: residuals, their cast, the products of tiles, and the sums along the tiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Variant, accumulate
from ccelab.reference import formula
from ccelab.reference.double import ResidualChunk, Stream
from ccelab.reference.formula import FLOAT64, Rows

from . import stages
from .accumulation import Accumulation
from .arithmetic import DOUBLE_U, Arithmetic
from .coincidences import coincidences
from .filtered_sum import Filtered, FilteredSum
from .formats import Format, U
from .forward_budget import ForwardError
from .increment import Increment, Slice, increment
from .logit_error import LogitError, logit_error
from .oracle_error import oracle_residual_error
from .random_error import RandomError
from .residual_error import ResidualError
from .softmax_error import SoftmaxError, softmax_error
from .stages import EXP_UNDERFLOW, LARGEST_FP32
from .steepest_cap import steepest_cap
from .tail import Tail
from .terms import Terms

Bound = tuple[Terms, RandomError]
"""By stage, and what of it is random."""

PIECE = {"cpu": 2**20, "cuda": 2**25}
"""Elements of dC that are bounded at once. Temporaries of many megabytes would each come fresh from the operating
system, whose page faults were three quarters of a report's time; a GPU's allocator keeps its memory, and small pieces
would leave it idle."""

SMALLEST_NORMAL = 2.0**-126
"""Of bf16 and fp32."""

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
        taken: Statistics | None = None,
    ) -> None:
        self.stream, self.rows, self.variant = stream, rows, variant
        self.arithmetic, self.by_stage = arithmetic, by_stage
        problem = stream.problem
        self.fmt = Format.of(problem.embeddings.dtype)
        self.schedule = schedule
        self.tiles, self.error, self.log_s = schedule.backward, error, torch.log1p(rows.rest)
        spacing = torch.finfo(problem.embeddings.dtype).eps
        self.eps, self.eps_e = variant.threshold(spacing), variant.threshold_e(spacing)
        self.stores = stages.stores(variant, problem)
        of_logits = "dot_logits" if self.stores else "recompute_logits"
        self.known_by = of_logits if self.fmt.is_fp32 else "cast_residual"
        # (N, 1) the row's own upstream scale; what comes for an ignored row, an infinity or NaN even, is not read
        self.size = torch.where(stream.valid, stream.d_loss.abs() + stream.d_lse.abs(), 0.0)
        self.upstream = tuple(arithmetic.upstream(x) for x in (stream.d_loss, stream.d_lse))
        # The oracle's own rounding in its sums, relative to sum |g||C|; `oracle_error` has that of its residuals.
        self.oracle = DOUBLE_U * (sum(problem.shape) + 64)
        self.threshold = torch.where(self.size > 0, self.eps_e * self.size, 0.0)  # of entries; of tiles eps_e is eps
        # Upstream gradients and their sum reach the kernel rounded to fp32: near a power of two, the larger one.
        sizes = [arithmetic.upstream(x.abs()) for x in (stream.d_loss, stream.d_lse)]
        low, high = (_power_of_two(torch.where(stream.valid, x, 0.0)) for x in sizes[0].plus(sizes[1]))
        self.scale = high
        self.unsure_scale = low != high
        self.scales_rows = stages.scales_rows(variant, problem)
        self.live_e = self.live_c = (0, 0)
        self._sum: FilteredSum | None = None
        self._increments = Terms(by_stage)
        # Residuals of 16 bits are known but for a few, and what remains is theirs.
        self.is_random = arithmetic.rounds_to_nearest and self.fmt.is_fp32
        self._random_kappa: RandomError | None = None
        self._prepare(taken)

    def _prepare(self, taken: Statistics | None) -> None:
        """What one kind of filter needs beside this; `taken` is what a call decided."""

    def of_columns(self, order: Tensor | None) -> Iterator[tuple[str, Tensor, Bound]]:
        """(output, columns, its bound there) of dC and dbias, as they go through the vocabulary; dE's grows with it."""
        for part in self.stream.residuals(self.rows, order):
            logit = self.logit_error(part)
            dg, oracle = self._residual_error(part, logit), self._oracle_error(part, logit)
            if self._sum is None:
                self._sum = self._filtered(
                    self.stream.embeddings, self.variant.filter_e, dg.kappa, self.scale / HEADROOM
                )
            surely, maybe = self._live_tiles(part, part.residual + dg.known, dg.apart().own.total)
            self._random_kappa = dg.random_kappa
            along, across = self._as_terms(part, dg)
            self._walk_vocabulary(part, along, oracle, surely, maybe)
            dg = across.apart()
            if self.stream.problem.bias is not None:
                yield "d_bias", part.columns, self._bias_bound(part.residual, dg)
            yield from self._walk_rows(part, dg, oracle, surely, maybe)

    def _as_terms(self, part: ResidualChunk, dg: ResidualError) -> tuple[ResidualError, ResidualError]:
        """Of sums over the vocabulary, and of sums over the tokens."""
        if not self.is_random:
            return dg, dg
        exponent = part.logits - formula.lse(FLOAT64, self.rows)
        pieces = -(-self.stream.vocabulary // self.stream.chunk)
        along = dg.along_rows(coincidences(exponent, pieces))
        return along, dg.along_columns(coincidences(exponent.T).T, self.error.alike, self.error.same_log)

    def pieces(self, columns: int) -> Iterator[slice]:
        """So many columns in pieces of whole tiles."""
        block = self.tiles.block_v
        elements = PIECE[self.stream.embeddings.device.type]
        step = max(1, elements // self.stream.embeddings.shape[1] // block) * block
        yield from (slice(start, start + step) for start in range(0, columns, step))

    @property
    def d_embeddings(self) -> Bound:
        """(N, D), after all columns."""
        assert self._sum is not None
        tail = self._tail_of_embeddings()
        terms = self._sum.terms(self._increments, tail)
        return terms, self._sum.random(terms.total, self._random_kappa, tail)

    def _tail_of_embeddings(self) -> Tail | None:
        """What is given back to dE, after all columns."""
        return None

    def _tail_of_classifier(self, columns: Tensor) -> Tail | None:
        """What is given back to dC in these columns."""
        return None

    def _filtered(
        self, like: Tensor, is_filtered: bool, kappa: Terms | None, scale: Tensor | float = 1.0
    ) -> FilteredSum:
        total = Accumulation(self.variant.accumulate, self.fmt, like, scale)
        return FilteredSum(total, is_filtered=is_filtered, kappa=kappa, known_by=self.known_by)

    def _oracle_error(self, part: ResidualChunk, logit: LogitError) -> Tensor:
        """(N, n) of sums and residuals, relative to |g||C|."""
        softcap = self.stream.problem.softcap
        return self.oracle + oracle_residual_error(part, logit.oracle, self.error.oracle, softcap)

    def _residual_error(self, part: ResidualChunk, logit: LogitError) -> ResidualError:
        """Of fp32 residuals, before their cast."""
        stream = self.stream
        softmax = self.softmax_error(part, logit)
        onehot = (part.columns == stream.targets).double()
        d_loss, d_lse = self.upstream
        minus, moved = (part.softmax - onehot).abs(), softmax.largest.clamp(max=1e300)  # for a product with 0
        first, second = minus + moved, part.softmax + moved
        size = d_loss.largest + d_lse.largest
        own = softmax.own.times(size)
        loaded = stages.load_upstream(first, second, d_loss, d_lse)
        rounding = stages.residual(first, second, onehot, d_loss, d_lse, self.arithmetic)
        own.add("load_upstream", loaded).add("residual", rounding.largest)
        common = softmax.common * size
        random = softmax.random.times(size).plus(rounding).plus(RandomError.certain(loaded))
        total = d_loss.middle + d_lse.middle
        known = (part.softmax - onehot) * (d_loss.middle - stream.d_loss)
        known = known + part.softmax * (d_lse.middle - stream.d_lse) + softmax.known * total
        alike, softcap = softmax.alike * total, stream.problem.softcap
        if softcap is not None:
            slope = formula.cap_derivative(FLOAT64, part.raw, softcap)
            known, alike = known * slope, alike * slope
            steepest = steepest_cap(part.raw, logit.raw.total, softcap)
            random, common = random.times(steepest), common * steepest
            own = self._soft_cap_slope(own, part, logit, first * d_loss.largest + second * d_lse.largest, size)
        # an infinity times a 0 of E or C would be NaN
        own = own.clamped(1e300).masked(stream.valid)
        known, alike = (torch.where(stream.valid, x, 0.0) for x in (known, alike))
        random = random.rest_certain(own.total).masked(stream.valid)
        random_kappa = softmax.random_kappa.masked(stream.valid)
        found = ResidualError(known, alike, softmax.kappa.masked(stream.valid), own)
        return replace(found, random=random, random_kappa=random_kappa, common=common) if self.is_random else found

    def _soft_cap_slope(self, own: Terms, part: ResidualChunk, logit: LogitError, g: Tensor, size: Tensor) -> Terms:
        """`own` after the product with the computed slope; `g` is the largest that the residual before it may be."""
        softcap = self.stream.problem.softcap
        assert softcap is not None
        away = logit.raw.total / softcap
        slope = steepest_cap(part.raw, logit.raw.total, softcap)
        # |d sech^2 / dy| = 2 |tanh| sech^2; and a slope lies in [0, slope] whatever the error
        change = torch.where(away < 0.5, 2 * slope * away, slope)
        flushed = 4 * EXP_UNDERFLOW  # of the slope, 4 q / (1 + q)^2 with q an exponential
        g = g + own.total
        own = own.times(slope).add("recompute_logits", _times(g, change))
        rounded = stages.soft_cap_slope(slope, part.raw, softcap)
        return own.add("soft_cap_slope", _times(g, rounded) + flushed * (size + g))

    def logit_error(self, part: ResidualChunk) -> LogitError:
        """(N, n) bounds on the logits computed again, or once for all."""
        tiles = self.schedule.forward if self.stores else self.tiles
        return logit_error(self.stream, part.columns, part.raw, part.logits, tiles, self.arithmetic, by_stage=False)

    def softmax_error(self, part: ResidualChunk, logit: LogitError) -> SoftmaxError:
        """Of the softmax, from the error of its logits."""
        return softmax_error(part, self.rows, self.error, logit, self.arithmetic, stores=self.stores)

    def _live_tiles(self, part: ResidualChunk, g: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
        """(row blocks, vocabulary tiles) bool: tiles surely live, and tiles that may be."""
        low, high = self.threshold * (1 - 4 * U), self.threshold * (1 + 4 * U)
        surely = self._any_in_tile(((g.abs() - dg) > high) | ~g.isfinite())
        maybe = self._any_in_tile(((g.abs() + dg) > low) | ~g.isfinite())
        return surely, maybe

    def _taken_in(self, part: ResidualChunk, surely: Tensor, maybe: Tensor) -> tuple[Tensor, Tensor]:
        """Of tiles that are surely and maybe live, those that sums surely and maybe take in."""
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

    def _cast(self, g: Tensor, dg: ResidualError, scale: Tensor, unsure: Tensor) -> ResidualError:
        underflow = torch.where(unsure, self.fmt.tiny / 2 * scale, 0.0)
        return dg.cast(g, scale, underflow, self.fmt, self.arithmetic, self.stream.valid)

    def _filtered_increment(
        self,
        g: Tensor,
        dg: Slice,
        other: Tensor,
        oracle: Tensor,
        live: list[Tensor],
        tiny: Tensor | float,
        limit: Tensor | float,
        steps: int,
    ) -> Filtered:
        """Of residuals g (m, k), of which `live` (m, k) are surely and maybe taken in, whole tiles."""
        surely, maybe = live
        if steps == 1:
            tile = self._multiplied(g, dg, other, oracle, tiny, limit, steps)
            return Filtered.of_tile(tile, surely[:, :1], maybe[:, :1])
        # What no row takes in is no factor of the product, and what all rows take in none of what is dropped.
        kept, dropped = maybe.any(0), ~maybe.all(0)
        kept[:1] = True
        of_kept = torch.where(maybe, g, 0.0)[:, kept], dg.masked(maybe).columns(kept), other[kept]
        taken = self._multiplied(*of_kept, oracle, tiny, limit, steps)
        rest, unsure = torch.where(maybe, 0.0, g), maybe & ~surely
        nothing = torch.zeros_like(taken.v)
        # float64's error is far below all others: a bound that needs no product will do
        left_out = oracle.amax(1, keepdim=True) * rest.abs().sum(1, keepdim=True) * other.abs().amax(0)
        doubtful, alike = nothing, None if dg.alike is None else nothing
        if bool(unsure.any()):
            doubtful = _weighted(unsure, g if dg.known is None else g + dg.known, other)
            alike = None if dg.alike is None else _weighted(unsure, dg.alike, other)
        return Filtered(taken, rest[:, dropped] @ other[dropped], doubtful, alike, left_out)

    def _multiplied(
        self,
        g: Tensor,
        dg: Slice,
        other: Tensor,
        oracle: Tensor,
        tiny: Tensor | float,
        limit: Tensor | float,
        steps: int,
    ) -> Increment:
        largest = oracle.amax(1, keepdim=True)
        return increment(g, dg, other, tiny=tiny, limit=limit, steps=steps, oracle=largest, arithmetic=self.arithmetic)

    def _walk_vocabulary(
        self, part: ResidualChunk, dg: ResidualError, oracle: Tensor, surely: Tensor, maybe: Tensor
    ) -> None:
        assert self._sum is not None
        block, g = self.tiles.block_v, part.residual
        cast = self._cast(g, dg, self.scale, self.unsure_scale)
        whole = Slice.of(cast)
        classifier = self.stream.classifier(part.columns)
        if not self.variant.filter_e:
            surely = maybe = torch.ones_like(surely)
        self.live_e = (self.live_e[0] + int(surely.sum()), self.live_e[1] + int(maybe.sum()))
        surely, maybe = self._taken_in(part, surely, maybe)
        # HEADROOM comes after the product
        tiny, limit = self.scale / HEADROOM, LARGEST_FP32 * self.scale
        merged = self.schedule.merged("e", self.variant, stores=self.stores)
        for tile in range(0, surely.shape[1], merged):
            span = slice(tile * block, (tile + merged) * block)
            of_tile = g[:, span], whole.columns(span), classifier[span], oracle[:, span]
            live = [self._spread(x[:, tile : tile + merged], g[:, span]) for x in (surely, maybe)]
            self._sum.add(self._filtered_increment(*of_tile, live, tiny, limit, merged))
        if self.by_stage:
            for stage, w in cast.own.masked(self._spread(maybe, g)).items():
                self._increments.add(stage, w @ classifier.abs())

    def _walk_rows(
        self, part: ResidualChunk, dg: ResidualError, oracle: Tensor, surely: Tensor, maybe: Tensor
    ) -> Iterator[tuple[str, Tensor, Bound]]:
        """(n, D) bounds of dC."""
        if not self.variant.filter_c:
            surely = maybe = torch.ones_like(surely)
        self.live_c = (self.live_c[0] + int(surely.sum()), self.live_c[1] + int(maybe.sum()))
        surely, maybe = self._taken_in(part, surely, maybe)
        scale, unsure = self._scale_c
        if self.scales_rows:
            cast = self._cast(part.residual, dg, self.scale, self.unsure_scale)
            cast = cast.of_scaled_rows(part.residual, self._lost_of_rows)
        else:
            cast = self._cast(part.residual, dg, scale, unsure)
        block = self.tiles.block_v
        whole = Slice.of(cast)
        masked = cast.own.masked(self._spread(maybe, part.residual)) if self.by_stage else Terms(self.by_stage)
        for span in self.pieces(len(part.columns)):
            tiles = slice(span.start // block, span.stop // block)
            live = surely[:, tiles], maybe[:, tiles]
            stages_before = {stage: w[:, span] for stage, w in masked.items()}
            of_columns = part.residual[:, span], whole.columns(span), oracle[:, span]
            tail = self._tail_of_classifier(part.columns[span])
            bound = self._classifier(*of_columns, scale, live, stages_before, tail)
            yield "d_classifier", part.columns[span], bound

    @cached_property
    def _scale_c(self) -> tuple[Tensor, Tensor]:
        """(N, 1) each: the scales of dC's increments, and whether they may be half as much."""
        together = self.tiles.block_n * self._merged_c
        scale, unsure = (
            torch.cat([s.amax().expand(len(s), 1) for s in x.split(together)]) for x in (self.scale, self.unsure_scale)
        )
        return scale, unsure

    @cached_property
    def _lost_of_rows(self) -> Tensor:
        """(N, 1) the largest part that an entry of E may lose at its row's scale over that of dC's increment."""
        top, unsure = self._scale_c
        relative, entries = torch.where(self.size > 0, self.scale / top, 1.0), self.stream.embeddings
        lost = _lost(entries, relative)
        unsure = (unsure | self.unsure_scale) & (self.size > 0)
        if not bool(unsure.any()):
            return lost
        others = torch.maximum(_lost(entries, relative / 2), _lost(entries, (2 * relative).clamp(max=1)))
        return torch.where(unsure, torch.maximum(lost, others), lost)

    @property
    def _merged_c(self) -> int:
        return self.schedule.merged("c", self.variant, stores=self.stores)

    def _classifier(
        self,
        residual: Tensor,
        whole: Slice,
        oracle: Tensor,
        scale: Tensor,
        live: tuple[Tensor, Tensor],
        stages_before: dict[str, Tensor],
        tail: Tail | None,
    ) -> Bound:
        """(n, D) the bound of dC in some columns, and what stages before the product contribute to its residuals."""
        embeddings, block, merged = self.stream.embeddings, self.tiles.block_n, self._merged_c
        like = embeddings.new_zeros((residual.shape[1], embeddings.shape[1]))
        total, increments = self._filtered(like, self.variant.filter_c, None), Terms(self.by_stage)
        for place in range(0, len(live[0]), merged):
            span = slice(place * block, (place + merged) * block)
            top: Tensor | float = 1.0 if self.fmt.is_fp32 else scale[span].amax()
            tiny = top if isinstance(top, float) else top.clamp(min=1)
            g = residual[span].T
            of_tile = g, whole.rows(span), embeddings[span], oracle[span].T
            of_span = [self._spread(x[place : place + merged], g.T).T for x in live]
            total.add(self._filtered_increment(*of_tile, of_span, tiny, LARGEST_FP32 * top, merged))
        for stage, w in stages_before.items():
            increments.add(stage, w.T @ embeddings.abs())
        terms = total.terms(increments, tail)
        return terms, total.random(terms.total, None, tail)

    def _bias_bound(self, g: Tensor, dg: ResidualError) -> Bound:
        """(n,) the bound of dbias in these columns."""
        bias = self.stream.problem.bias
        assert bias is not None
        storage = Format.of(bias.dtype)
        middle, error = g + dg.known, dg.own.total
        size = (middle.abs() + error).sum(0)
        terms = Terms(self.by_stage, {stage: bound.sum(0) for stage, bound in dg.own.items()})
        terms.add("recompute_logits", dg.known.sum(0).abs())
        added = stages.sum_bias(middle, error, self.tiles.block_n, self.arithmetic)
        # p - 1 may lose less than float64 does of 1
        added = added.plus(RandomError.certain(self.oracle * (g.abs() + middle.abs()).sum(0)))
        terms.add("sum_bias", added.largest)
        total = g.sum(0).abs() + terms.total
        cast = torch.zeros_like(total) if storage.is_fp32 else storage.half_ulp(total) + storage.tiny / 2
        fits = (size < LARGEST_FP32) & (total < storage.largest)
        cast = torch.where(fits, cast, torch.inf)
        terms.add("cast_output", cast)
        if dg.random is None:
            return terms, RandomError.certain(terms.total)
        of_rows = RandomError(*(x.sum(0) for x in dg.random))
        random = of_rows.plus(added).plus(RandomError.certain(dg.known.sum(0).abs() + cast))
        return terms, random._replace(largest=terms.total)


def _weighted(mask: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """|x| |other| of what the mask has."""
    return torch.where(mask, x.abs(), 0.0) @ other.abs()


def _power_of_two(size: Tensor) -> Tensor:
    """As rounding.power_of_two has it, of 0 too."""
    power = torch.where(size > 0, 2.0 ** torch.floor(torch.log2(size)), 0.0)
    return power.clamp(2.0**-126, 2.0**126)


def _lost(entries: Tensor, relative: Tensor) -> Tensor:
    """(N, 1) the largest part of an entry of bf16 rows (N, D) that is lost where it is multiplied by a power of two, as
    `scaled_rows_kernel` does it."""
    if bool((relative == 1).all()):
        return torch.zeros_like(relative)
    exact = entries * relative
    got = entries.float() * torch.where(relative < SMALLEST_NORMAL, 0.0, relative).float()
    part = (got.bfloat16().double() - exact).abs() / exact.abs()
    return torch.where(exact == 0, 0.0, part).nan_to_num(0.0).amax(1, keepdim=True)


def _elements(tiles: Tensor, block: int, size: int) -> Tensor:
    """`size` entries along the first dimension from one for each block of them."""
    return tiles.repeat_interleave(block, 0)[:size]


def _times(size: Tensor, slope: Tensor) -> Tensor:
    """size * slope, and inf for an infinite size: a softmax that overflowed, times a slope of 0, is NaN."""
    return torch.where(size == torch.inf, torch.inf, size * slope)
