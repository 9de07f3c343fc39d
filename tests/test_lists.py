"""Lists of what owners keep: all of it, in order, cut into chunks and groups."""

from __future__ import annotations

import pytest
import torch

from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.kernels.kept import kept_lists
from ccelab.kernels.lists import Counted

DEVICE = "cpu" if IS_INTERPRETED else "cuda"


@pytest.mark.parametrize("members", [1, 1024, 2500])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_members_are_those_that_are_live(members: int, share: float) -> None:
    size = 32
    generator = torch.Generator().manual_seed(members)
    live = (torch.rand(3, members, generator=generator) < share).to(torch.int8).to(DEVICE)
    lists = Counted(live, size).lists()
    want = [row.nonzero()[:, 0].tolist() for row in live.cpu()]
    start, chunk = lists.start.tolist(), lists.table().tolist()
    assert lists.kept == sum(map(len, want)) == start[-1]
    for owner, numbers in enumerate(want):
        assert lists.members[start[owner] : start[owner + 1]].tolist() == numbers
        mine = chunk[lists.firsts[owner] : lists.firsts[owner + 1]]
        places = [place for at, begin, count in mine for place in range(begin, begin + count) if at == owner]
        assert places == list(range(start[owner], start[owner + 1]))
        assert all(0 < count <= size for _, _, count in mine)


@pytest.mark.parametrize("room", [0, 40, 64, 500, 2000])
def test_lists_that_wait_for_nothing_are_the_same_or_empty(room: int) -> None:
    size = 32
    live = (torch.rand(3, 1500, generator=torch.Generator().manual_seed(room)) < 0.1).to(torch.int8).to(DEVICE)
    counted = Counted(live, size)
    members, table = counted.within(room)
    assert len(table) >= room // size
    lists = counted.lists()
    assert counted.kept() == lists.kept == int(live.sum())
    whole = lists.table()
    if lists.kept > room:
        assert not table.any()
        return
    assert room
    assert torch.equal(members[: lists.kept], lists.members)
    assert torch.equal(table[: len(whole)], whole)
    assert not table[len(whole) :].any()


def test_groups_hold_every_owner_once() -> None:
    live = torch.zeros((5, 300), dtype=torch.int8, device=DEVICE)
    for owner, count in enumerate((300, 0, 40, 100, 7)):
        live[owner, :count] = 1
    lists = Counted(live, 32).lists()
    groups = list(lists.groups(4))
    assert [owner for first, owners, *_ in groups for owner in range(first, first + owners)] == list(range(5))
    for owner, owners, first, chunks in groups:
        assert (first, first + chunks) == (lists.firsts[owner], lists.firsts[owner + owners])
        assert chunks <= 4 or owners == 1


@pytest.mark.parametrize("width", [1, 4, 300])
@pytest.mark.parametrize("shape", [(5, 300), (2, 3, 7)])
def test_tiles_of_spans_are_those_that_are_live(shape: tuple[int, ...], width: int) -> None:
    live = torch.rand(shape, generator=torch.Generator().manual_seed(width)) < 0.4
    turned = live.to(torch.int8).to(DEVICE).mT.contiguous().mT  # as the marks of blocks of rows are for dC
    kept = kept_lists(turned, width)
    assert kept.places is not None
    assert kept.count is not None
    spans = -(-shape[-1] // width)
    assert kept.places.shape == (*shape[:-1], spans, width)
    counts, places = kept.count.reshape(-1, spans).tolist(), kept.places.reshape(-1, spans, width).tolist()
    for row, count, place in zip(live.reshape(-1, shape[-1]), counts, places, strict=True):
        for span in range(spans):
            want = row[span * width : (span + 1) * width].nonzero()[:, 0] + span * width
            assert place[span][: count[span]] == want.tolist()
