"""`ccelab diff`: a planted regression is found and first, noise is not one, and the exit status says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ccelab.kernels import Variant
from ccelab.precision.cli import app
from ccelab.precision.diff import Change, diff
from ccelab.precision.laboratory import build_report
from ccelab.precision.markdown import BASELINES
from ccelab.precision.report import Report, Result
from ccelab.precision.verdict import Grade, Verdict
from ccelab.reference.heads import resolve


@pytest.fixture(scope="module")
def report() -> Report:
    variants = [Variant.parse("cce"), Variant.parse("cce-exact")]
    return build_report(resolve("gaussian", tokens=20, vocabulary=100, hidden=24), variants)


def changed(report: Report, change: Any) -> Report:
    """The report with its last variant changed."""
    return replace(report, results=[*report.results[:-1], change(report.results[-1])])


def scaled(metric: str, factor: float) -> Any:
    def change(result: Result) -> Result:
        m = result.outputs["d_classifier"]
        outputs = {**result.outputs, "d_classifier": replace(m, **{metric: getattr(m, metric) * factor})}
        return replace(result, outputs=outputs)

    return change


def test_nothing_changed(report: Report) -> None:
    assert {delta.change for delta in diff(report, report)} == {Change.same}


@pytest.mark.parametrize(
    ("metric", "factor", "change"),
    [
        ("normwise", 1.5, Change.worse),
        ("normwise", 1.05, Change.same),  # 2400 elements: 2 % and 3/sqrt(2400), 6 %
        ("normwise", 0.5, Change.better),
        ("largest", 1.2, Change.same),
        ("largest", 1.3, Change.worse),
        ("over_budget", 1.3, Change.worse),
        ("signed_bias", 1e6, Change.worse),
    ],
)
def test_what_is_beyond_noise(report: Report, metric: str, factor: float, change: Change) -> None:
    first = diff(report, changed(report, scaled(metric, factor)))[0]
    assert first.change is change
    if change is not Change.same:
        assert (first.variant, first.output, first.metric) == ("cce-exact", "d_classifier", metric)


def test_a_threshold_replaces_the_percentage(report: Report) -> None:
    slightly = changed(report, scaled("largest", 1.2))
    assert diff(report, slightly, threshold=0.1)[0].change is Change.worse
    assert diff(report, slightly, threshold=0.1, metrics=["normwise"])[0].change is Change.same


def test_a_worse_verdict_and_a_variant_that_is_gone(report: Report) -> None:
    failed = changed(report, lambda result: replace(result, verdict=Verdict(grade=Grade.failed)))
    assert (first := diff(report, failed)[0]).metric == "verdict"
    assert (first.before, first.after) == ("pass", "fail")
    gone = diff(report, replace(report, results=report.results[:1]))[0]
    assert (gone.variant, gone.change, gone.after) == ("cce-exact", Change.worse, "gone")


def test_an_error_that_is_no_number_and_an_output_that_is_gone(report: Report) -> None:
    broken = changed(report, scaled("normwise", float("nan")))
    first = diff(report, broken)[0]
    assert (first.metric, first.change) == ("normwise", Change.worse)
    assert diff(broken, report)[0].change is Change.better
    assert {delta.change for delta in diff(broken, broken)} == {Change.same}

    def without(result: Result) -> Result:
        return replace(result, outputs={name: m for name, m in result.outputs.items() if name != "d_classifier"})

    for metrics in (["normwise"], ["verdict", "rms"]):
        gone = diff(report, changed(report, without), metrics=metrics)[0]
        assert (gone.output, gone.change, gone.after) == ("d_classifier", Change.worse, "gone")


def test_reports_that_do_not_fit(report: Report) -> None:
    with pytest.raises(ValueError, match=r"different heads .*tokens: 20 and 21"):
        diff(report, replace(report, head={**report.head, "tokens": 21}))
    with pytest.raises(ValueError, match=r"different heads .*seed: 0 and 1"):
        diff(report, replace(report, head={**report.head, "seed": 1}))
    with pytest.raises(ValueError, match="unknown metric speed"):
        diff(report, report, metrics=["speed"])
    with pytest.raises(ValueError, match="share no variant"):
        diff(report, replace(report, results=[]))


def test_the_command_prints_regressions_first_and_exits_with_1(report: Report, tmp_path: Path) -> None:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    report.write(before)
    changed(report, scaled("normwise", 3)).write(after)

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["diff", *arguments], env={"COLUMNS": "80"})
        assert "Traceback" not in done.output
        return done.exit_code, done.output

    code, output = run(str(before), str(after))
    assert code == 1
    assert "3.000" in output
    assert "1 worse, 0 better" in output
    assert run(str(after), str(before))[0] == 0
    assert run(str(before), str(before))[0] == 0
    assert run(str(before), str(after), "--metric", "rms")[0] == 0
    assert run(str(before), str(tmp_path / "none.json"))[0] == 2
    assert run(str(before), str(after), "--metric", "speed")[0] == 2
    assert run(str(before), str(BASELINES / "smollm2-bfloat16.json"))[0] == 2


def test_a_slower_kernel_is_a_regression_on_one_device_only() -> None:
    committed = Report.read(BASELINES / "smollm2-bfloat16.json")

    def slower(result: Result) -> Result:
        assert result.timing is not None
        ratio = 1.2 * result.timing.forward_over_product
        return replace(result, timing=replace(result.timing, forward_over_product=ratio))

    slow = changed(committed, slower)
    assert (first := diff(committed, slow)[0]).metric == "forward_over_product"
    assert first.change is Change.worse
    elsewhere = replace(slow, provenance=replace(slow.provenance, device="another"))
    assert diff(committed, elsewhere)[0].change is Change.same
