"""`Cut`: how the forward pass shares blocks of rows and tiles of the vocabulary out among its programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Every block of rows meets every split of the vocabulary, in a program of its own or, of a shorter last split, in
    one with other blocks."""

    blocks: int  # of rows, at least one
    tiles: int  # of the vocabulary, likewise
    at_once: int  # blocks that go through the vocabulary together, before the next ones do
    per_split: int  # tiles, but for a shorter last split
    workers: int | None = None  # programs that run at once

    @property
    def splits(self) -> int:
        """The last one included."""
        return -(-self.tiles // self.per_split)

    @property
    def whole(self) -> int:
        """Splits that are no shorter."""
        return self.tiles // self.per_split

    @property
    def blocks_of_last(self) -> int:
        """Blocks of rows that one program does of the last split, where that is shorter than others."""
        spare = 0 if self.workers is None else self.workers - self.at_once * self.whole
        return -(-self.blocks // spare) if spare > 0 else 1

    @property
    def programs(self) -> int:
        """Of the whole pass."""
        of_last = -(-self.blocks // self.blocks_of_last) if self.splits > self.whole else 0
        return self.blocks * self.whole + of_last

    def end(self, in_cache: int) -> float:
        """When the last program ends, in the time of a tile. Every round begins anew and reads C anew; and E is read
        anew where more blocks than are `in_cache` go through the vocabulary together."""
        rounds = -(-self.blocks // self.at_once)
        of_last_split = 1.5 * (self.tiles - self.per_split * self.whole) * self.blocks_of_last
        misses = 1.02 if self.at_once > in_cache else 1.0
        return misses * max(rounds * self.per_split, of_last_split) + rounds * (1 + self.tiles / 600)


def in_splits(blocks: int, tiles: int, splits: int, at_once: int) -> Cut:
    """Into so many splits, or fewer."""
    return Cut(blocks=blocks, tiles=tiles, at_once=at_once, per_split=max(1, -(-tiles // splits)))


@lru_cache
def for_workers(blocks: int, tiles: int, in_cache: int, workers: int) -> Cut:
    """The cut with which the last of programs that run `workers` at once ends first.

    With 32 of 64 blocks at once the forward pass took 1.022 products; with 22, which leave multiprocessors without work
    in the third round, 1.09; with 16, which read C four times, 1.029; and with all, of which the cache holds 35, 1.030
    (H200, N=8192, V=256000, D=2304)."""
    choices = (_equal_shares(blocks, tiles, at_once, workers) for at_once in range(min(blocks, workers), 0, -1))
    return min(choices, key=lambda cut: cut.end(in_cache))


def _equal_shares(blocks: int, tiles: int, at_once: int, workers: int) -> Cut:
    """A tile of the last split counts half as much again: its programs share none of their rows of C. With equal counts
    they were the last to finish: 1.066 of a product for 1.044 in 4 splits (H100, N=8192, V=256000)."""
    whole, spare = divmod(workers, at_once)
    per_split = max(1, -(-3 * at_once * tiles // (3 * at_once * whole + 2 * spare)))
    return Cut(blocks=blocks, tiles=tiles, at_once=at_once, per_split=per_split, workers=workers)
