"""What a filter keeps, in lists for every group of the vocabulary, where it is known before the first is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from .kept import Kept, kept_lists


class TileLists:
    """All of them at once: launches for each group would take longer than what they launch."""

    def __init__(self, marks: Tensor, step: int, at_once: int, spans: dict[str, int]) -> None:
        """From `marks` (row blocks, vocabulary tiles), in groups of `step` tiles; `spans` are the tiles of a list, by
        gradient. So many blocks of rows are computed `at_once`."""
        padded = torch.nn.functional.pad(marks, (0, -marks.shape[1] % step))
        of_groups = padded.unflatten(1, (-1, step)).transpose(0, 1)  # (groups, row blocks, step)
        together = torch.cat([blocks.mT.flatten(1) for blocks in of_groups.split(at_once, 1)], 1)[:, None]
        self._step = step
        self._tiles = kept_lists(together, together.shape[2])
        self._e = kept_lists(of_groups, spans["e"])
        self._c = kept_lists(marks.T, spans["c"])

    def tiles(self, first: int) -> Kept:
        """Of the group that begins with that tile, for one owner of all its pairs, `swizzled`."""
        return self._tiles.part(first // self._step)

    def embeddings(self, first: int) -> Kept:
        """For the owners of dE, which are blocks of rows."""
        return self._e.part(first // self._step)

    def classifier(self, first: int) -> Kept:
        """For the owners of dC, which are tiles of the group."""
        return self._c.part(slice(first, first + self._step))
