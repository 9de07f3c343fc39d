"""Where in a gradient the error comes near its budget: the worst ratio of each block of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .measure import quotient, row_blocks

CELLS = 64
"""Along either side at most."""
LEAST = -40.0  # log2 of a ratio under which a cell counts as exact


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """log2 of the largest error / bound in each cell."""

    cells: list[list[float]]
    rows_per_cell: int  # tokens of dE; words of dC in the order in which the backward pass takes them
    columns_per_cell: int  # of D
    by_tiles: bool  # whether a cell's rows are whole tiles of the backward pass


def heat_map(got: Tensor, want: Tensor, bound: Tensor, tile: int, order: Tensor | None = None) -> HeatMap:
    """The map of a gradient (rows, D) whose rows the kernels take `tile` at a time, in `order`; None is as they stand.

    A cell has several whole tiles where there are more than `CELLS` of them, and otherwise one tile or, of a gradient
    of few tiles, a part of one.
    """
    rows, columns = want.shape
    tiles = -(-rows // tile)
    high = tile * -(-tiles // CELLS) if tiles * 4 > CELLS else max(1, -(-rows // CELLS))
    wide = -(-columns // CELLS)
    found = []
    for g, w, b in row_blocks(got, want, bound, multiple=high, order=order):
        usable = g.isfinite() & w.isfinite()
        ratio = quotient(torch.where(usable, g - w, 0.0).abs(), b)
        padded = torch.nn.functional.pad(ratio, (0, -columns % wide, 0, -len(ratio) % high))
        found.append(padded.unflatten(1, (-1, wide)).amax(2).unflatten(0, (-1, high)).amax(1))
    cells = torch.cat(found).log2().clamp(min=LEAST).tolist()
    return HeatMap(
        cells=[[round(cell, 2) for cell in row] for row in cells],
        rows_per_cell=high,
        columns_per_cell=wide,
        by_tiles=high % tile == 0,
    )
