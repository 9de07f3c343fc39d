"""The suite as a product: it refuses wrong subjects, says how to come back to a failure, asks what was promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ccelab.properties.families import FAMILIES
from ccelab.properties.promises import PROMISES
from ccelab.properties.spec import Spec
from ccelab.properties.subject import load

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
import wrong_subjects  # type: ignore[import-not-found]  # noqa: E402


def laws(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A run of the suite from another folder, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "--pyargs", "ccelab.properties", "-q", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)


@pytest.mark.parametrize("name", wrong_subjects.EVERY)
def test_a_wrong_subject_fails(name: str, tmp_path: Path) -> None:
    accuracy = "every_output or loss_is_not_negative or reductions_agree"
    done = laws("--subject", f"wrong_subjects:{name}", "-k", accuracy, "-x", folder=tmp_path)
    assert done.returncode == 1, done.stdout[-2000:]
    assert "again: pytest --pyargs ccelab.properties" in done.stdout


def test_a_failure_is_saved_and_replayed(tmp_path: Path) -> None:
    select = ("-k", "every_output", "--subject", "wrong_subjects:flipped_dc", "-x")
    first = laws(*select, folder=tmp_path)
    (saved,) = (tmp_path / ".ccelab/failures").glob("every_output*.json")
    assert str(saved.relative_to(tmp_path)) in first.stdout
    spec = Spec.load(saved)
    assert spec.n * spec.v * spec.d <= 64, f"shrunk to {spec}"
    again = laws(*select, "--replay", str(saved), folder=tmp_path)
    assert again.returncode == 1
    assert "the truth is" in again.stdout
    assert "Flaky" not in again.stdout
    assert str(spec) in again.stdout
    assert "1 law, 1 example" in again.stdout
    right = laws("-k", "every_output", "--variant", "cce", "--replay", str(saved), folder=tmp_path)
    assert right.returncode == 0, right.stdout[-2000:]


def test_who_promises_less_is_asked_less(tmp_path: Path) -> None:
    report = tmp_path / "laws.json"
    select = "one_token or second_run or dbias_is_never or softcap_bounds"
    done = laws("--subject", "torch", "--dtype", "float32", "-k", select, "--law-report", str(report), folder=tmp_path)
    rows = {row["name"]: row for row in json.loads(report.read_text())["laws"]}
    assert rows["a_second_run_repeats_every_bit"]["outcome"] == "not applicable"
    assert "does not promise bit-exact" in rows["a_second_run_repeats_every_bit"]["reason"]
    assert rows["dbias_is_never_filtered"]["outcome"] == "not applicable"
    assert rows["one_token"]["outcome"] == "pass", done.stdout[-3000:]
    assert rows["one_token"]["examples"] > 0
    written = json.loads(report.read_text())
    assert written["subject"] == "torch"
    assert written["complete"]
    assert written["examples"] == sum(row["examples"] for row in written["laws"]) > 0
    assert "interpreter" in written["provenance"]["device"] or written["provenance"]["cuda"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--variant", "cce-fast"), "legal presets"),
        (("--subject", "nobody"), "legal are ours, torch"),
        (("--subject", "math:nothing"), "cannot be loaded"),
        (("--subject", "torch", "--variant", "cce"), "leave --variant out"),
        (("--without", "speed"), "no promise speed"),
        (("--replay", "nowhere.json"), "nowhere.json"),
        (("--hypothesis-profile", "fast"), "quick, standard, exhaustive"),
    ],
)
def test_what_does_not_exist_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = laws(*arguments, "-k", "one_token", folder=tmp_path)
    assert done.returncode == 4
    said = done.stdout + done.stderr
    assert says in said
    assert len(said.splitlines()) < 8, said


def test_promises_must_be_known() -> None:
    wrong_subjects.zero_de.promises = {"speed"}
    try:
        with pytest.raises(ValueError, match="promises speed; known are bit-exact"):
            load("wrong_subjects:zero_de")
    finally:
        wrong_subjects.zero_de.promises = frozenset(PROMISES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 2), (17, 33, 15)], ids=str)
def test_families_have_the_shape_that_is_asked_for(family: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    n, v, d = shape
    spec = Spec(n=n, v=v, d=d, family=family, bias="float32", reduction="none", lse=True, ignored=1, upstream="signed")
    case = spec.case()
    assert case.input.shape == (n, d)
    assert case.linear_weight.shape == (v, d)
    assert case.target.shape == (n,)
    assert int((case.target == -100).sum()) == min(1, n)
    spec.save(tmp_path / "spec.json")
    assert Spec.load(tmp_path / "spec.json") == spec
