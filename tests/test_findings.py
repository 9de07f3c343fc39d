"""The page of what peers break is what its generator makes of the committed reports; its commands repeat it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ccelab.properties import catalogue
from ccelab.properties.adapters import NAMED
from ccelab.properties.causes import CAUSES, PEERS
from ccelab.properties.evidence import Evidence, Row, add, counts, name_of, on_gpu, plain
from ccelab.properties.findings import FOLDER, cause_of, command, evidence, findings, page, tried
from ccelab.properties.predictions import OURS, PREDICTED
from ccelab.properties.spec import Spec

ROOT = Path(__file__).parent.parent
REPORTS = evidence()
LAWS = catalogue.by_name().keys()
FAILURES = [(name, one, row) for name, one in REPORTS.items() for row in one["laws"]]


def test_the_page_is_what_the_reports_say() -> None:
    assert (ROOT / "precision" / "FINDINGS.md").read_text() == page(), "python -m ccelab.properties.findings …"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_a_report_is_strict_json_without_paths_of_a_machine(path: Path) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    text = path.read_text()
    one = json.loads(text, parse_constant=refuse)
    assert path.stem == name_of(one)
    assert not re.search(r"/(work|tmp|home|root)/|0x[0-9a-f]{9,}", text)


def test_ten_defects_of_known_cause_are_reproduced() -> None:
    known = [one for members in findings(REPORTS).values() for one in members if one.cause and not one.cause.by_design]
    assert len(known) >= 10, [one.title for one in known]


@pytest.mark.parametrize(("name", "one", "row"), FAILURES, ids=[f"{n}-{row['name']}" for n, _, row in FAILURES])
def test_a_command_names_a_law_a_subject_and_an_example(name: str, one: Evidence, row: Row) -> None:
    words = shlex.split(command(name, one, row))
    assert words[words.index("-k") + 1].removeprefix("test_") in LAWS
    assert words[words.index("--subject") + 1] in NAMED
    if row["failure"]:
        assert Spec.example(ROOT / words[words.index("--replay") + 1], row["name"]) is not None


def test_causes_and_predictions_name_laws_and_subjects() -> None:
    assert {subject for cause in CAUSES for subject in cause.subjects} <= PEERS.keys()
    assert PEERS.keys() == NAMED.keys()
    assert {law for cause in CAUSES for law in cause.laws} - {"*"} <= LAWS
    assert {one.law for one in PREDICTED} - {None} <= LAWS
    assert {one.subject for one in PREDICTED} - {""} <= PEERS.keys()
    assert {law for _, law, _ in OURS} <= LAWS | {"several, of accumulation"}


def test_every_cause_has_a_failure_or_is_predicted() -> None:
    seen = {(PEERS[one["subject"]], cause.title) for _, one, row in FAILURES if (cause := cause_of(one, row))}
    predicted = {(PEERS[one.subject], one.title) for one in PREDICTED if one.subject}
    assert {(PEERS[cause.subjects[0]], cause.title) for cause in CAUSES} <= seen | predicted


def test_a_finding_is_repeated_by_its_command(tmp_path: Path) -> None:
    """F.linear in bf16 rounds the logits: no peer's package is needed for that."""
    mine = (f for f in FAILURES if f[1]["subject"] == "torch" and f[2]["name"] == "one_token")
    (name, one, row) = next(failure for failure in mine if not on_gpu(failure[1]))
    words = shlex.split(command(name, one, row))
    words[words.index("--replay") + 1] = str(FOLDER / name)
    done = subprocess.run(
        [sys.executable, "-m", *words, "-p", "no:cacheprovider"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1, done.stdout
    assert "1 failed" in done.stdout
    found, _, _ = row["failure"]["message"].partition(", allowed ")  # budgets become sharper
    assert found in done.stdout


def on_an_h100(subject: str, version: str, dtype: str, *rows: Row) -> dict[str, Any]:
    """A law report as a run there writes it."""
    provenance = dict.fromkeys(("time", "ccelab", "commit", "python", "torch", "triton", "machine"), "")
    return {
        "subject": subject,
        "peer version": version,
        "without": [],
        "dtypes": [dtype],
        "complete": False,
        "provenance": provenance | {"device": "NVIDIA H100 80GB HBM3, Triton 3.6.0"},
        "laws": list(rows),
    }


def test_what_hardware_shows_is_confirmed_and_no_longer_predicted(tmp_path: Path) -> None:
    wrong = "loss[0] is 1.0 (0x3f80), the truth is 2.0: off by 1.000e+00, allowed 1.000e-01; 1 of 1 elements are over"
    failed = law_row("every_output_is_within_its_budget", "fail", wrong, 10.0)
    failed["failure"]["spec"] = asdict(Spec())
    passed = law_row("nan_in_an_ignored_row_goes_nowhere", "pass")
    report = on_an_h100("quack", "0.6.5", "bfloat16", failed, passed)
    (tmp_path / "report.json").write_text(json.dumps(report))
    add(tmp_path / "found", [tmp_path / "report.json"])
    reports = {path.name: json.loads(path.read_text()) for path in (tmp_path / "found").iterdir()}
    assert list(reports) == ["quack-0.6.5-bfloat16-cuda.json"]
    by_law = {one.law: one for one in PREDICTED if one.subject == "quack" and one.dtype == "bfloat16"}
    device = ["NVIDIA H100 80GB HBM3"]
    assert tried(by_law["every_output_is_within_its_budget"], reports) == (device, [])
    assert tried(by_law["nan_in_an_ignored_row_goes_nowhere"], reports) == ([], device)
    text = page(tmp_path / "found")
    confirmed = text.partition("## Confirmed on hardware")[2].partition("## Confirmed in Triton's")[0]
    assert "Logits and their gradients are kept in the input's dtype (by design)" in confirmed
    assert "--device cuda --subject quack -k test_every_output_is_within_its_budget --replay" in confirmed
    told = text.partition("## Predicted only")[2]
    assert "The law passed on NVIDIA H100 80GB HBM3." in told
    assert "quack 0.6.5: Logits and their gradients" not in told


def law_row(name: str, outcome: str, message: str = "", closest: float = 0.0) -> dict[str, Any]:
    spec = {"dtype": "float32"}
    failure = {"spec": spec, "message": message} if outcome == "fail" else None
    seen = {"examples": 5, "closest": closest, "failure": failure, "reason": ""}
    return {"name": name, "variant": "cce-exact", "outcome": outcome, **seen}


def test_parts_of_a_judgement_are_merged(tmp_path: Path) -> None:
    head = {
        "subject": "liger",
        "peer version": "0.8.5",
        "without": ["softcap"],
        "dtypes": ["float32"],
        "complete": True,
        "provenance": dict.fromkeys(("time", "ccelab", "commit", "python", "torch", "triton", "machine"), "")
        | {"device": "Triton interpreter on the CPU", "command": "pytest /somewhere"},
    }
    parts = (
        [law_row("a", "pass"), law_row("b", "not applicable")],
        [law_row("b", "fail", "wrong\n +  where tensor at 0x7f8236", float("inf"))],
    )
    for number, laws in enumerate(parts):
        (tmp_path / f"{number}.json").write_text(json.dumps({**head, "laws": laws}))
    add(tmp_path / "found", [tmp_path / "0.json", tmp_path / "1.json"])
    (path,) = (tmp_path / "found").iterdir()
    one = json.loads(path.read_text())
    assert path.name == "liger-0.8.5-float32-cpu-without-softcap.json"
    assert counts(one) == {"passed": 1, "broken": 1, "not applicable": 0}
    assert (one["laws"][0]["closest"], one["laws"][0]["failure"]["message"]) == ("inf", "wrong")
    assert "command" not in one["provenance"]


def test_parts_on_our_own_kernels_add_up(tmp_path: Path) -> None:
    head = {
        "subject": "ours",
        "peer version": None,
        "without": [],
        "dtypes": ["bfloat16"],
        "complete": True,
        "provenance": dict.fromkeys(("time", "ccelab", "commit", "python", "torch", "triton", "machine"), "")
        | {"device": "Triton interpreter on the CPU", "command": "pytest properties --hypothesis-profile=exhaustive"},
    }
    rows = [law_row("a", "pass"), law_row("b", "not applicable")]
    for variant in ("cce-exact", "cce", "cce-exact"):
        laws = [{**row, "variant": variant} for row in rows]
        (tmp_path / f"{variant}.json").write_text(json.dumps({**head, "variants": [variant], "laws": laws}))
        add(tmp_path / "found", [tmp_path / f"{variant}.json"])
    found = json.loads((tmp_path / "found" / "ours-bfloat16-cpu.json").read_text())
    assert found["variants"] == ["cce-exact", "cce"]
    assert found["profile"] == "exhaustive"
    assert [(row["name"], row["variant"]) for row in found["laws"]] == [("a", "cce"), ("a", "cce-exact")]
    assert found["examples"] == sum(row["examples"] for row in found["laws"]) > 0
    (tmp_path / "broken.json").write_text(
        json.dumps({**head, "variants": ["cce"], "laws": [law_row("a", "fail", "wrong", 2.0)]})
    )
    with pytest.raises(ValueError, match="our own kernels break a"):
        add(tmp_path / "found", [tmp_path / "broken.json"])


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("loss is 1\nassert not tensor(True)\n +  where tensor(True) = <built-in method at 0x7f>()", "loss is 1"),
        ("assert False\n +  where False = bool()", "assert False"),
        ("no kernel in /tmp/peers/kernel.py: 1/2 of them", "no kernel in kernel.py: 1/2 of them"),
        ("", ""),
    ],
)
def test_what_pytest_adds_to_a_message_is_left_out(message: str, kept: str) -> None:
    assert plain(message) == kept
