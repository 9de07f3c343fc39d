"""Turns of dE: every chunk has one, none holds more than it may, and sums that wait lose nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ccelab.kernels import Variant
from ccelab.kernels import turns as module
from ccelab.kernels.borrowed import Borrowed
from ccelab.kernels.kept_words import KeptWords
from ccelab.kernels.launch import Call
from ccelab.kernels.lists import Lists
from ccelab.kernels.live_segments import LiveSegments
from ccelab.kernels.schedule import default_schedule
from ccelab.kernels.turns import Turn, turns_of_blocks, turns_of_chunks
from ccelab.properties.cases import SMALL, peaked, run


def keeping(counts: list[int]) -> Lists:
    """Lists of owners that have so many chunks each."""
    firsts = np.array([0, *np.cumsum(counts)], np.int32)
    first, nobody = torch.from_numpy(firsts), torch.empty(0, dtype=torch.int32)
    return Lists(members=nobody, start=nobody, first=first, kept=0, firsts=firsts, size=1)


def chunks_of(lists: Lists, turn: Turn) -> dict[tuple[int, int], int]:
    """Where (block, chunk) is in the residuals of a turn."""
    found = {}
    for block in range(turn.block, turn.block + turn.blocks):
        count = int(lists.firsts[block + 1] - lists.firsts[block])
        for chunk in range(turn.begin, min(count, turn.begin + turn.size)):
            found[block, chunk] = int(turn.place[block]) - turn.first + chunk - turn.begin
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_chunk_has_a_turn_and_a_place(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.poisson(generator.choice([0.5, 3.0, 20.0]), 9).tolist()
    lists, most = keeping(counts), int(generator.integers(9, 60))
    for turns in (list(turns_of_blocks(lists, most)), turns_of_chunks(lists, most)):
        had = []
        for turn in turns:
            found = chunks_of(lists, turn)
            assert sorted(found.values()) == list(range(turn.chunks))
            assert turn.chunks <= most or turn.blocks == 1
            had += list(found)
        assert sorted(had) == [(b, c) for b, count in enumerate(counts) for c in range(count)]


@pytest.mark.parametrize(("n", "mib"), [(64, 40), (8192, 40), (16384, 104), (65536, 488)])
def test_many_rows_hold_more(n: int, mib: int) -> None:
    schedule = default_schedule(torch.bfloat16, n, 576)
    e = torch.empty((n, 0), dtype=torch.bfloat16)
    call = Call(e, e, None, e, -100, None, Variant.of("cce-segment"), schedule)
    tiles = schedule.row_segments
    assert module.most_chunks(call, tiles) * tiles.block_n * tiles.block_v * 2 == mib * 2**20


def test_without_dc_no_residuals_of_rows_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they mark is all that dE wants of them."""
    case = peaked(70, 200, 40, variant="cce-segment,eps=2^-8")
    both = run(case)
    stored: list[bool] = []
    form = LiveSegments.residuals

    def note(self: LiveSegments, *arguments: Any, **named: Any) -> None:
        stored.append(named["out"] is not None)
        form(self, *arguments, **named)

    monkeypatch.setattr(LiveSegments, "residuals", note)
    alone = run(replace(case, wanted=(True, False, False)))
    assert stored == [False]
    assert torch.equal(alone.outputs["d_embeddings"], both.outputs["d_embeddings"])


def test_there_are_none_where_a_chunk_of_each_block_is_too_much() -> None:
    assert turns_of_chunks(keeping([3, 1, 2]), 2) == []
    assert [turn.size for turn in turns_of_chunks(keeping([3, 1, 2]), 3)] == [1, 2]


@pytest.mark.parametrize(("thirds", "lies_in_record"), [(4, True), (6, False)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_residuals_may_lie_in_the_record(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, thirds: int, lies_in_record: bool
) -> None:
    """Where it is nearly as large as what they would have else, and dC lends less."""
    case = peaked(330, 120, 8, dtype, variant="cce-segment,eps=2^-11", schedule=replace(SMALL, group=None))
    rooms: list[tuple[Tensor, KeptWords]] = []
    turns_of = KeptWords._turns

    def note(self: KeptWords, borrowed: Tensor | None, out: Tensor) -> Any:
        found = turns_of(self, borrowed, out)
        rooms.append((found[1], self))
        return found

    monkeypatch.setattr(KeptWords, "_turns", note)
    monkeypatch.setattr(Borrowed, "of", lambda *arguments: None)
    whole = run(case)
    record = rooms[0][1].spare
    monkeypatch.setattr(module, "TURN_BYTES", record.nbytes * thirds // 3)
    other = run(case)
    (room, words) = rooms[1]
    assert words.lists.firsts[-1] > 0
    assert (room.untyped_storage().data_ptr() == words.spare.untyped_storage().data_ptr()) == lies_in_record
    for name in ("d_embeddings", "d_classifier"):
        assert torch.equal(whole.outputs[name], other.outputs[name])


@pytest.mark.parametrize(("dtype", "eps"), [(torch.bfloat16, "2^-11"), (torch.float16, "2^-14")], ids=str)
@pytest.mark.parametrize(("shape", "is_borrowed"), [((70, 500, 40), False), ((20, 2000, 32), True)])
def test_sums_that_wait_lose_nothing(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], is_borrowed: bool, dtype: torch.dtype, eps: str
) -> None:
    """Neither in memory of their own, room for the sums and as much again, nor in dC's, nor where a schedule says how
    much is held."""
    case = peaked(*shape, dtype, variant=Variant.parse(f"cce-segment,eps={eps}"), schedule=replace(SMALL, group=None))
    seen: list[tuple[int, bool]] = []
    turns_of = KeptWords._turns

    def note(self: KeptWords, borrowed: Tensor | None, out: Tensor) -> Any:
        found = turns_of(self, borrowed, out)
        room = found[1].untyped_storage().data_ptr()
        seen.append((len(found[0]), borrowed is not None and room == borrowed.untyped_storage().data_ptr()))
        assert (found[2] is None) == (len(found[0]) == 1)
        return found

    monkeypatch.setattr(KeptWords, "_turns", note)
    by_schedule = run(replace(case, schedule=replace(SMALL, group=1)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "TURN_BYTES", 2 * 2 * 70 * 40 + 2048)
        by_memory = run(case)
    monkeypatch.setattr(Borrowed, "of", lambda *arguments: None)
    at_once = run(case)
    assert seen[0][0] > 1
    assert seen[1][0] > 1
    assert seen[1][1] == is_borrowed
    assert seen[2][0] == 1
    for name in ("d_embeddings", "d_classifier"):
        for outcome in (by_schedule, by_memory):
            assert torch.equal(outcome.outputs[name], at_once.outputs[name])
