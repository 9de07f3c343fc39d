# mypy: ignore-errors
"""The numbers of the entries that are not 0, row by row."""

import triton.language as tl

from .backend import kernel


@kernel
def compact_kernel(
    Live,  # (programs, members) int8
    Start,  # (programs + 1,) int32: where each row's numbers begin
    Members,  # int32
    members,
    BLOCK: tl.constexpr,
):
    """One program per row; ascending."""
    row = Live + tl.program_id(0).to(tl.int64) * members
    at = tl.load(Start + tl.program_id(0))
    for first in range(0, members, BLOCK):
        number = first + tl.arange(0, BLOCK)
        live = tl.load(row + number, mask=number < members, other=0).to(tl.int32)
        place = at + tl.cumsum(live, 0) - live
        tl.store(Members + place, number, mask=live != 0)
        at += tl.sum(live, 0)
