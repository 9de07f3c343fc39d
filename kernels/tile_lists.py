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
        self._tiles = of_each(kept_lists(together, together.shape[2]), 1)
        self._e = of_each(kept_lists(of_groups, spans["e"]), 1)
        self._c = of_each(kept_lists(marks.T, spans["c"]), step)

    def tiles(self, first: int) -> Kept:
        """Of the group that begins with that tile, for one owner of all its pairs, `swizzled`."""
        return self._tiles[first // self._step]

    def embeddings(self, first: int) -> Kept:
        """For the owners of dE, which are blocks of rows."""
        return self._e[first // self._step]

    def classifier(self, first: int) -> Kept:
        """For the owners of dC, which are tiles of the group."""
        return self._c[first // self._step]


def of_each(lists: Kept, size: int) -> list[Kept]:
    """Of each so many along the first dimension: all at once, since every view takes a host's time."""
    assert lists.places is not None
    assert lists.count is not None
    parts = zip(lists.places.split(size), lists.count.split(size), strict=True)
    return [Kept(places, count) for places, count in parts]
