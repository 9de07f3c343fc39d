"""`Products`: what is known of computed products of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .enclosure import Enclosure


@dataclass(frozen=True, eq=False)
class Products:
    """(N, n) each."""

    absolute: Tensor  # |E||C|^T
    error: Tensor
    computed: Enclosure | None  # where an arithmetic leaves nothing open


def blockwise(e: Tensor, c: Tensor, block_d: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(E C^T, |E||C|^T) of each block of columns."""
    for start in range(0, e.shape[1], block_d):
        here = slice(start, start + block_d)
        yield e[:, here] @ c[:, here].T, e[:, here].abs() @ c[:, here].abs().T
