# mypy: ignore-errors
"""The numbers of the entries that are not 0, row by row, in pieces: one program per row would leave a GPU idle."""

import triton.language as tl

from .backend import device_function, kernel

PIECE = 1024


@device_function
def load_piece(Live, members, PIECE: tl.constexpr):
    """(row, piece, numbers, live) of this program: 0 or 1 each of the last."""
    pieces = tl.cdiv(members, PIECE)
    row, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    number = piece * PIECE + tl.arange(0, PIECE)
    live = tl.load(Live + row.to(tl.int64) * members + number, mask=number < members, other=0)
    return row, piece, number, (live != 0).to(tl.int32)


@kernel
def count_kernel(Live, Count, members, PIECE: tl.constexpr):
    """(rows, pieces) int32: how many there are; one program per piece."""
    _, _, _, live = load_piece(Live, members, PIECE)
    tl.store(Count + tl.program_id(0), tl.sum(live, 0))


@kernel
def bounds_kernel(
    Count,  # (rows, pieces) int32
    Bounds,  # (2, rows + 1) int32: where each row's numbers begin in a list of all, and the chunks of `size` of them
    owners,  # the rows
    parts,  # the pieces of one
    size,
    OWNERS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program, OWNERS of the rows and PARTS of their pieces at a time. As sums of torch's it was ten launches, and
    a host that waits for their result was not done with launching them when a GPU was."""
    start, chunk = 0, 0
    tl.store(Bounds, 0)
    tl.store(Bounds + owners + 1, 0)
    for o0 in range(0, owners, OWNERS):
        o = o0 + tl.arange(0, OWNERS)
        count = tl.full((OWNERS,), 0, tl.int32)
        for p0 in range(0, parts, PARTS):
            p = p0 + tl.arange(0, PARTS)
            mask = (o < owners)[:, None] & (p < parts)[None, :]
            count += tl.sum(tl.load(Count + o[:, None] * parts + p[None, :], mask=mask, other=0), 1)
        chunks = (count + size - 1) // size
        tl.store(Bounds + 1 + o, start + tl.cumsum(count, 0), mask=o < owners)
        tl.store(Bounds + owners + 2 + o, chunk + tl.cumsum(chunks, 0), mask=o < owners)
        start += tl.sum(count, 0)
        chunk += tl.sum(chunks, 0)


@kernel
def compact_kernel(
    Live,  # (rows, members) int8
    Count,  # (rows, pieces) int32
    Start,  # (rows + 1,) int32: where each row's numbers begin
    Members,  # (room,) int32
    members,
    room,
    PIECE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Ascending; one program per piece. What has no place is left out."""
    row, piece, number, live = load_piece(Live, members, PIECE)
    before = tl.full((PARTS,), 0, tl.int32)
    for p0 in range(0, piece, PARTS):
        p = p0 + tl.arange(0, PARTS)
        before += tl.load(Count + tl.program_id(0) - piece + p, mask=p < piece, other=0)
    place = tl.load(Start + row) + tl.sum(before, 0) + tl.cumsum(live, 0) - live
    tl.store(Members + place, number, mask=(live != 0) & (place < room))


@kernel
def chunks_kernel(
    Start,  # (rows + 1,) int32 into what rows list
    First,  # (rows + 1,) int32 into the chunks of it
    Chunk,  # (chunks, 3) int32: a row, where its next numbers begin, how many they are
    size,
    room,  # for what all rows list
    BLOCK: tl.constexpr,
):
    """Cuts what each row lists into chunks of `size`; one program per row. Where there was no room there are none."""
    row = tl.program_id(0)
    start, first = tl.load(Start + row), tl.load(First + row)
    count, chunks = tl.load(Start + row + 1) - start, tl.load(First + row + 1) - first
    chunks = tl.where(tl.load(Start + tl.num_programs(0)) <= room, chunks, 0)
    for c0 in range(0, chunks, BLOCK):
        c = c0 + tl.arange(0, BLOCK)
        out = Chunk + 3 * (first + c)
        tl.store(out, row, mask=c < chunks)
        tl.store(out + 1, start + c * size, mask=c < chunks)
        tl.store(out + 2, tl.minimum(count - c * size, size), mask=c < chunks)
