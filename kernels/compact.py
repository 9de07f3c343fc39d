# mypy: ignore-errors
"""The numbers of the entries that are not 0, row by row, in pieces: one program per row would leave a GPU idle."""

import triton.language as tl

from .backend import device_function, kernel

PIECE = 1024


@device_function
def load_piece(Live, members, PIECE: tl.constexpr):
    """(numbers, live) of this program's piece: 0 or 1 each."""
    pieces = tl.cdiv(members, PIECE)
    number = (tl.program_id(0) % pieces) * PIECE + tl.arange(0, PIECE)
    row = Live + (tl.program_id(0) // pieces).to(tl.int64) * members
    return number, (tl.load(row + number, mask=number < members, other=0) != 0).to(tl.int32)


@kernel
def count_kernel(Live, Count, members, PIECE: tl.constexpr):
    """(rows, pieces) int32: how many there are; one program per piece."""
    _, live = load_piece(Live, members, PIECE)
    tl.store(Count + tl.program_id(0), tl.sum(live, 0))


@kernel
def compact_kernel(
    Live,  # (rows, members) int8
    Start,  # (rows, pieces) int32: where each piece's numbers begin
    Members,  # (room,) int32
    members,
    room,
    PIECE: tl.constexpr,
):
    """Ascending; one program per piece. What has no place is left out."""
    number, live = load_piece(Live, members, PIECE)
    place = tl.load(Start + tl.program_id(0)) + tl.cumsum(live, 0) - live
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
