"""Every rule of the verdict, on a result that is changed to meet it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from ccelab.kernels import Variant
from ccelab.precision.dead_rows import DeadRows
from ccelab.precision.laboratory import build_report
from ccelab.precision.report import Report, Result
from ccelab.precision.stage_table import StageRow, StageTable
from ccelab.precision.verdict import Grade, judge
from ccelab.reference.heads import resolve


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(resolve("gaussian", tokens=20, vocabulary=100, hidden=24), [Variant.parse("cce-exact")])


def changed(result: Result, output: str, **figures: object) -> Result:
    measured = replace(result.outputs[output], **figures)  # type: ignore[arg-type]
    return replace(result, outputs={**result.outputs, output: measured})


def test_a_good_result_passes_without_reasons(report: Report) -> None:
    (result,) = report.results
    assert result.verdict == judge(result, report.floors)
    assert result.verdict.grade is Grade.passed
    assert result.verdict.reasons == []


@pytest.mark.parametrize(
    ("output", "figures", "says"),
    [
        ("d_embeddings", {"over_budget": 1.5}, "dE.* is 1.5 times its budget"),
        ("loss", {"nonfinite_mismatches": 3}, "loss is NaN or infinite .* in 3 of 20"),
    ],
)
def test_what_fails(report: Report, output: str, figures: dict[str, object], says: str) -> None:
    verdict = judge(changed(report.results[0], output, **figures), report.floors)
    assert verdict.grade is Grade.failed
    (reason,) = verdict.reasons
    assert re.search(says, reason)


def test_miscounted_tiles_fail(report: Report) -> None:
    (result,) = report.results
    wrong = replace(result, tiles={**result.tiles, "live_c_at_least": result.tiles["kept_c"] + 1, "live_c_at_most": 99})
    verdict = judge(wrong, report.floors)
    assert verdict.grade is Grade.failed
    assert "tiles of dC were kept" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"zero_over_budget": 0.5}, "a dC of zeros would pass its budget too"),
        ({"infinite_bounds": 7}, "7 of 2400 bounds of dC are infinite"),
    ],
)
def test_a_gate_that_proves_nothing_is_inconclusive(report: Report, figures: dict[str, object], says: str) -> None:
    verdict = judge(changed(report.results[0], "d_classifier", **figures), report.floors)
    assert verdict.grade is Grade.inconclusive
    assert says in verdict.reasons[0]


def test_an_error_of_more_than_two_floors_is_a_limitation_with_its_stage(report: Report) -> None:
    (result,) = report.results
    far = changed(result, "d_embeddings", normwise=3 * report.floors["d_embeddings"].two_roundings)
    rows = [StageRow(stage="cast_output", measured=1e-3), StageRow(stage="add_increment", measured=1e-2)]
    far = replace(far, stages={"d_embeddings": StageTable(rows=rows)})
    verdict = judge(far, report.floors)
    assert verdict.grade is Grade.limited
    assert "dE is 3.0 times as far" in verdict.reasons[0]
    assert verdict.reasons[0].endswith("most of it from add_increment")


def test_dead_rows_are_a_limitation(report: Report) -> None:
    dead = DeadRows(rows=100, dead=12, lost=0.031, buckets=[])
    verdict = judge(replace(report.results[0], dead_rows=dead), report.floors)
    assert verdict.grade is Grade.limited
    assert verdict.reasons == ["12 of 100 rows of dC are exactly zero and should not be: 3.1 % of its norm is lost"]


def test_a_failure_outranks_the_rest(report: Report) -> None:
    wrong = changed(report.results[0], "d_classifier", over_budget=2.0, zero_over_budget=0.5)
    assert judge(wrong, report.floors).grade is Grade.failed
