"""What a call did: filled by the kernels on request, so that a law about filtering can assert that it happened."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Statistics:
    """Pass an empty one as `stats`; the backward pass fills what belongs to the gradients it computes.

    Counts are of (BLOCK_N, BLOCK_V) tiles of the backward schedule; with granularity=segment, of segments: one row and
    some columns for dC, one column and a block of rows for dE. Mass is the softmax probability that each row has
    in what was skipped; ignored rows have none.
    """

    tiles_kept_e: int | None = None
    tiles_skipped_e: int | None = None
    filtered_mass_e: Tensor | None = None  # (N,) fp32, rows as the kernel numbers them
    tiles_kept_c: int | None = None
    tiles_skipped_c: int | None = None
    filtered_mass_c: Tensor | None = None  # (N,) fp32
    order: Tensor | None = None  # (V,) int64 vocabulary ids in the order of the backward pass; None is natural
    segments_e: Tensor | None = None  # (row blocks, V) int8: which dE kept, with granularity=segment
    row_order: Tensor | None = None  # (N,) int64 rows in the order of those blocks; None: as the kernel numbers them
    segments_c: Tensor | None = None  # (segments, N) int8: which dC kept
    tiles: Tensor | None = None  # (row blocks, vocabulary tiles) int8: which are kept, with a tail in their place
    tail_share: Tensor | None = None  # (V,) fp32 along which tail=rank1 gives back what rows lost; None without a tail

    def kept(self) -> dict[str, float]:
        """The share of the tiles that were kept, for d_embeddings and d_classifier where it was computed."""
        pairs = {
            "d_embeddings": (self.tiles_kept_e, self.tiles_skipped_e),
            "d_classifier": (self.tiles_kept_c, self.tiles_skipped_c),
        }
        return {
            name: kept / max(kept + skipped, 1)
            for name, (kept, skipped) in pairs.items()
            if kept is not None and skipped is not None
        }
