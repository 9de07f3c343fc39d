"""The `ccelab` command: what it prints, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ccelab.kernels import PRESETS, Schedule, Statistics, Variant
from ccelab.precision import laboratory
from ccelab.precision.call import run
from ccelab.precision.cli import app
from ccelab.precision.report import Report
from ccelab.properties.cases import DEVICE
from ccelab.reference import Problem, Solution
from ccelab.reference.heads import resolve

GAUSSIAN = ("--head", "gaussian", "--tokens", "20", "--vocabulary", "300", "--hidden", "40")


def ccelab(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def test_variants_lists_presets_and_fields() -> None:
    done = ccelab("variants")
    assert done.exit_code == 0
    for name in (*PRESETS, "filter_e", "accumulate", "storage | kahan | hilo | fp32", "eps"):
        assert name in done.output
    assert max(map(len, done.output.splitlines())) <= 80


def test_report_measures_and_writes(tmp_path: Path) -> None:
    done = ccelab(
        "report", *GAUSSIAN, "--variant", "cce", "--variant", "cce-exact,accumulate=hilo", "--out", str(tmp_path)
    )
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80 or DEVICE == "cuda"
    report = Report.read(tmp_path / "report.json")
    assert report.complete
    assert [r.variant for r in report.results] == ["cce", str(Variant.parse("cce-exact,accumulate=hilo"))]
    assert (report.head["tokens"], report.head["vocabulary"]) == (20, 300)
    for result in report.results:
        assert result.within_budget
        assert all(flag in done.output for flag in result.variant.split(","))
        assert set(result.outputs) == {"loss", "lse", "d_embeddings", "d_classifier"}
        assert result.verdict is not None
        assert result.reproduce is not None
        assert result.reproduce.endswith(f"--variant {result.variant}")
        assert f"{result.verdict.grade}: {result.variant}" in " ".join(done.output.split())
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html"}


def test_report_measures_the_bias_gradient(tmp_path: Path) -> None:
    options = ("--bias", "--softcap", "30", "--variant", "cce", "--out", str(tmp_path), "--dtype", "float16")
    done = ccelab("report", *GAUSSIAN, *options)
    assert done.exit_code == 0, done.output
    (result,) = Report.read(tmp_path / "report.json").results
    assert result.outputs["d_bias"].elements == 300
    for words in ("softcap 30.0", "with a bias", "  db "):
        assert words in done.output
    assert max(map(len, done.output.splitlines())) <= 80 or DEVICE == "cuda"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--variant", "cce-fast"), "cce-kahan-full-c"),
        (("--variant", "cce,accumulate=bf16"), "kahan"),
        (("--head", "planted:llama"), "gemma-alpaca"),
        (("--head", "missing.safetensors"), "legal are real"),
        (("--head", "gaussian", "--text", "README.md"), "a text is for the real head"),
        (("--head", "planted:gemma-web", "--hidden", "8"), "at least 64"),
        (("--dtype", "bf8"), "bfloat16"),
        (("--variant", "cce,[/x]"), "[/x]"),
        (("--variant", "cce,eps=0^-1"), "not a threshold"),
        (("--variant", "cce,eps=1,eps=2"), "set twice"),
        (("--head", "gaussian", "--vocabulary", "9", "--softcap", "0"), "positive, finite"),
        (("--tokens", "0"), "--tokens"),
    ],
)
def test_what_is_wrong_is_said(arguments: Sequence[str], says: str, tmp_path: Path) -> None:
    done = ccelab("report", "--tokens", "4", *arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = ccelab("report", *GAUSSIAN, "--out", str(tmp_path / "file"))
    assert done.exit_code == 2
    assert "is a file, where a folder is needed" in " ".join(done.output.split())
    assert ccelab("report", *GAUSSIAN, "--out", str(tmp_path / "file" / "below")).exit_code == 2


def test_a_text_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xff\xfe\x00")
    for text, says in ((tmp_path / "text", "is not UTF-8"), (tmp_path, "is a folder, not a file")):
        done = ccelab("report", "--text", str(text), "--out", str(tmp_path / "out"))
        assert done.exit_code == 2
        assert says in " ".join(done.output.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    done = ccelab("report", "--device", "cuda")
    assert done.exit_code == 2
    assert "no GPU" in done.output


def test_an_exceeded_budget_is_an_error_for_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(problem: Problem, variant: Variant, schedule: Schedule) -> tuple[Solution, Statistics]:
        solution, stats = run(problem, variant, schedule)
        assert solution.d_classifier is not None
        return replace(solution, d_classifier=2 * solution.d_classifier), stats

    monkeypatch.setattr(laboratory, "run", doubled)
    done = ccelab("report", *GAUSSIAN, "--variant", "cce-exact", "--out", str(tmp_path), "--workers", "1")
    assert done.exit_code == 1
    assert "OVER" in done.output
    (result,) = Report.read(tmp_path / "report.json").results
    assert not result.within_budget
    assert result.outputs["d_classifier"].over_budget is not None
    assert result.outputs["d_classifier"].over_budget > 1


@pytest.mark.skipif(DEVICE == "cuda", reason="several workers are for CPUs")
def test_workers_change_nothing() -> None:
    """But for the threads that each leaves to the others: float64 is added up by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    head = resolve("gaussian", tokens=20, vocabulary=300, hidden=40)
    variants = list(PRESETS.values())[:3]
    try:
        alone, shared = (laboratory.build_report(head, variants, workers=n) for n in (1, 2))
    finally:
        torch.set_num_threads(threads)
    assert alone.results == shared.results


@pytest.mark.skipif(DEVICE == "cuda", reason="timed for the interpreter")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interruption_keeps_what_was_measured(workers: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from ccelab.precision.cli import app; app()", "report", "--head", "gaussian"]
    command += ["--tokens", "64", "--vocabulary", "3000", "--hidden", "300", "--variant", "every"]
    process = subprocess.Popen(
        [*command, "--workers", workers, "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a group of its own, which gets the signal as from a terminal,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # and which a shell's background job ignores
    )
    path = tmp_path / "report.json"
    try:
        deadline = time.monotonic() + 120
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, output
    assert "stopped" in output
    assert "Traceback" not in output
    report = Report.read(path)
    assert report.results
    assert not report.complete
    assert list(tmp_path.iterdir()) == [path]
    deadline = time.monotonic() + 20
    while (left := running(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def running(group: int) -> list[str]:
    """Processes of a group, but for the dead whom nobody has buried."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # gone meanwhile
            state, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of) == group and state != "Z":
                found.append(stat.parent.name)
    return found
