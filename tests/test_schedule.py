"""`Schedule`: what is refused, how it prints, and that results depend on nothing but the problem and the schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ccelab.kernels import ProductTiles, Schedule, Tiles, Variant, default_schedule, gradients, look_ahead
from ccelab.kernels import schedule as schedule_module
from ccelab.kernels.backward import Residuals
from ccelab.kernels.groups import Group
from ccelab.properties.cases import DTYPES, SMALL, assert_within_budget, draw, peaked, run

BASE = Tiles(block_n=16, block_v=32, block_d=16)


@pytest.mark.parametrize("name", ["block_n", "block_v", "block_d"])
@pytest.mark.parametrize("size", [0, 1, 8, 24, 48, -16])
def test_tiles_are_powers_of_two_from_16(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=rf"{name}={size} is not a power of two of at least 16"):
        replace(BASE, **{name: size})


@pytest.mark.parametrize("name", ["splits", "row_blocks", "words_per_increment", "rows_per_increment"])
@pytest.mark.parametrize("count", [0, -1])
def test_there_is_one_at_least(name: str, count: int) -> None:
    changes: dict[str, Any] = {name: count}
    with pytest.raises(ValueError, match=f"{name}={count}"):
        replace(SMALL, **changes)


@pytest.mark.parametrize("segment", [0, 8, 24, 64, 16.0])
def test_a_segment_is_part_of_a_tile(segment: int) -> None:
    with pytest.raises(ValueError, match=rf"segment={segment} is not a power of two from 16 to block_v=32"):
        replace(SMALL, segment=segment)


def test_it_prints_everything_that_is_numerical() -> None:
    texts = {
        str(s)
        for s in (
            SMALL,
            replace(SMALL, splits=3),
            replace(SMALL, row_blocks=3),
            replace(SMALL, descriptors=False),
            replace(SMALL, fp_fusion=True),
            replace(SMALL, segment=32),
            replace(SMALL, words_per_increment=64),
            replace(SMALL, rows_per_increment=64),
            replace(SMALL, forward=BASE, backward=BASE),
            replace(SMALL, backward=replace(SMALL.backward, block_d=64)),
        )
    }
    assert len(texts) == 10


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 127, 8192, 10**6])
def test_the_default_depends_on_the_problem_alone(dtype: torch.dtype, n: int) -> None:
    schedule = default_schedule(dtype, n, 2304)
    assert schedule == default_schedule(dtype, n, 2304)
    assert schedule.cut(n, 10**5).per_split >= 1
    assert not schedule.fp_fusion


@pytest.mark.parametrize(
    ("n", "d", "words"),
    [(512, 576, 8192), (8192, 2304, 8192), (8192, 5120, 6553), (2**15, 576, 3584), (2**16, 576, 2816)],
)
def test_a_group_of_many_rows_holds_enough_words(n: int, d: int, words: int) -> None:
    """Residuals of (n, words) fill the room that there is, gathered words of two groups as well; and whatever n is,
    increments of dC are of 8192 rows."""
    schedule = default_schedule(torch.bfloat16, n, d)
    assert schedule.words_per_increment == words
    assert schedule.merged("c", Variant.of("cce-exact"), stores=False) * schedule.backward.block_n == 8192


@pytest.mark.parametrize(
    "schedule",
    [
        replace(SMALL, splits=1),
        replace(SMALL, splits=3),
        replace(SMALL, splits=100),  # more than there are tiles
        Schedule(forward=Tiles(block_n=32, block_v=16, block_d=64), backward=Tiles(block_n=32, block_v=64, block_d=16)),
    ],
    ids=str,
)
def test_any_schedule_is_within_its_own_budget(schedule: Schedule) -> None:
    assert_within_budget(draw(variant="cce", schedule=schedule, lse=True, reduction="none"))


@pytest.mark.parametrize("variant", ["cce-exact", "cce-kahan,eps=2^-5", "cce-no-sort,eps=2^-5"])
@pytest.mark.parametrize("terms", [(16, 64), (40, 40), (64, 16), (10**6, 10**6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_increment_is_within_its_own_budget(terms: tuple[int, int], dtype: torch.dtype, variant: str) -> None:
    """Several tiles in one sum; of a few, of all, and of what is not a whole number of them. What is dropped of them is
    no part of it."""
    words, rows = terms
    schedule = replace(SMALL, words_per_increment=words, rows_per_increment=rows)
    case = peaked(53, 90, 40, dtype, variant=variant, schedule=schedule, lse=True, reduction="none")
    stats = assert_within_budget(case).outcome.stats
    assert stats.tiles_kept_e
    assert stats.tiles_kept_c
    assert bool(stats.tiles_skipped_e and stats.tiles_skipped_c) == Variant.of(variant).filter_e


@pytest.mark.parametrize("variant", ["cce-exact", "cce-kahan,eps=2^-5"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_increments_of_one_launch_are_those_of_several(dtype: torch.dtype, variant: str) -> None:
    """Two tiles an increment, of five: groups of two, which are one each, and of all."""
    several, whole = (replace(SMALL, words_per_increment=32, rows_per_increment=32, group=group) for group in (2, 5))
    one, other = (run(peaked(53, 75, 40, dtype, variant=variant, schedule=s)) for s in (several, whole))
    for name in ("d_embeddings", "d_classifier"):
        assert torch.equal(one[name], other[name])
    assert_within_budget(peaked(53, 75, 40, dtype, variant=variant, schedule=whole))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_classifier_may_be_the_embeddings_turned(dtype: torch.dtype) -> None:
    """The same memory in the same shape, in blocks of one size: only the strides tell them apart."""
    case = draw((32,), 32, 32, dtype, variant="cce-exact", ignored=0)
    turned = replace(case, linear_weight=case.input.T)
    copied = replace(case, linear_weight=case.input.T.contiguous())
    one, other = run(turned), run(copied)
    for name, output in one.outputs.items():
        assert torch.equal(output, other[name]), name
    assert_within_budget(turned)


def test_blocks_of_few_rows_are_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as twice as many programs are no more than multiprocessors; 32 columns at least."""
    monkeypatch.setattr(schedule_module, "IS_INTERPRETED", False)
    tiles = ProductTiles()
    assert {n: tiles.spread(n, 2304).columns for n in (128, 512, 1024, 8192)} == {
        128: 32,
        512: 128,
        1024: 128,
        8192: 128,
    }
    assert tiles.wide(2304).spread(512, 2304).columns == 128
    assert {d: tiles.wide(d).columns for d in (576, 640, 768, 1152, 2304)} == {
        576: 128,
        640: 128,
        768: 256,
        1152: 128,
        2304: 256,
    }
    assert tiles.spread(16, 32).columns == 32


