"""Which calls look ahead, and that it is the very tiles that a filter keeps which are found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ccelab.kernels import Statistics, Variant, launch, live_segments, look_ahead
from ccelab.kernels.schedule import default_schedule
from ccelab.precision.call import launch_call
from ccelab.properties.cases import DEVICE, DTYPES, SMALL, Case, draw, peaked, run

EVERY = (True, True, False)


def call_of(case: Case, **schedule: Any) -> launch.Call:
    return launch_call(case.problem(), Variant.of(case.variant), replace(case.schedule, **schedule))


@pytest.mark.parametrize(
    ("variant", "wanted", "ahead"),
    [
        ("cce", EVERY, True),
        ("cce-no-sort,accumulate=fp32", EVERY, True),
        ("cce", (True, True, True), False),  # dbias takes in every tile
        ("cce-kahan-full-c", EVERY, False),  # and so does this dC
        ("cce-kahan-full-c", (True, False, False), True),
        ("cce-kahan-full-e", (True, False, False), False),
        ("cce-exact", EVERY, False),
        ("cce", (False, False, False), False),
        ("cce-segment", EVERY, False),  # records anyway
    ],
)
def test_who_takes_in_every_tile_computes_it(variant: str, wanted: tuple[bool, bool, bool], ahead: bool) -> None:
    call = call_of(draw(variant=variant), look_ahead=0)
    assert launch.looks_ahead(call, wanted) is ahead
    assert not launch.looks_ahead(replace(call, schedule=SMALL), wanted)
    recorded = launch.room_for(call, wanted).record
    assert (recorded is not None) is (ahead or (variant == "cce-segment" and any(wanted)))


@pytest.mark.parametrize("wanted", [EVERY, (True, True, True), (True, False, False), (False, False, True)])
@pytest.mark.parametrize("variant", ["cce-no-sort", "cce-kahan-full-c,order=none", "cce-kahan-full-e,order=none"])
def test_a_tail_has_to_know_what_is_dropped(variant: str, wanted: tuple[bool, bool, bool]) -> None:
    """Whatever the schedule says, and whoever takes in every tile."""
    call = call_of(draw(variant=f"{variant},tail=rank1"))
    assert call.schedule.look_ahead is None
    drops = (call.variant.filter_e and wanted[0]) or (call.variant.filter_c and wanted[1])
    assert launch.looks_ahead(call, wanted) is drops


def test_small_vocabularies_and_fp32_are_left_alone() -> None:
    """Their tiles are live, most of them."""
    assert default_schedule(torch.float32, 64, 64).look_ahead is None
    least = default_schedule(torch.bfloat16, 64, 64).look_ahead
    assert least is not None
    call = call_of(draw(v=75), look_ahead=75)
    assert launch.looks_ahead(call, EVERY)
    assert not launch.looks_ahead(replace(call, schedule=replace(call.schedule, look_ahead=76)), EVERY)


def found(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor | None]:
    """What calls from here on find."""
    seen: list[torch.Tensor | None] = []
    tiles = look_ahead.LookAhead.tiles

    def note(self: look_ahead.LookAhead, order: torch.Tensor | None) -> torch.Tensor | None:
        seen.append(tiles(self, order))
        return seen[-1]

    monkeypatch.setattr(look_ahead.LookAhead, "tiles", note)
    return seen


@pytest.mark.parametrize("variant", ["cce,eps=2^-5", "cce-no-sort,eps=2^-5", "cce,eps=2^-5,order=mean_prob"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tiles_that_are_found_are_those_that_are_kept(
    dtype: torch.dtype, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = found(monkeypatch)
    monkeypatch.setattr(look_ahead, "DENSE", 1)
    case = peaked(53, 130, 40, dtype, variant=variant)
    counted = run(case).stats
    assert not seen
    run(replace(case, schedule=replace(SMALL, look_ahead=0)), counts=False)
    (marks,) = seen
    assert marks is not None
    assert counted.tiles_skipped_e
    assert int((marks != 0).sum()) == counted.tiles_kept_e == counted.tiles_kept_c


@pytest.mark.parametrize("variant", ["cce,eps=2^-5", "cce-no-sort,eps=2^-5,tail=rank1"])
def test_they_are_found_some_at_a_time(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch)
    monkeypatch.setattr(look_ahead, "DENSE", 1)
    case = peaked(53, 130, 40, variant=variant, schedule=replace(SMALL, look_ahead=0))
    for size in (live_segments.BITS, 200):  # bytes; a chunk has 32
        monkeypatch.setattr(live_segments, "BITS", size)
        run(case, counts=False)
    one, other = seen
    assert one is not None
    assert other is not None
    assert 0 < int((one != 0).sum()) < one.numel()
    assert torch.equal(one, other)


def test_where_most_is_live_all_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch)
    run(draw((40,), 90, 40, variant="cce,eps=2^-30", schedule=replace(SMALL, look_ahead=0)), counts=False)
    assert seen == [None]


def test_a_record_is_no_burden_where_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch)
    case = draw(variant="cce", schedule=replace(SMALL, look_ahead=0), wanted=(False, False, False))
    run(case, counts=False)
    assert not seen


def test_counting_computes_what_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = found(monkeypatch)
    case = peaked(40, 90, 40, variant="cce,eps=2^-5", schedule=replace(SMALL, look_ahead=0))
    stats: Statistics = run(case).stats
    assert not seen
    assert stats.tiles_skipped_e
    assert stats.filtered_mass_e is not None
    assert stats.filtered_mass_e.device.type == DEVICE
    assert float(stats.filtered_mass_e.max()) > 0
