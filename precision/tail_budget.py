"""The error budget of gradients that give back what they lose to a filter of tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Statistics
from ccelab.reference.double import ResidualChunk

from .gradient_budget import GradientBudget
from .residual_error import ResidualError
from .tail import Tail
from .tile_decisions import TileDecisions, tile_decisions


class TailBudget(GradientBudget):
    """Tiles that a call dropped count as dropped where they may be, and no others.

    What was given back and dropped is certain.
    """

    def _prepare(self, taken: Statistics | None) -> None:
        stream, schedule = self.stream, self.schedule
        self.decided: TileDecisions = tile_decisions(stream.problem, self.variant, schedule, taken)
        self.given_back = self.decided.given_back(stream)
        pulling = torch.where(self.given_back != 0, stream.embeddings, 0.0)  # 0 times an infinity is NaN
        m = self.given_back.T
        self.of_rows = m @ pulling, m.abs() @ pulling.abs()
        nothing = stream.embeddings.new_zeros((1, stream.embeddings.shape[1]))
        self.of_words = nothing, nothing  # till now

    def _live_tiles(self, part: ResidualChunk, g: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
        targets = self._any_in_tile((part.columns == self.stream.targets) & (self.size > 0))
        surely, maybe = super()._live_tiles(part, g, dg)
        return surely | targets, maybe | targets

    def _taken_in(self, part: ResidualChunk, surely: Tensor, maybe: Tensor) -> tuple[Tensor, Tensor]:
        if self.decided.is_own:
            return surely, maybe
        first = int(part.columns[0]) // self.tiles.block_v
        kept = (self.decided.tiles[:, first : first + surely.shape[1]] & maybe) | surely
        return kept, kept

    def _walk_vocabulary(
        self, part: ResidualChunk, dg: ResidualError, oracle: Tensor, surely: Tensor, maybe: Tensor
    ) -> None:
        super()._walk_vocabulary(part, dg, oracle, surely, maybe)
        share = self.decided.share[part.columns][None, :]
        pulling = torch.where((share != 0).T, self.stream.classifier(part.columns), 0.0)
        q, size = self.of_words
        self.of_words = q + share @ pulling, size + share @ pulling.abs()

    def _tail_of_embeddings(self) -> Tail | None:
        return Tail(self.given_back, *self.of_words, self.stream.vocabulary) if self.variant.filter_e else None

    def _tail_of_classifier(self, columns: Tensor) -> Tail | None:
        share = self.decided.share[columns][:, None]
        return Tail(share, *self.of_rows, len(self.given_back)) if self.variant.filter_c else None