@pytest.mark.parametrize("segment", [16, 32, 64])
@pytest.mark.parametrize("workers", [None, 3])
def test_any_segment_is_within_its_own_budget(segment: int, workers: int | None) -> None:
    """One, two and four segments of a tile, in splits of several tiles."""
    forward = replace(SMALL.forward, block_v=64)
    schedule = replace(SMALL, forward=forward, segment=segment, workers=workers)
    case = draw((70,), 400, 40, variant="cce-segment,eps=2^-6", schedule=schedule, lse=True, reduction="none")
    stats = assert_within_budget(case).outcome.stats
    assert stats.tiles_kept_c
    assert stats.tiles_skipped_c


@pytest.mark.parametrize("row_blocks", [None, 2])
@pytest.mark.parametrize("workers", [1, 3, 4, 9, 40])
def test_equal_shares_of_the_forward_pass_are_within_budget(workers: int, row_blocks: int | None) -> None:
    schedule = replace(SMALL, workers=workers, row_blocks=row_blocks)
    assert_within_budget(draw((70,), 200, 40, variant="cce-exact", schedule=schedule))


@pytest.mark.usefixtures("fresh_memory_is_nan")
@pytest.mark.parametrize("row_blocks", [None, 1, 3, 4, 100])
@pytest.mark.parametrize("variant", ["cce-exact", "cce,eps=2^-5", "cce-no-sort,eps=2^-5", "cce-kahan", "cce-stored"])
def test_blocks_of_rows_at_once_change_nothing(
    variant: str, row_blocks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five, two at once; with lists of kept tiles, where something is dropped, and groups of two tiles, the last of
    which has one."""
    monkeypatch.setattr(look_ahead, "DENSE", 1)
    base = replace(SMALL, look_ahead=0)
    one, other = (
        run(peaked(70, 140, 40, variant=variant, schedule=replace(base, row_blocks=blocks)), counts=False)
        for blocks in (SMALL.row_blocks, row_blocks)
    )
    for name, output in one.outputs.items():
        assert torch.equal(output, other[name]), name


def test_blocks_in_cache_are_nearly_as_many_each_time() -> None:
    def at_once(row_blocks: int | None) -> list[int]:
        return [replace(SMALL, row_blocks=row_blocks).blocks_in_cache(blocks) for blocks in (0, 1, 5, 8, 9)]

    assert at_once(None) == [1, 1, 5, 8, 9]
    assert at_once(1) == [1, 1, 1, 1, 1]
    assert at_once(4) == [1, 1, 3, 4, 3]


def test_rows_go_through_the_vocabulary_in_even_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of E that the cache holds, if all multiprocessors then have as much to do; all rows, if not."""
    monkeypatch.setattr(schedule_module, "IS_INTERPRETED", False)

    def at_once(n: int, v: int, d: int) -> int:
        return default_schedule(torch.bfloat16, n, d).cut(n, v).at_once

    assert at_once(8192, 256000, 2304) == 32
    assert at_once(8192, 256000, 576) == 64
    assert at_once(8192, 256000, 8192) == 64  # the cache holds 10: seven rounds
    assert at_once(65536, 131072, 2304) == 32
    assert at_once(128, 32000, 2304) == 1
    assert at_once(0, 32000, 2304) == 1


def test_no_program_of_the_last_split_has_more_to_do() -> None:
    """Not by half, which is what its tiles take longer."""
    for n, v in ((8192, 256000), (8192, 49152), (65536, 131072), (2048, 152064), (1000, 32000)):
        cut = default_schedule(torch.bfloat16, n, 2304).cut(n, v)
        last = (cut.tiles - cut.per_split * cut.whole) * cut.blocks_of_last
        assert last <= 1.1 * cut.per_split * cut.blocks / cut.at_once, (n, v)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_default_schedule_is_within_budget(dtype: torch.dtype) -> None:
    """Larger than two tiles in N and V, which is what fits the interpreter."""
    tiles = default_schedule(dtype, 1, 70).backward
    case = draw((2 * tiles.block_n + 5,), 2 * tiles.block_v + 3, 70, dtype, lse=True)
    assert_within_budget(replace(case, schedule=default_schedule(dtype, *case.input.shape)))


@pytest.mark.parametrize(("d", "dtype"), [(40, x) for x in DTYPES] + [(38, torch.bfloat16)], ids=str)
def test_descriptors_and_pointers_load_the_same_numbers(dtype: torch.dtype, d: int) -> None:
    """Rows of 38 half floats are no multiple of 16 bytes: those are loaded by pointers either way."""
    case = draw(d=d, dtype=dtype, variant="cce-exact", lse=True, reduction="none", wanted=(True, False, False))
    one, other = (run(replace(case, schedule=replace(SMALL, descriptors=choice))) for choice in (True, False))
    for name, output in one.outputs.items():
        assert torch.equal(output, other[name]), name


SHARED_OUT = [
    replace(SMALL, group=1),
    replace(SMALL, group=3),
    replace(SMALL, group=None),
    replace(SMALL, product=replace(SMALL.product, columns=16)),
    replace(SMALL, product=replace(SMALL.product, rows=128, columns=128, depth=64)),
]


@pytest.mark.parametrize("schedule", SHARED_OUT, ids=range(len(SHARED_OUT)))
@pytest.mark.parametrize("variant", ["cce", "cce-kahan", "cce-exact", "cce-no-filter,accumulate=hilo"])
def test_no_bit_depends_on_how_the_backward_pass_is_shared_out(variant: str, schedule: Schedule) -> None:
    """Groups of the vocabulary and blocks of the gradients: only `forward` and `backward` tiles are numerical."""
    case = draw((37,), 75, 50, variant=variant, bias=torch.float32, lse=True)
    one, other = (run(replace(case, schedule=choice)) for choice in (SMALL, schedule))
    for name, output in one.outputs.items():
        assert torch.equal(output, other[name]), name
    assert one.stats.tiles_kept_e == other.stats.tiles_kept_e
    assert one.stats.tiles_kept_c == other.stats.tiles_kept_c


@pytest.mark.parametrize(("variant", "n"), [("cce", 1), ("cce", 40), ("cce-no-sort", 40)])
def test_a_group_holds_no_more_than_it_may(variant: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of residuals nor of words that were gathered, however few tokens there are."""
    held: list[tuple[int, int]] = []
    find = gradients._Backward._residuals

    def note(self: gradients._Backward, group: Group, room: Residuals) -> Residuals:
        found = find(self, group, room)
        buffers = (x for x in (found.for_e, found.for_c) if x is not None)
        gathered = group.classifier.numel() if self.order is not None else 0
        held.append((sum(x.numel() for x in buffers), gathered))
        return found

    monkeypatch.setattr(gradients._Backward, "_residuals", note)
    monkeypatch.setattr(gradients, "group_bytes", lambda n: 2 * 6000)
    run(draw((n,), 300, 70, variant=variant, schedule=replace(SMALL, group=None), upstream=False))
    assert len(held) > 2
    assert max(max(pair) for pair in held) <= 6000
