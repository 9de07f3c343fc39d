# mypy: ignore-errors
"""The forward pass: a running (max, sum) pair per row and vocabulary split, and the target's logit from the same tile.

Neither locks nor atomics: each program owns its rows' partial results for one split. Paper, Algorithm 2, with the
pair of Milakov and Gimelshein ("Online normalizer calculation for softmax", 2018) instead of a logaddexp chain.
"""

import triton.language as tl

from .backend import device_function, kernel, stage
from .exponentials import keep_exponentials
from .logits import add_bias, dot_logits, mask_columns, soft_cap
from .record import record_mass
from .rounding import exp
from .swizzle import swizzled


@device_function
def finite_or_zero(m):
    """m, or 0 where m is infinite, so that z - m is not inf - inf for rows that are all -inf or hold +inf."""
    return tl.where(tl.abs(m) == float("inf"), 0.0, m)


@stage
def exponentials(z, shift):
    """exp(z - shift) of a tile."""
    return exp(z - shift[:, None])


@stage
def fold_tile(m, s, z, SEGMENT: tl.constexpr):
    """The pair (m, s), meaning s e^m, after a tile z (BLOCK_N, BLOCK_V), its segments' own parts of s, and what those
    are sums of. s >= 1 as soon as m is finite: the largest logit itself contributes exp(0) = 1. A NaN logit makes s
    NaN, though max ignores it."""
    top = tl.maximum(m, tl.max(z, 1))
    shift = finite_or_zero(top)
    x = exponentials(z, shift)
    parts = tl.sum(tl.reshape(x, (z.shape[0], z.shape[1] // SEGMENT, SEGMENT)), 2)
    return top, s * exp(m - shift) + tl.sum(parts, 1), parts, x


@device_function
def half_with(x, place):
    """Of the columns of x (BLOCK_N, a power of two), the half that holds `place` (BLOCK_N,)."""
    half: tl.constexpr = x.shape[1] // 2
    low, high = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, half)), (0, 2, 1)))
    return tl.where((place & half)[:, None] == 0, low, high)


@device_function
def pick_target(z_target, z, place, VARIANT: tl.constexpr, TILES: tl.constexpr):
    """Adds the logit at `place` (BLOCK_N,) of each row of the tile, the very number that enters the sum: so m is not
    below it. Rows whose target is elsewhere get nothing."""
    if VARIANT.target == "fused":
        # Not under an `if` for the few tiles that hold targets: with one the tensor core waits for every product. To
        # compare every column with `place` takes a quarter more instructions, between two tiles' products.
        is_here = (place >= 0) & (place < TILES.block_v)
        halvings: tl.constexpr = TILES.halvings
        for _ in tl.static_range(halvings):
            z = half_with(z, place)
        place = tl.where(is_here, place & (z.shape[1] - 1), -1)
        z_target += tl.sum(tl.where(tl.arange(0, z.shape[1])[None, :] == place[:, None], z, 0.0), 1)
    return z_target


