"""The page of a report: whole, of itself, readable without a network; and opened in a browser where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccelab.kernels import Variant
from ccelab.precision.adder_study import AdderStudy, adder_study
from ccelab.precision.cli import app
from ccelab.precision.html import write_page
from ccelab.precision.html.contents import sections
from ccelab.precision.html.page import render
from ccelab.precision.laboratory import build_report
from ccelab.precision.markdown import BASELINES
from ccelab.precision.report import Report, Result
from ccelab.precision.stage_table import StageRow, StageTable
from ccelab.precision.study import STUDIES
from ccelab.reference.heads import resolve

VARIANTS = ("cce", "cce-exact", "cce-no-filter,accumulate=hilo")
PAGES = (
    "verdict", "stages", "survival", "heat", "condition", "filter", "granularity", "extremes", "tiles", "adders",
    "schedules", "cost", "exhaustive", "worst", "loss", "deviations", "provenance",
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> Report:
    """With stages as a budget and an attribution would give them."""
    variants = [Variant.parse(name) for name in VARIANTS]
    made = build_report(resolve("gaussian", tokens=20, vocabulary=100, hidden=24), variants, command="ccelab report")
    rows = [
        StageRow(stage="dot_logits", predicted=1e-3, measured=1e-5, share=0.1),
        StageRow(stage="is_live", predicted=0.0, measured=0.0, share=0.0),
        StageRow(stage="cast_output", predicted=2e-3, measured=1e-3, share=0.9),
    ]
    table = StageTable(rows=rows, machine="hopper", explained=0.98, residue=1e-6)
    stages = {"d_embeddings": table, "d_classifier": table}
    return replace(made, results=[replace(result, stages=stages) for result in made.results])


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render(report)


class Parts(HTMLParser):
    """What a test asks of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                self.links.append(value or "")
        if tag not in ("meta", "link", "br", "input", "path", "use", "image", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_the_page_asks_for_nothing(page: str) -> None:
    parts = Parts(page)
    assert all(link.startswith(("#", "data:")) for link in parts.links), [x for x in parts.links if x[0] not in "#d"]
    assert not re.search(r"https?://|@import|\bfetch\(|XMLHttpRequest", page)
    assert {"iframe", "object", "embed"}.isdisjoint(parts.tags)
    assert len(page) < 3e6


def test_every_page_and_every_variant_is_there(page: str, report: Report) -> None:
    parts = Parts(page)
    assert set(PAGES) <= set(parts.ids)
    assert [f"#{section.slug}" for section in sections(report)] == [x for x in parts.links if x[1:] in PAGES][:-1]
    assert len(parts.ids) == len(set(parts.ids))
    for result in report.results:
        assert page.count(f'data-variant="{result.variant}"') == 4
        assert f"ccelab report --variant {result.variant}" in page
    assert page.count("How to read this.") >= 12


def test_every_reference_within_the_page_is_met(page: str) -> None:
    parts = Parts(page)
    wanted = {link[1:] for link in parts.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(parts.ids)


def test_figures_take_the_colours_of_the_page(page: str) -> None:
    assert not re.search(r"#0[0-9a][0-9a-f]{4}\b", page)
    used = set(re.findall(r"var\(--([\w-]+)\)", page))
    defined = set(re.findall(r"--([\w-]+):", page))
    assert used <= defined
    assert "prefers-color-scheme: dark" in page


def test_what_the_input_says_is_text() -> None:
    made = build_report(resolve("gaussian", tokens=8, vocabulary=40, hidden=16), [Variant.parse("cce")])
    odd = replace(made, head={**made.head, "name": "<script>alert(1)</script>"})
    assert "<script>alert" not in render(odd)


def test_a_report_of_schema_1_has_its_page(tmp_path: Path) -> None:
    """What such a report does not hold is said to be missing: everything of a result that has a default."""
    committed = json.loads((BASELINES / "smollm2-bfloat16.json").read_text())
    had = {f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING}
    old = [{name: value for name, value in result.items() if name in had} for result in committed["results"]]
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**committed, "schema": 1, "results": old}))
    committed = Report.read(path)
    assert committed.schema == 1
    text = render(committed)
    assert "not judged" in text
    assert text.count("of an older schema") >= 3
    assert set(PAGES) <= set(Parts(text).ids)


