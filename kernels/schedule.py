"""`Schedule`: how a kernel cuts its work. Numerical too: filtering is per tile, and sums follow the tiles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton

from .backend import IS_INTERPRETED


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
    """The backward pass holds the residuals of this many vocabulary tiles at once; None: of what 128 MiB hold."""
    splits: int = 1
    """The forward pass cuts the vocabulary into this many ranges, each with its own running (max, sum) pair."""
    descriptors: bool = True
    """Whether the forward pass loads by tensor descriptors where the layout allows it. Same arithmetic either way."""
    fp_fusion: bool = False
    """Whether the compiler may contract a*b+c; passed explicitly, since Triton's default is changing."""

    def __post_init__(self) -> None:
        for name, kind in (("forward", Tiles), ("backward", Tiles), ("product", ProductTiles)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}, expected {kind.__name__}")
        if not isinstance(self.splits, int) or self.splits < 1:
            raise ValueError(f"splits={self.splits!r} is not a positive number")
        if self.group is not None and (not isinstance(self.group, int) or self.group < 1):
            raise ValueError(f"group={self.group!r} is not a positive number, nor None")

    @property
    def segments(self) -> Tiles:
        """The tiles of granularity=segment: rows of the backward pass, columns as the forward pass recorded them."""
        return replace(self.backward, block_v=self.forward.block_v)

    def __str__(self) -> str:
        loads = "" if self.descriptors else ", pointer loads"
        fusion = ", fp fusion" if self.fp_fusion else ""
        passes = f"forward {self.forward} in {self.splits} split(s), backward {self.backward}"
        return f"{passes}, products {self.product}{loads}{fusion}"


def default_schedule(dtype: torch.dtype, n: int, d: int) -> Schedule:
    """The schedule of a call with N = `n` rows of D = `d`: a function of the problem, so that no result depends on
    the GPU.

    128x256x64 forward tiles with 8 warps and 4 stages were the fastest of those tried on an H100 at N=8192, V=256000,
    D=2304: 1.04 of a cuBLAS product; before the loops were flattened 1.18, against 1.20 for 256x128, 1.49 for 128x128
    and 1.63 for 64x256 with 4 warps. Splits fill its 132 multiprocessors about twice. The same tiles recompute the
    logits of the backward pass in 1.4 products, 128x128 in 2.1.

    Triton's interpreter takes the columns 1024 at a time instead of 64, since its time goes by operations (N=64,
    V=49152, D=576: 30 s for 49 s with Kahan sums): the filter sees the same tiles, the sums over D are joined in
    another order.
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
        product = replace(product, columns=block_d)
    splits = max(1, 264 // max(1, -(-n // forward.block_n)))
    return Schedule(forward=forward, backward=backward, product=product, splits=splits)