@device_function
def visit_tile(
    m,
    s,
    z_target,
    base,
    E,
    C,
    Bias,
    Record,
    Stored,
    Blocks,
    target,
    row0,
    tile,
    first,
    softcap,
    N,
    V,
    D,
    RAGGED: tl.constexpr,
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
    SEGMENT: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """(m, s, z_target, base) after one tile of logits; RAGGED for a tile that reaches past the vocabulary."""
    rows = row0 + tl.arange(0, TILES.block_n)
    col0 = tile * TILES.block_v
    cols = col0 + tl.arange(0, TILES.block_v)
    col_mask = cols < V
    z = dot_logits(E, C, row0, rows, rows < N, col0, cols, col_mask, D, TILES, E_DESCRIPTOR, C_DESCRIPTOR)
    z = soft_cap(add_bias(z, Bias, cols, col_mask), softcap)
    if RAGGED:
        z = mask_columns(z, col_mask)
    # An int64 that is too large for int32 is no target: what it wraps to may be picked, for a row that is ignored.
    z_target = pick_target(z_target, z, (target - col0).to(tl.int32), VARIANT, TILES)
    m, s, parts, x = fold_tile(m, s, z, SEGMENT)
    if Stored is not None:
        keep_exponentials(Stored, Blocks, x, finite_or_zero(m), row0, tile, N, V, TILES)
    if Record is not None:
        finite = finite_or_zero(m)
        base = tl.where(tile == first, finite, base)
        SEGMENTS: tl.constexpr = TILES.block_v // SEGMENT
        record_mass(Record, finite, base, parts, tile * SEGMENTS + tl.arange(0, SEGMENTS), rows, N, V, SEGMENT)
    return m, s, z_target, base


@device_function
def visit_split(
    E,
    C,
    Bias,
    Target,
    Max,
    Sum,
    TargetLogit,
    Record,
    Stored,
    Blocks,
    row0,
    split,
    tiles_per_split,
    softcap,
    N,
    V,
    D,
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
    SEGMENT: tl.constexpr,
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """Stores what a block of rows finds in one split of the vocabulary."""
    rows = row0 + tl.arange(0, TILES.block_n)
    row_mask = rows < N
    target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=row_mask, other=-1)
    m = tl.full((TILES.block_n,), float("-inf"), tl.float32)
    s = tl.full((TILES.block_n,), 0.0, tl.float32)
    z_target = tl.full((TILES.block_n,), 0.0, tl.float32)
    base = tl.full((TILES.block_n,), 0.0, tl.float32)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(V, TILES.block_v))
    whole = tl.minimum(last, V // TILES.block_v)
    # Flattened, the loads of a tile's first products run while the tile before is exponentiated.
    for tile in tl.range(first, whole, flatten=True):
        m, s, z_target, base = visit_tile(
            m, s, z_target, base, E, C, Bias, Record, Stored, Blocks, target, row0, tile, first, softcap, N, V, D,
            False, VARIANT, TILES, SEGMENT, E_DESCRIPTOR, C_DESCRIPTOR
        )  # fmt: skip
    if whole < last:
        m, s, z_target, base = visit_tile(
            m, s, z_target, base, E, C, Bias, Record, Stored, None, target, row0, whole, first, softcap, N, V, D,
            True, VARIANT, TILES, SEGMENT, E_DESCRIPTOR, C_DESCRIPTOR
        )  # fmt: skip
    out = split.to(tl.int64) * N + rows
    tl.store(Max + out, m, mask=row_mask)
    tl.store(Sum + out, s, mask=row_mask)
    if Record is not None:
        tl.store(Record.base + out, base, mask=row_mask)
    if VARIANT.target == "fused":
        tl.store(TargetLogit + out, z_target, mask=row_mask)


@kernel
def logsumexp_kernel(
    E,
    C,
    Bias,
    Target,
    Max,  # (splits, N) fp32, as are the next two
    Sum,
    TargetLogit,
    Record,  # None where no backward pass wants it
    Stored,  # Exponentials; None unless they are stored
    Blocks,  # a descriptor of their entries, if any
    softcap,
    N,
    V,
    D,
    tiles_per_split,
    whole_splits,
    blocks_of_last_split,
    at_once,  # blocks of rows, in whole splits
    VARIANT: tl.constexpr,
    TILES: tl.constexpr,
    SEGMENT: tl.constexpr,  # columns that are summed, and recorded, apart
    E_DESCRIPTOR: tl.constexpr,
    C_DESCRIPTOR: tl.constexpr,
):
    """One program per (split, block of rows); of a last split that is shorter, one per several blocks of rows. These
    come first: they are the longest.

    The usual programs have a branch of their own: in a loop over a single block they took 0.06 of a product more."""
    row_blocks = tl.cdiv(N, TILES.block_n)
    others = tl.num_programs(0) - whole_splits * row_blocks
    if tl.program_id(0) >= others:
        block, split = swizzled(tl.program_id(0) - others, row_blocks, whole_splits, at_once)
        visit_split(
            E, C, Bias, Target, Max, Sum, TargetLogit, Record, Stored, Blocks, block * TILES.block_n, split,
            tiles_per_split, softcap, N, V, D, VARIANT, TILES, SEGMENT, E_DESCRIPTOR, C_DESCRIPTOR
        )  # fmt: skip
    else:
        split = tl.cast(whole_splits, tl.int32)
        block = tl.program_id(0) * blocks_of_last_split
        end = tl.minimum(block + blocks_of_last_split, row_blocks)
        for row0 in range(block * TILES.block_n, end * TILES.block_n, TILES.block_n):
            visit_split(
                E, C, Bias, Target, Max, Sum, TargetLogit, Record, Stored, Blocks, row0, split,
                tiles_per_split, softcap, N, V, D, VARIANT, TILES, SEGMENT, E_DESCRIPTOR, C_DESCRIPTOR
            )  # fmt: skip
