"""The error budget of the gradients of granularity=segment: what is dropped, given back, and rounded of the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ccelab.kernels import Statistics
from ccelab.reference.double import ResidualChunk

from .decisions import Decisions, by_tile, decisions
from .formats import U
from .gradient_budget import HEADROOM, Bound, GradientBudget
from .logit_error import logit_error
from .random_error import RandomError
from .record_error import RecordError
from .residual_error import ResidualError
from .segment_sum import SegmentSum
from .stages import EXP_UNDERFLOW
from .tail import Tail
from .terms import Terms


class SegmentBudget(GradientBudget):
    """Streams over the vocabulary. Segments that a call dropped count as dropped where they may be, and no others.

    What was given back and dropped is certain.
    """

    def _prepare(self, taken: Statistics | None) -> None:
        stream, schedule = self.stream, self.schedule
        self.tiles, self.forward_tiles = schedule.row_segments, schedule.forward
        self.record = RecordError(self.rows, schedule, stream.problem.shape, self.arithmetic)
        self.decided: Decisions = decisions(stream.problem, self.variant, schedule, taken)
        self.given_back = self.decided.given_back(stream)
        n, v, _ = stream.problem.shape
        if self.decided.is_own:
            self.terms_e, self.terms_c = v, n
        else:
            kept = (self.decided.words.sum(1), self.decided.rows.sum(1))
            self.terms_e, self.terms_c = (max(int(x.max()), 1) for x in kept)
        lost = self.given_back[1].T
        self.pull_of_rows = lost @ stream.embeddings, lost.abs() @ stream.embeddings.abs()
        self.place = 0
        self.embeddings = self._segment_sum(stream.embeddings)
        size = (1, stream.embeddings.shape[1])
        self.pull, self.pull_size = stream.embeddings.new_zeros(size), stream.embeddings.new_zeros(size)

    def _segment_sum(self, like: Tensor) -> SegmentSum:
        return SegmentSum(like, self.fmt, self.arithmetic, by_stage=self.by_stage, known_by=self.known_by)

    def of_columns(self, order: Tensor | None) -> Iterator[tuple[str, Tensor, Bound]]:
        for part in self.stream.residuals(self.rows):
            logit, count = self.logit_error(part), len(part.columns)
            dg, oracle = self._residual_error(part, logit), self._oracle_error(part, logit)
            span = slice(self.place, self.place + count)
            self.place += count
            of_rows, of_words = self._segments(part, dg)
            along, across = self._as_terms(part, dg)
            self._add_embeddings(part, along, oracle, of_words, span)
            dg = across.apart()
            if self.stream.problem.bias is not None:
                yield "d_bias", part.columns, self._bias_bound(part.residual, dg)
            yield from self._words(part, dg, oracle, of_rows, span)

    @property
    def d_embeddings(self) -> Bound:
        tail, scale = None, self.scale
        if self.decided.share is not None:
            tail = Tail(self.given_back[0], self.pull, self.pull_size, len(self.decided.share))
        steps = -(-self.terms_e // self.schedule.column_segments.block_v)
        terms, random = self.embeddings.bound(tail, self.terms_e, steps, scale / HEADROOM, scale)
        return terms.masked(self.stream.valid), random.masked(self.stream.valid)

    def _segments(self, part: ResidualChunk, dg: ResidualError) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(surely, maybe) live: (N, tiles) rows of tiles, and (row blocks, n) columns."""
        eps, block_v = self.eps, self.tiles.block_v
        logit = logit_error(
            self.stream, part.columns, part.raw, part.logits, self.forward_tiles, self.arithmetic, by_stage=False
        )
        of_softmax = self.softmax_error(part, logit).largest
        mass, error = (by_tile(x, block_v).sum(2) for x in (part.softmax, of_softmax))
        recorded = self.record.take(part.logits, logit, mass)
        is_target = part.columns == self.stream.targets
        has_target = by_tile(is_target, block_v).any(2)
        mass = torch.where(has_target, 1.0, mass)
        error = torch.where(has_target, 0.0, error + mass * recorded + EXP_UNDERFLOW)
        counts = self.size > 0
        surely = ((mass - error > eps * (1 + 4 * U)) | ~mass.isfinite()) & counts
        maybe = (~(mass + error <= eps * (1 - 4 * U))) & counts
        g, away = part.residual + dg.known, dg.apart().own.total
        low, high = self.threshold * (1 - 4 * U), self.threshold * (1 + 4 * U)
        targets = is_target & (self.eps_e < 1) & counts
        entries = (((g.abs() - away) > high) | ~g.isfinite() | targets) & counts
        perhaps = (~((g.abs() + away) <= low) | targets) & counts
        within = (x.repeat_interleave(block_v, 1)[:, : g.shape[1]] for x in (surely, maybe))
        of_words = tuple(
            self.decided.blocks.any(x & inside) for x, inside in zip((entries, perhaps), within, strict=True)
        )
        self.live_c = (self.live_c[0] + int(surely.sum()), self.live_c[1] + int(maybe.sum()))
        self.live_e = (self.live_e[0] + int(of_words[0].sum()), self.live_e[1] + int(of_words[1].sum()))
        return (surely, maybe), (of_words[0], of_words[1])

    def _kept(self, given: Tensor, live: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(kept, in doubt): what was kept where it may be dropped, and all that may not."""
        surely, maybe = live
        if self.decided.is_own:
            return maybe, maybe & ~surely
        return (given & maybe) | surely, torch.zeros_like(surely)

    def _add_embeddings(
        self, part: ResidualChunk, dg: ResidualError, oracle: Tensor, live: tuple[Tensor, Tensor], span: slice
    ) -> None:
        kept, unsure = (
            self.decided.blocks.of_rows(x, len(self.size)) for x in self._kept(self.decided.words[:, span], live)
        )
        cast = self._cast(part.residual, dg, self.scale, self.unsure_scale)
        classifier = self.stream.classifier(part.columns)
        self.embeddings.add(part.residual, cast, classifier, kept, unsure, oracle)
        if self.decided.share is not None:
            share = self.decided.share[span][None, :]
            pulling = torch.where((share != 0).T, classifier, 0.0)
            self.pull, self.pull_size = self.pull + share @ pulling, self.pull_size + share @ pulling.abs()

    def _words(
        self, part: ResidualChunk, dg: ResidualError, oracle: Tensor, live: tuple[Tensor, Tensor], place: slice
    ) -> Iterator[tuple[str, Tensor, Bound]]:
        """(n, D) bounds of dC in these columns, which lie at `place`."""
        block_v = self.tiles.block_v
        first = place.start // block_v
        given = self.decided.rows[first : first + live[0].shape[1]].T
        kept, unsure = (x.repeat_interleave(block_v, 1)[:, : len(part.columns)].T for x in self._kept(given, live))
        top = torch.ones_like(self.scale[:1]) if self.fmt.is_fp32 else self._top()
        scale = self.scale if self.fmt.is_fp32 else top.expand_as(self.scale)
        cast = self._cast(part.residual, dg, scale, self.unsure_scale.any().expand_as(self.unsure_scale))
        residual, known = part.residual.T, cast.known.T
        for span in self.pieces(len(part.columns)):
            own = Terms(self.by_stage, {stage: w.T[span] for stage, w in cast.own.items()})
            total = self._segment_sum(residual.new_zeros((len(residual[span]), self.stream.embeddings.shape[1])))
            random = None if cast.random is None else RandomError(*(x.T[span] for x in cast.random))
            error = ResidualError(known[span], None, None, own, random)
            total.add(residual[span], error, self.stream.embeddings, kept[span], unsure[span], oracle.T[span])
            tail = None
            if self.decided.share is not None:
                share = self.decided.share[place][span][:, None]
                tail = Tail(share, *self.pull_of_rows, len(self.size))
            steps = -(-self.terms_c // self.tiles.block_n)
            bound = total.bound(tail, self.terms_c, steps, top.clamp(min=1), top)
            yield "d_classifier", part.columns[span], bound

    def _top(self) -> Tensor:
        """(1, 1) the largest scale of a row."""
        return torch.where(self.stream.valid, self.scale, 0.0).amax().reshape(1, 1)
