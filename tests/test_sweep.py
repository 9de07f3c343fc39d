"""Sweeps: axes as they are written, an interruption that loses nothing, and files that are not gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ccelab.precision import sweep as module
from ccelab.precision.axes import Axis, written
from ccelab.precision.cli import app
from ccelab.precision.sweep import Point, Settings, Sweep, sweep

SETTINGS = ("--head", "gaussian", "--tokens", "20", "--vocabulary", "300", "--hidden", "24", "--workers", "1")


def ccelab(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *arguments], env={"COLUMNS": "80"})


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("eps=2^-8:2^-11", [2.0**-8, 2.0**-9, 2.0**-10, 2.0**-11]),
        ("eps=2^-12,0.5", [2.0**-12, 0.5]),
        ("tokens=16:100", [16, 32, 64]),
        ("block=16:256:4", [16, 64, 256]),
        ("scale=4:1", [4, 2, 1]),
    ],
)
def test_axes_are_read(text: str, values: list[float]) -> None:
    axis = Axis.parse(text)
    assert list(axis.values) == values
    assert Axis.parse(f"{axis.name}={','.join(written(axis.name, value) for value in values)}") == axis


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed=1", "legal axes"),
        ("eps", "legal axes"),
        ("eps=a:b", "not a number"),
        ("eps=0:1", "not a positive"),
        ("eps=1:2:3:4", "is no range"),
        ("eps=1:2:1", "is no range"),
        ("eps=2^-200:1", "the most is"),
        ("tokens=1.5", "not whole"),
        ("tokens=4:6", "has one value, 4: 6 is less than a step"),
        ("tokens=4:3", "has one value, 4"),
        ("eps=1,1", "twice"),
    ],
)
def test_axes_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Axis.parse(text)


def test_a_sweep_measures_every_combination(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    axes = ("--axis", "eps=2^-4,2^-12", "--axis", "block=16,32", "--axis", "scale=1")
    done = ccelab(*axes, "--variant", "cce-kahan", "--variant", "cce", *SETTINGS, "--out", str(out))
    assert done.exit_code == 0, done.output
    found = Sweep.read(out)
    assert found.complete
    assert [point.values for point in found.points] == list(found.grid())
    assert [point.tiles["d_embeddings"] for point in found.points] == [19, 10, 19, 10]
    for point in found.points:
        assert [result.variant for result in point.results] == ["cce-kahan", "cce"]
        assert all(result.over_budget <= 1 for result in point.results)
    assert found.points[0].results[0].kept["d_embeddings"] < found.points[2].results[0].kept["d_embeddings"]
    assert out.with_suffix(".html").is_file()
    assert "2^-4" in done.output


def test_an_interruption_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "sweep.json"
    measured: list[dict[str, float]] = []
    measure = module._point

    def interrupted(settings: Settings, values: dict[str, float], commit: str | None, workers: int) -> Point:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(values)
        return measure(settings, values, commit, workers)

    monkeypatch.setattr(module, "_point", interrupted)
    command = ("--axis", "scale=1,2,4,8", "--variant", "cce", *SETTINGS, "--out", str(out))
    stopped = ccelab(*command)
    assert stopped.exit_code == 130
    assert "goes on from there" in " ".join(stopped.output.split())
    assert [point.values["scale"] for point in Sweep.read(out).points] == [1, 2]
    assert not Sweep.read(out).complete
    first = json.loads(out.read_text())["points"][:2]
    measured.clear()

    def counted(settings: Settings, values: dict[str, float], commit: str | None, workers: int) -> Point:
        measured.append(values)
        return measure(settings, values, commit, workers)

    monkeypatch.setattr(module, "_point", counted)
    resumed = ccelab(*command)
    assert resumed.exit_code == 0
    assert f"2 of 4 points are in {out} already" in resumed.output
    assert [values["scale"] for values in measured] == [4, 8]
    assert Sweep.read(out).complete
    assert json.loads(out.read_text())["points"][:2] == first
    measured.clear()
    finished = ccelab(*command)
    assert finished.exit_code == 0
    assert f"4 of 4 points are in {out} already" in finished.output
    assert measured == []


def test_a_file_of_other_settings_is_refused_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    command = ("--axis", "scale=1", "--variant", "cce", *SETTINGS, "--out", str(out))
    assert ccelab(*command).exit_code == 0
    before = out.read_bytes()
    for other in (("--seed", "1"), ("--axis", "block=16"), ("--variant", "cce-exact"), ("--softcap", "5")):
        refused = ccelab(*command, *other)
        assert refused.exit_code == 2, other
        assert "sweep of other settings" in " ".join(refused.output.split())
    out_text = tmp_path / "text.json"
    out_text.write_text("[]")
    assert ccelab(*command[:-1], str(out_text)).exit_code == 2
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--axis", "eps=2^-8", "--variant", "cce-exact"), "filters nothing"),
        (("--axis", "scale=1", "--axis", "scale=2"), "every axis once"),
        (("--axis", "tokens=16", "--tokens", "8"), "leave --tokens out"),
        (("--axis", "hidden=40:30"), "less than a step"),
        (("--axis", "speed=1"), "legal axes"),
        (("--axis", "block=24"), "power of two"),
        (("--axis", "eps=2^-8", "--variant", "fast"), "legal presets"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = ccelab(*arguments, *SETTINGS, "--out", str(tmp_path / "sweep.json"))
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


def test_the_library_takes_the_same(tmp_path: Path) -> None:
    settings = Settings(head="gaussian", variants=("cce",), tokens=8, vocabulary=40, hidden=16)
    steps: list[int] = []
    found = sweep(
        settings, [Axis("tokens", (4, 8))], tmp_path / "s.json", progress=lambda done, of, step: steps.append(done)
    )
    assert [point.tiles["d_classifier"] for point in found.points] == [1, 1]
    assert steps == [0, 1, 2]
