"""Schedules beside one another: bits in common, repetition that is tried and not assumed, and the figures of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from ccelab.kernels import Schedule, Statistics, Variant, default_schedule
from ccelab.kernels.backend import IS_INTERPRETED
from ccelab.precision import call
from ccelab.precision import schedule_study as module
from ccelab.precision.html.schedules import schedules, schedules_of
from ccelab.precision.program_order import last_program_first
from ccelab.precision.schedule_study import (
    Alternative,
    HeadSpread,
    ScheduleStudy,
    alternatives,
    common_bits,
    same_bits,
    schedule_study,
)
from ccelab.precision.study import STUDIES, tile_by_tile
from ccelab.properties.cases import DEVICE
from ccelab.reference import Problem, Solution
from ccelab.reference.heads.gaussian import gaussian

VARIANTS = [Variant.parse(name) for name in ("cce,increment=tile", "cce-exact")]


def three(base: Schedule) -> list[Alternative]:
    """The default, smaller backward tiles, and pointer loads."""
    small = replace(base, backward=replace(base.backward, block_n=16, block_v=16))
    loads = replace(base, descriptors=False)
    named = {"default": base, "small": small, "loads": loads}
    return [Alternative(name=name, changes=name, schedule=schedule) for name, schedule in named.items()]


@pytest.fixture(scope="module")
def study() -> ScheduleStudy:
    return schedule_study([gaussian(20, 100, 24, device=DEVICE)], VARIANTS, choose=three)


def test_bits_in_common() -> None:
    low = torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0, -2.0, 0.0]).double()
    high = torch.tensor([1.0, 1.25, 1 + 2.0**-7, 1.0, 0.0, -1.0, 5.0]).double()
    found = common_bits(low, high, 8)
    assert found[0] == found[4] == 8
    assert found[1] == math.log2(4.5)
    assert 7 < found[2] < 7.01
    assert found[3] == 0
    assert found[5] == math.log2(1.5)
    assert found[6] == 0


def test_patterns_are_compared_and_not_numbers() -> None:
    assert same_bits(torch.tensor(torch.nan), torch.tensor(torch.nan))
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_smaller_tiles_change_the_sums_and_loads_change_nothing(study: ScheduleStudy) -> None:
    (head,) = study.heads
    storage, exact = head.variants
    for spread in (storage, exact):
        assert spread.deterministic
        default, small, loads = spread.runs
        assert all(default.as_default.values())
        assert all(loads.as_default.values())
        assert small.as_default["loss"]
        assert loads.error == default.error
        assert all(run.over_budget <= 1 for run in spread.runs)
        assert spread.agreement["loss"].same == 1
        assert spread.agreement["loss"].digits == 24
    assert storage.runs[1].over_floor["d_embeddings"] > 1.2 * storage.runs[0].over_floor["d_embeddings"]
    assert exact.runs[1].over_floor["d_embeddings"] < 1.01
    assert storage.agreement["d_embeddings"].same < 0.8 < exact.agreement["d_embeddings"].same
    assert storage.agreement["d_embeddings"].first_percentile < storage.agreement["d_embeddings"].median <= 8


def test_an_answer_that_does_not_repeat_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit of one gradient, in the second run of one schedule."""
    calls = 0

    def unsteady(problem: Problem, variant: Variant, schedule: Schedule) -> tuple[Solution, Statistics]:
        nonlocal calls
        calls += 1
        solution, stats = call.run(problem, variant, schedule)
        if calls == 4 and solution.d_classifier is not None:
            solution.d_classifier.view(torch.int16)[3, 2] ^= 1
        return solution, stats

    monkeypatch.setattr(module, "run", unsteady)
    made = schedule_study([gaussian(20, 100, 24, device=DEVICE)], VARIANTS[:1], choose=three)
    (spread,) = made.heads[0].variants
    assert [run.repeats for run in spread.runs] == [True, False, True]
    assert not spread.deterministic
    (row,) = schedules_of([made]).figures[1].tables[0].rows
    assert "not deterministic" in row[1]
    assert "small" in row[1]


@triton.jit
def _last_writer(Out):  # type: ignore[no-untyped-def]
    tl.store(Out, tl.program_id(0) + 10 * tl.program_id(1))


@pytest.mark.skipif(not IS_INTERPRETED, reason="a compiled kernel has no order to choose")
def test_programs_run_from_the_last_to_the_first() -> None:
    """A kernel whose answer is that of the program which comes last."""
    out = torch.zeros(1, dtype=torch.int32)
    _last_writer[(3, 2)](out)
    assert out.item() == 12
    with last_program_first():
        _last_writer[(3, 2)](out)
        assert out.item() == 0
    _last_writer[(3, 2)](out)
    assert out.item() == 12


def test_every_alternative_is_another_schedule() -> None:
    base = default_schedule(torch.bfloat16, 128, 64)
    found = alternatives(base)
    assert len(found) >= 8
    assert len({one.schedule for one in found}) == len({one.name for one in found}) == len(found)
    assert found[0].schedule == base


def test_the_committed_study_says_what_the_page_does() -> None:
    """Every preset on two heads under at least eight schedules, all deterministic and within budget."""
    committed = ScheduleStudy.read(STUDIES / "schedules.json")
    assert committed.complete
    assert len(committed.heads) == 2
    for head in committed.heads:
        assert [spread.variant for spread in head.variants] == list(map(str, tile_by_tile()))
        for spread in head.variants:
            assert len(spread.runs) >= 8
            assert spread.deterministic
            assert all(run.over_budget <= 1 for run in spread.runs)
    usual, peaked = ({spread.variant: spread for spread in head.variants} for head in committed.heads)

    def times(head: dict[str, module.VariantSpread], name: str) -> list[float]:
        return [run.over_floor["d_embeddings"] for run in head[name].runs]

    by_tile = times(usual, "cce-no-filter,increment=tile")
    assert max(by_tile) > 1.2 * min(by_tile)
    assert max(times(usual, "cce-exact")) < 1.01
    kept = [run.kept["d_embeddings"] for run in peaked["cce,increment=tile"].runs]
    assert min(kept) < 0.9 < max(kept)


def test_it_is_drawn_and_shown(study: ScheduleStudy, shown: Callable[[ScheduleStudy], tuple[str, str]]) -> None:
    strips, table = schedules_of([study]).figures
    assert len(strips.panels) == 2
    assert [line.label for line in strips.legend] == ["default", "small", "loads"]
    assert strips.tables[2].rows[1][:4] == ["loads", "2 of 2", "2 of 2", "2 of 2"]
    assert "deterministic" in table.tables[0].rows[0][1]
    printed, page = shown(study)
    assert "bit for bit" in printed
    assert "Schedule spread" in page


def test_a_study_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    (figure,) = schedules(tmp_path).figures
    assert figure.missing is not None
    assert "study schedules" in figure.missing


def test_a_head_without_a_spread_has_a_title(study: ScheduleStudy) -> None:
    (head,) = study.heads
    bare = HeadSpread(head={k: v for k, v in head.head.items() if k != "spread"}, variants=head.variants)
    assert "standard deviation" not in schedules_of([replace(study, heads=[bare])]).figures[0].title
