"""`Schedule`: how a kernel cuts its work. Numerical too: filtering is per tile, and sums follow the tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton

from .backend import IS_INTERPRETED
from .cut import Cut, for_workers, in_splits
from .variant import Variant

WORKERS = 132
"""Multiprocessors of an H100. Elsewhere the answer is the same, if not as fast."""

L2_BYTES = 20 * 2**20
"""Rows of E that are read again and again may take so much: an H100 has 50 MB of cache in two halves, and what all
multiprocessors read is in both."""

GROUP_BYTES = 2**27
"""Memory for the residuals of one group, and for its words where they are gathered. At N=8192 in bf16 that is 8192
words: 32 groups at V=256000."""

GROUP_BYTES_OF_A_ROW = 2**12
"""The same for each row beyond 8192, which of 65536 in bf16 is 2816 words: of few words dC is too small for all
multiprocessors, and dE's sums wait in memory often. With 1024, cce-exact took 7.5 products there, with 2048 5.3 to 5.4,
with 4096 5.2 (H200, V=49152, D=576)."""

MOST_TERMS = 8192
"""Of one sum in the tensor core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """The shape of one tile of logits and how a program computes it. Sizes are powers of two, at least 16."""

    block_n: int  # rows of E
    block_v: int  # rows of C
    block_d: int  # columns of both that one step multiplies
    warps: int = 4
    stages: int = 3

    def __post_init__(self) -> None:
        for name in ("block_n", "block_v", "block_d"):
            size = getattr(self, name)
            if not isinstance(size, int) or size < 16 or size & (size - 1):
                raise ValueError(f"{name}={size} is not a power of two of at least 16, which tensor-core tiles need")
        if self.warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"warps={self.warps!r} is not a power of two from 1 to 32")
        if not isinstance(self.stages, int) or self.stages < 1:
            raise ValueError(f"stages={self.stages!r} is not a positive number")

    @property
    def leaving_room(self) -> Tiles:
        """With a stage less: of shared memory, a descriptor takes as much for a tile that it stores."""
        return replace(self, stages=max(1, self.stages - 1))

    @property
    def halvings(self) -> int:
        """Of block_v columns, to the 8 that a tensor core spreads over threads. The interpreter's time goes by
        operations: there it is none."""
        return 0 if IS_INTERPRETED else max(0, self.block_v.bit_length() - 4)

    def __str__(self) -> str:
        return f"{self.block_n}x{self.block_v}x{self.block_d}/{self.warps}w{self.stages}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTiles:
    """How a program of the backward pass forms a block of dE or dC. No result depends on it: increments are those of
    whole `Schedule.backward` tiles, and a tensor core goes through them in steps of its own."""

    rows: int = 128  # of the gradient, at most a tile's
    columns: int = 128  # of the gradient, along D
    depth: int = 64  # columns (dE) or rows (dC) of residuals that one step multiplies
    warps: int = 8
    stages: int = 3

    def wide(self, d: int) -> ProductTiles:
        """Of sums that are one product: they leave registers for twice the columns, where D has as many blocks to fill.
        At D=640 it has three for five, which are a fifth more: 4.56 products for 4.65 of cce-exact (H200, V=262144)."""
        tiles = replace(self, columns=2 * self.columns)
        is_filled = tiles.columns * -(-d // tiles.columns) == self.columns * -(-d // self.columns)
        return tiles if is_filled and not IS_INTERPRETED else self

    def spread(self, n: int, d: int) -> ProductTiles:
        """Of rows of a gradient (n, d): fewer columns, as long as so many more programs find a multiprocessor that is
        idle. The interpreter has none, and its time goes by programs."""
        tiles = self
        while not IS_INTERPRETED and tiles.columns > 32 and 2 * -(-n // tiles.rows) * -(-d // tiles.columns) <= WORKERS:
            tiles = replace(tiles, columns=tiles.columns // 2)
        return tiles

    def step(self, size: int) -> int:
        """The depth of a step through `size`. The interpreter rounds at every step, so there it is one."""
        return size if IS_INTERPRETED else min(self.depth, size)

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.depth}/{self.warps}w{self.stages}s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Tiles of both passes, vocabulary splits of the forward pass, and the compiler's contraction switch."""

    forward: Tiles
    backward: Tiles
    product: ProductTiles = ProductTiles()
    group: int | None = None
    """The backward pass holds the residuals of this many vocabulary tiles at once; None: of what `group_bytes` hold, or
    of granularity=segment what dC's memory holds, or what `turns` says."""
    words_per_increment: int = 1
    """With increment=group, whole tiles of so many words are one sum of dE in the tensor core; at 1, one tile is."""
    rows_per_increment: int = 1
    """The same of dC, and of blocks of rows."""
    splits: int = 1
    """The forward pass cuts the vocabulary into this many ranges, each with its own running (max, sum) pair."""
    workers: int | None = None
    """Programs that run at once, where the cut follows them instead: ranges in which each has equally much to do, and a
    shorter last one, of which one program does several blocks of rows."""
    row_blocks: int | None = None
    """Blocks of rows whose part of E stays in the L2 cache, while it is read for every tile of the vocabulary: no more
    go through that together, but where the forward pass ends later so. None: any number."""
    segment: int | None = None
    """Columns of a segment of rows, of which the forward pass sums each apart; None: half a tile of the forward pass,
    where that is 16 or more."""
    look_ahead: int | None = None
    """From so many words on, a filter of whole tiles has the forward pass record segments, and computes no tile again
    that is dropped; None: never, but for a tail, which has to know. No result depends on it."""
    descriptors: bool = True
    """Whether the forward pass loads by tensor descriptors where the layout allows it. Same arithmetic either way."""
    fp_fusion: bool = False
    """Whether the compiler may contract a*b+c; passed explicitly, since Triton's default is changing."""

    def __post_init__(self) -> None:
        for name, kind in (("forward", Tiles), ("backward", Tiles), ("product", ProductTiles)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}, expected {kind.__name__}")
        for name in ("splits", "words_per_increment", "rows_per_increment"):
            if not isinstance(number := getattr(self, name), int) or number < 1:
                raise ValueError(f"{name}={number!r} is not a positive number")
        for name in ("workers", "row_blocks", "group"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name}={number!r} is not a positive number, nor None")
        width = self.segment_columns
        if not isinstance(width, int) or width < 16 or width & (width - 1) or width > self.forward.block_v:
            raise ValueError(
                f"segment={self.segment!r} is not a power of two from 16 to block_v={self.forward.block_v} of the "
                "forward pass, nor None"
            )
        if self.look_ahead is not None and (not isinstance(self.look_ahead, int) or self.look_ahead < 0):
            raise ValueError(f"look_ahead={self.look_ahead!r} is not a number of words, nor None")

    def cut(self, n: int, v: int) -> Cut:
        """Of the forward pass."""
        blocks, tiles = max(1, -(-n // self.forward.block_n)), max(1, -(-v // self.forward.block_v))
        if self.workers is None:
            return in_splits(blocks, tiles, self.splits, self.blocks_in_cache(blocks))
        return for_workers(blocks, tiles, self.row_blocks or blocks, self.workers)

    def blocks_in_cache(self, blocks: int) -> int:
        """Of so many, the most that are no more than `row_blocks`, and nearly as many each time."""
        rounds = max(1, triton.cdiv(blocks, self.row_blocks or max(1, blocks)))
        in_one: int = triton.cdiv(blocks, rounds)
        return max(1, in_one)

    def merged(self, name: str, variant: Variant, *, stores: bool) -> int:
        """Tiles of the backward pass that one increment of the gradient `name`, e or c, is of, dropped ones counted.

        Of dE twice as many where residuals take no memory of their own (2.18 products for 2.23 of the backward pass),
        and two thirds more where it drops nothing (4.15 products for 4.21 of cce-exact on an H200): its sums, 72 MiB at
        the paper's shape, wait in memory in between. Those of dC do not."""
        if variant.increment == "tile":
            return 1
        if name == "c":
            return max(1, self.rows_per_increment // self.backward.block_n)
        words = self.words_per_increment
        if stores:
            words *= 2
        elif not variant.filter_e or variant.eps == 0:
            words += 2 * words // 3
        return max(1, words // self.backward.block_v)

    @property
    def segment_columns(self) -> int:
        """`segment`, or its default."""
        return max(16, self.forward.block_v // 2) if self.segment is None else self.segment

    @property
    def row_segments(self) -> Tiles:
        """Tiles of what dC keeps: rows that share a segment's columns."""
        # Half a tile in half the warps with a stage less, so that two programs share a multiprocessor: 1.45 ms for 1.66
        # with all stages, and for 1.83 with all warps (H100, N=8192, V=256000, D=2304).
        warps, stages = max(1, self.backward.warps // 2), max(1, self.backward.stages - 1)
        return replace(self.backward, block_v=self.segment_columns, warps=warps, stages=stages)

    @property
    def column_segments(self) -> Tiles:
        """Tiles of what dE keeps: columns that share a block of rows."""
        return replace(self.backward, block_v=self.forward.block_v)

    def __str__(self) -> str:
        loads = "" if self.descriptors else ", pointer loads"
        fusion = ", fp fusion" if self.fp_fusion else ""
        words, rows = self.words_per_increment, self.rows_per_increment
        terms = f"{words} terms" if words == rows else f"{words} words and {rows} rows"
        merged = f", {terms} per group" if max(words, rows) > 1 else ""
        cut = f"in {self.splits} split(s)" if self.workers is None else f"for {self.workers} programs"
        if self.row_blocks is not None:
            cut += f", {self.row_blocks} blocks of rows in cache"
        passes = f"forward {self.forward} {cut}, backward {self.backward}"
        segment = "" if self.segment is None else f", segments of {self.segment}"
        return f"{passes}, products {self.product}{merged}{segment}{loads}{fusion}"


def room_of_rows(n: int, least: int, each: int) -> int:
    """`least`, and so much for `each` of `n` rows beyond the first 8192."""
    return least + each * max(0, n - 8192)


def group_bytes(n: int) -> int:
    """Memory for a group's residuals of `n` rows."""
    return room_of_rows(n, GROUP_BYTES, GROUP_BYTES_OF_A_ROW)


@lru_cache
def default_schedule(dtype: torch.dtype, n: int, d: int) -> Schedule:
    """The schedule of a call with N = `n` rows of D = `d`: a function of the problem, so that no result depends on
    the GPU.

    128x256x64 forward tiles with 8 warps and 4 stages were the fastest of those tried on an H100 at N=8192, V=256000,
    D=2304: 1.04 of a cuBLAS product; before the loops were flattened 1.18, against 1.20 for 256x128, 1.49 for 128x128
    and 1.63 for 64x256 with 4 warps. Its 132 multiprocessors get equally much of the forward pass: in 4 splits 256
    programs took two rounds and left 3 % of the time unused. The same tiles recompute the logits of the backward pass
    in 1.4 products, 128x128 in 2.1.

    Triton's interpreter takes the columns 1024 at a time instead of 64, since its time goes by operations (N=64,
    V=49152, D=576: 30 s for 49 s with Kahan sums): the filter sees the same tiles, the sums over D are joined in
    another order. Products there are of whole tiles.
    """
    if dtype == torch.float32:
        forward = backward = Tiles(block_n=64, block_v=64, block_d=32, warps=4, stages=2)
        product = ProductTiles(rows=64, columns=64, depth=32, warps=4, stages=2)
    else:
        product = ProductTiles()
        rows = 128 if n > 64 else 64
        forward = Tiles(block_n=rows, block_v=256, block_d=64, warps=8, stages=4)
        backward = Tiles(block_n=rows, block_v=256, block_d=64, warps=8, stages=4)
    if IS_INTERPRETED:
        block_d = min(1024, max(16, triton.next_power_of_2(d)))
        forward, backward = replace(forward, block_d=block_d), replace(backward, block_d=block_d)
        product = replace(product, rows=2 * product.rows, columns=block_d)
    # As many words as are held at once: their residuals fill the room that there is, and so do they, where they are
    # gathered, for two groups. More terms would let the tensor core's truncation grow, up to 10 u for every 16.
    most = 1 if dtype == torch.float32 else MOST_TERMS
    words = max(1, min(most, group_bytes(n) // (2 * max(n, 2 * d, 1))))
    return Schedule(
        forward=forward,
        backward=backward,
        product=product,
        words_per_increment=words,
        rows_per_increment=most,
        workers=WORKERS,
        row_blocks=max(1, L2_BYTES // (forward.block_n * max(d, 1) * dtype.itemsize)),
        # Smaller vocabularies of trained heads have few dead tiles, and at fp32's threshold all have.
        look_ahead=None if dtype == torch.float32 else 2**16,
    )