def test_one_class_and_one_token_have_a_page() -> None:
    """Loss and gradients are exactly 0: curves of errors have no point to show."""
    head = resolve("gaussian", tokens=1, vocabulary=1, hidden=1)
    assert "<svg" in render(build_report(head, [Variant.parse("cce")], by_stage=False))


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    def without_serials(text: str) -> str:
        return re.sub(r"\bp\d+-", "p-", text)

    assert without_serials(render(report)) == without_serials(render(report))


def test_the_committed_studies_are_shown_and_complete() -> None:
    for path in sorted(STUDIES.glob("*.json")):
        found = json.loads(path.read_text())
        assert found.get("complete", True), path
        assert found["provenance"]["commit"], path
        done = CliRunner().invoke(app, ["show", str(path)], env={"COLUMNS": "100"})
        assert done.exit_code == 0, done.output
    everywhere = {"exhaustive-cpu.json", "filtering.json", "schedules.json", "tiles.json"}
    assert everywhere <= {path.name for path in STUDIES.glob("*.json")}


def test_a_study_of_adders_is_drawn(shown: Callable[[AdderStudy], tuple[str, str]]) -> None:
    study = adder_study(lambda machine, a, b: (a.double() @ b.double()).float(), ["exact"], lengths=(16, 32), draws=4)
    assert all(abs(point.bias) <= 1 and point.largest <= 1 for point in study.points)
    _, page = shown(study)
    assert "positive terms: bias" in page


def test_show_prints_and_writes_the_page_again(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write(path)
    done = CliRunner().invoke(app, ["show", str(path)], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert all(flag in done.output for name in VARIANTS for flag in name.split(","))
    assert not path.with_suffix(".html").exists()
    assert CliRunner().invoke(app, ["show", str(path), "--html"]).exit_code == 0
    assert "<!doctype html>" in path.with_suffix(".html").read_text()


def test_show_says_what_it_cannot_read(tmp_path: Path) -> None:
    laws = STUDIES.parent / "laws" / "ours-bfloat16-h100.json"
    done = CliRunner().invoke(app, ["show", str(laws)])
    assert done.exit_code == 0
    assert "tokens_do_not_see_each_other" in done.output
    (tmp_path / "x.json").write_text("{}")
    for arguments in ([str(laws), "--html"], [str(tmp_path / "none.json")], [str(tmp_path / "x.json")]):
        wrong = CliRunner().invoke(app, ["show", *arguments])
        assert wrong.exit_code == 2
        assert "Traceback" not in wrong.output


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """
<script>
addEventListener("load", () => {
  const boxes = [...document.querySelectorAll("figure:not([hidden]) .panel svg")];
  const empty = boxes.filter(svg => svg.getBoundingClientRect().height < 50 || svg.querySelectorAll("path").length < 3);
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const hidden = document.querySelectorAll("figure[hidden]").length;
  document.body.dataset.seen = [boxes.length, empty.length, wide, hidden].join(" ");
});
</script>
"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_draws_every_figure_and_complains_of_nothing(report: Report, width: int, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        reason = f"none of {', '.join(BROWSERS)} is installed"
        if os.environ.get("CCELAB_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    path = tmp_path / "report.html"
    write_page(report, path)
    path.write_text(path.read_text().replace("</body>", f"{PROBE}</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    seen = re.search(r'data-seen="(\d+) (\d+) (-?\d+) (\d+)"', done.stdout)
    assert seen, "the page's scripts did not run"
    figures, empty, overhang, hidden = map(int, seen.groups())
    assert figures >= 14
    assert empty == 0
    assert overhang <= 0, "the page is wider than its window"
    assert hidden == 4 * (len(VARIANTS) - 1), "the figures of one variant at a time"
