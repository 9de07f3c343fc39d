"""`Borrowed`: memory of dC that holds the residuals it is formed of, until it is written.

All residuals of granularity=segment are there at once then, and those that dE is formed of. One launch fills a GPU; in
groups of 40 MiB each had 144 programs on gemma-web, and dE's products took 2.6 ms for 1.7 (H200, N=8192, V=256000,
D=2304). No residual takes memory beside the gradients.

Where all are too much, what is not written yet holds those of some tiles at a time (`rounds`): of the real head, lifted
to D=2304, 4 groups in place of 9, and 3.44 to 3.53 products for 3.75 (H200, with `turns`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

ALIGNMENT = 128
"""Of where residuals begin, in elements: descriptors ask for 16 bytes, and whole lines of the cache are read faster."""


@dataclass(frozen=True, slots=True)
class Borrowed:
    """Residuals of tiles lie at the end, in their order, so that the first rows of dC can be written while they are
    read. What a step writes is no residual of its own tiles, nor of later ones."""

    residuals: Tensor  # (chunks of rows, columns of a tile), all of them
    steps: tuple[tuple[int, int], ...]  # of tiles, the first and the one after the last, to be written in turn
    rest: int  # the first tile after those, whose residuals have to be moved before dC is written
    room: Tensor  # flat, what none of it needs until the first step is done

    @classmethod
    def of(cls, d_classifier: Tensor, firsts: np.ndarray, rows: int, columns: int, most: int) -> Borrowed | None:
        """In `d_classifier` (V, D), contiguous; `firsts` are the first chunk of each tile, and how many there are; a
        chunk is (rows, columns). None where more than `most` would have to be moved in the end, or there is none."""
        v, d = d_classifier.shape
        chunk, tile, tiles = rows * columns, columns * d, len(firsts) - 1
        begin = (v * d - int(firsts[-1]) * chunk) // ALIGNMENT * ALIGNMENT
        steps: list[tuple[int, int]] = []
        first = 0
        # Half of what is free at first is for the residuals of dE.
        end = begin // 2 // tile
        while first < end:
            steps.append((first, end))
            first, end = end, min(tiles, (begin + int(firsts[end]) * chunk) // tile)
        if not steps or not firsts[-1] or int(firsts[-1] - firsts[first]) > most:
            return None
        flat = d_classifier.view(-1)
        stored = flat[begin : begin + int(firsts[-1]) * chunk].view(-1, columns)
        return cls(stored, tuple(steps), first, flat[steps[0][1] * tile : begin])


def rounds(
    d_classifier: Tensor, firsts: np.ndarray, rows: int, columns: int, most: int
) -> Iterator[tuple[int, int, Tensor]]:
    """(first tile, the one after the last, their residuals) in turn, where dC has no room for all at once: in memory of
    the tiles after them. Each round has fewer chunks; those that would have no more than `most` are left.

    Arguments are those of `Borrowed.of`."""
    v, d = d_classifier.shape
    chunk, flat = rows * columns, d_classifier.view(-1)
    written = np.arange(len(firsts)) * columns * d
    first = 0
    while True:
        held = (firsts - firsts[first]).astype(np.int64) * chunk
        end = int(np.searchsorted(written + held, v * d - ALIGNMENT, side="right")) - 1
        if end <= first or int(firsts[end] - firsts[first]) <= most:
            return
        begin = (v * d - int(held[end])) // ALIGNMENT * ALIGNMENT
        yield first, end, flat[begin : begin + int(held[end])].view(-1, columns)
        first = end
