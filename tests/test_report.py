"""Reports as files: what is written is read back, whole or not at all, and the README shows what is committed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from ccelab.kernels import Variant
from ccelab.precision import markdown
from ccelab.precision.laboratory import build_report
from ccelab.precision.lessons import report_by_tile
from ccelab.precision.report import SCHEMA, Report
from ccelab.reference.heads import resolve

README = Path(__file__).parent.parent / "README.md"
COMMITTED = sorted(markdown.BASELINES.glob("*.json"))


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(resolve("gaussian", tokens=20, vocabulary=100, hidden=24), [Variant.parse("cce")])


def test_a_report_is_read_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    report.write(path)
    assert Report.read(path) == report


def test_json_has_no_nan_literals(report: Report, tmp_path: Path) -> None:
    odd = replace(report, true_mean_loss=math.inf)
    path = tmp_path / "report.json"
    odd.write(path)
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["true_mean_loss"] == "inf"
    assert Report.read(path).true_mean_loss == math.inf


def test_a_failed_write_leaves_the_old_file(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        replace(report, head={"name": object()}).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ('{"schema": 0}', "make the report again"),
        (f'{{"schema": {SCHEMA}}}', "not a report: head: field required; .*; and 1 more"),
    ],
)
def test_what_is_no_report_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        Report.read(path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_reports_are_complete_and_within_budget(path: Path) -> None:
    report = Report.read(path)
    assert report.complete
    assert all(result.within_budget for result in report.results)
    assert all(result.timing for result in report.results)
    assert report.provenance.commit
    assert not report.provenance.commit.endswith("+"), "measured on uncommitted changes"


def test_committed_reports_reach_what_they_must() -> None:
    """Errors against two roundings, the mean loss, and the forward pass at the paper's shape."""
    for name in markdown.SHOWN:
        path = markdown.BASELINES / f"{name}.json"
        report, tiles = Report.read(path), Report.read(report_by_tile(path))
        limits: list[tuple[Report, str, float]] = [
            (report, "cce-exact", 1.1),
            (tiles, "cce-no-filter,accumulate=hilo,increment=tile", 1.2),
            (tiles, "cce-no-filter,accumulate=kahan,increment=tile", 2.0),
        ]
        for of, variant, limit in limits:
            for output in ("d_embeddings", "d_classifier"):
                assert (of.over_floor(of.result(variant), output) or math.inf) <= limit
        for variant, output in (("cce-kahan-full-c", "d_classifier"), ("cce-kahan-full-e", "d_embeddings")):
            assert (report.over_floor(report.result(variant), output) or math.inf) <= 2.0
        for result in report.results:
            assert abs(result.mean_loss_error) <= 1e-5
            assert abs(result.mean_loss_error_own_logits) <= 1e-6
            assert result.timing is not None
            assert result.timing.forward_mib <= 1
            assert report.head["vocabulary"] < 256000 or result.timing.forward_over_product <= 1.10


def test_the_readme_shows_the_committed_reports() -> None:
    """`make readme` renews them."""
    text = README.read_text()
    assert markdown.renew(text) == text


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the text needs a line .*gemma-alpaca"):
        markdown.renew("no tables here")
