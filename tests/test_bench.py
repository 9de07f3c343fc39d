"""`ccelab bench`: who is compared, what is refused before a clock sees it, and what is written and shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from ccelab.kernels import PRESETS
from ccelab.precision import side_by_side as module
from ccelab.precision import table1
from ccelab.precision.bench import Bench, Status
from ccelab.precision.cli import app
from ccelab.precision.cli.bench import _shapes
from ccelab.precision.contestant import Contestant, gather
from ccelab.precision.energy import Energy, Meter
from ccelab.precision.files import to_json
from ccelab.precision.html.page import render
from ccelab.precision.saved import read_saved
from ccelab.precision.shapes import GRID, Shape
from ccelab.precision.side_by_side import side_by_side
from ccelab.precision.subjects import catalogue
from ccelab.precision.timing import Spread
from ccelab.properties.adapters import NAMED
from ccelab.properties.cases import DEVICE
from ccelab.reference.heads import Head, resolve

sys.path.insert(0, str(Path(__file__).parent))
import bench_subjects  # type: ignore[import-not-found]

HEAD = ("--head", "gaussian", "--tokens", "20", "--vocabulary", "100", "--hidden", "24")


def ccelab(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


def words(done: Result) -> str:
    return " ".join(done.output.split())


def fits(done: Result) -> bool:
    """Whether a terminal of 80 columns shows all of it; paths are left whole."""
    lines = [line for line in done.output.splitlines() if not line.startswith("written: ")]
    return max(map(len, lines)) <= 80 and not any("…" in line for line in lines)


def small() -> Head:
    return resolve("gaussian", tokens=20, vocabulary=100, hidden=24, device=DEVICE)


def tiny() -> Head:
    """For what calls every subject many times."""
    return resolve("gaussian", tokens=4, vocabulary=20, hidden=16, device=DEVICE)


def contestant(name: str) -> Contestant:
    (one,) = gather([], [f"bench_subjects:{name}"])
    return one


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands for a GPU's events and allocator, so that all but them is tried; lists what was timed or weighed."""
    seen: list[str] = []

    def pair(product: Callable[[], None], work: Callable[[], None]) -> tuple[float, float]:
        product()
        work()
        seen.append("pair")
        return 2.0, 3.0 + len(seen) / 8

    def peak(work: Callable[[], None], device: torch.device) -> float:
        work()
        seen.append("peak")
        return 3.0

    monkeypatch.setattr(module, "has_clock", lambda device: True)
    monkeypatch.setattr(module, "pair", pair)
    monkeypatch.setattr(module, "peak", peak)
    return seen


def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    subjects = ("--subject", "torch", "--subject", "bench_subjects:right")
    done = ccelab(
        "bench", *HEAD, "--variant", "cce", "--variant", "cce,accumulate=hilo", *subjects, "--out", str(tmp_path)
    )
    assert done.exit_code == 0, done.output
    found = Bench.read(tmp_path / "bench.json")
    assert found.complete
    (place,) = found.places
    assert [row.name for row in place.rows] == ["cce", "cce,accumulate=hilo", "torch", "bench_subjects:right"]
    assert place.shape == "N=20 V=100 D=24"
    for row in place.rows:
        assert row.status is Status.measured
        assert row.errors.keys() == {"loss", "d_embeddings", "d_classifier"}
        assert all(0 <= error < 0.1 for error in row.errors.values())
        assert bool(row.kept) == row.name.startswith("cce")
        assert (row.cost is None) == (DEVICE == "cpu")
        assert row.name.split(",")[0] in done.output
    assert place.rows[2].version == torch.__version__
    if DEVICE == "cpu":
        assert "Times and memory need a GPU" in words(done)
        assert "Times and memory need a GPU" in (tmp_path / "bench.html").read_text()
        assert fits(done)
    shown = ccelab("show", str(tmp_path / "bench.json"), "--html")
    assert shown.exit_code == 0, shown.output
    assert "bench_subjects:right" in shown.output


def test_weights_of_tokens_reach_the_gradients(tmp_path: Path) -> None:
    """A subject that takes its upstream gradients for one number is right where they are, and far off elsewhere."""
    subjects = ("--subject", "bench_subjects:right", "--subject", "bench_subjects:even_gradient")
    errors = {}
    for weighted in ((), ("--weighted",)):
        done = ccelab("bench", *HEAD, *weighted, "--variant", "cce-exact", *subjects, "--out", str(tmp_path))
        assert done.exit_code == 0, done.output
        assert bool(weighted) == ("true weighted mean loss" in words(done))
        assert bool(weighted) == ("true weighted mean loss" in (tmp_path / "bench.html").read_text())
        found = Bench.read(tmp_path / "bench.json")
        assert found.weighted == bool(weighted)
        errors[found.weighted] = [row.errors["d_embeddings"] for row in found.places[0].rows]
    assert errors[False][1] == errors[False][2]
    exact, right, even = errors[True]
    assert max(exact, right) < 0.02 < 0.3 < even


def test_a_mean_is_no_loss_of_every_token() -> None:
    found = side_by_side([small], [contestant("mean")], device=DEVICE, weighted=True)
    ((row,),) = (place.rows for place in found.places)
    assert row.status is Status.refused
    assert row.reason is not None
    assert "no loss for every token" in row.reason


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("zeros", Status.refused, "the mean loss is 0, the truth"),
        ("zero_gradient", Status.refused, "d_classifier is no nearer to the truth than zeros: its error is 1"),
        ("not_finite", Status.refused, "the mean loss is nan"),
        ("per_token", Status.refused, "no single number"),
        ("raises", Status.failed, "KeyError: 'broken"),
        ("unsupported", Status.unsupported, "it takes nothing"),
        ("too_large", Status.out_of_memory, "24.00 GiB"),
    ],
)
def test_what_is_not_timed_is_a_row_with_its_reason(name: str, status: Status, says: str, clock: list[str]) -> None:
    found = side_by_side([small], [contestant(name)], device=DEVICE)
    ((row,),) = (place.rows for place in found.places)
    assert (row.status, row.cost) == (status, None)
    assert row.reason is not None
    assert says in row.reason
    assert "\n" not in row.reason
    assert clock == []
    assert row.reason.split(":")[0] in render(found)


def test_rounds_go_through_all_that_are_right(clock: list[str], tmp_path: Path) -> None:
    bench_subjects.late_failure.calls = 0
    late = contestant("late_failure")
    missing = Contestant(name="missing", call=None, reason="it needs a package")
    rivals = [*gather(["cce-no-filter"], ["torch"]), contestant("zeros"), late, missing]
    path = tmp_path / "bench.json"
    found = side_by_side([tiny, tiny], rivals, device=DEVICE, repetitions=2, path=path)
    first, second = found.places
    states = ["measured", "measured", "refused", "out of memory", "not installed"]
    assert [str(row.status) for row in first.rows] == states
    assert clock.count("pair") == 2 * 2 * 2 * 2  # places, subjects, forward and both, rounds
    for row in (*first.rows[:2], *second.rows[:2]):
        assert row.cost is not None
        assert row.cost.forward_ms.first_quartile <= row.cost.forward_ms.median <= row.cost.forward_ms.third_quartile
        assert row.cost.both_mib - row.cost.beyond_gradients_mib == pytest.approx(first.gradients_mib)
    assert first.product_ms is not None
    assert read_saved(path) == found
    assert to_json(Bench.read(path)) == path.read_text()
    ratio, shape = found.worst("both_over_product")["cce-no-filter"]
    assert shape == "N=4 V=20 D=16"
    assert ratio == max(p.rows[0].cost.both_over_product.median for p in found.places if p.rows[0].cost)
    page = render(found)
    assert page.count("<svg role") == 8  # dE and dC over time and memory, twice
    assert "Worst ratio over all shapes" in page
    shown = ccelab("show", str(path))
    assert "Worst ratio to the product over all shapes" in words(shown)
    assert fits(shown)
    assert "out of memory: bench_subjects:late_failure" in shown.output


class FakeMeter:
    """Of a GPU that takes 2 J for whatever it does."""

    def limit_watts(self) -> float:
        return 700.0

    def measure(self, work: Callable[[], object]) -> Energy:
        work()
        return Energy(joules=2.0, ms=4.0)


def test_energy_is_shown_where_it_was_asked_for(clock: list[str], tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    rivals = [*gather(["cce-no-filter"], ["torch"]), contestant("zeros")]
    found = side_by_side([tiny], rivals, device=DEVICE, repetitions=2, meter=FakeMeter(), path=path)  # type: ignore[arg-type]
    assert [sorted(row.energy) for row in found.places[0].rows] == [["both", "forward"], ["both", "forward"], []]
    assert read_saved(path) == found
    shown = ccelab("show", str(path))
    assert "product 2 J, 500 W" in words(shown)
    assert "The limit is 700 W" in words(shown)
    assert fits(shown)
    assert "at 500 W of 700 W" in " ".join(render(found).split())
    without = side_by_side([tiny], rivals, device=DEVICE, repetitions=2)
    assert "500 W" not in render(without)


@pytest.mark.gpu
def test_a_meter_reads_the_counter() -> None:
    """Of a GPU that may draw 1.5 kW at most, and draws 50 W where it does nothing."""
    pytest.importorskip("pynvml")
    meter = Meter(torch.device("cuda"))
    x = torch.randn(4096, 4096, device="cuda").bfloat16()

    def times(count: int) -> Energy:
        return meter.measure(lambda: [x @ x for _ in range(count)])

    once, thrice = times(1), times(3)
    assert 2 < thrice.joules / once.joules < 4
    assert 50 < once.watts < min(1500.0, 1.2 * meter.limit_watts())


def test_a_gpu_that_is_lost_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(RuntimeError, match=r"raises left the GPU unusable \(KeyError"):
        side_by_side([small], [contestant("raises")], device=DEVICE)


def test_the_papers_table_names_its_rows() -> None:
    rivals = gather(["cce-exact", "cce"], ["torch"], papers=True)
    assert [one.paper for one in rivals[:-1]] == [row.label for row in table1.ROWS]
    assert rivals[-1].name == "cce-exact"
    assert {row.variant for row in table1.ROWS} - {None} == PRESETS.keys() - {"cce-exact", "cce-stored", "cce-segment"}
    assert {row.subject for row in table1.ROWS} - {None} <= NAMED.keys()


def test_a_bench_of_nothing_says_so_to_its_caller(tmp_path: Path) -> None:
    done = ccelab("bench", *HEAD, "--subject", "math:sqrt", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "failed: math:sqrt" in words(done)
    assert Bench.read(tmp_path / "bench.json").complete


def test_a_subject_that_is_not_installed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccelab.precision.subjects.find_spec", lambda name: None)
    (one,) = gather([], ["quack"])
    ((row,),) = (place.rows for place in side_by_side([small], [one], device=DEVICE).places)
    assert row.status is Status.not_installed
    assert "pip install" in (row.reason or "")


def test_adapters_are_found_by_their_entry_point() -> None:
    assert NAMED.items() <= catalogue().items()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--subject", "fast"), "legal are torch, torch-compile"),
        (("--subject", "bench_subjects:none"), "cannot be loaded"),
        (("--subject", "bench_subjects:number"), "cannot be called"),
        (("--variant", "cce-fast"), "legal presets"),
        (("--shape", "1,2"), "legal is N,V,D"),
        (("--shape", "1,2,0"), "legal is N,V,D"),
        (("--shape", "8,16,8", "--tokens", "4"), "by --shape, or by --grid"),
        pytest.param(("--energy",), "needs a GPU", marks=pytest.mark.skipif(DEVICE == "cuda", reason="there is one")),
        pytest.param(("--grid",), "needs a GPU", marks=pytest.mark.skipif(DEVICE == "cuda", reason="there is one")),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = ccelab("bench", "--head", "gaussian", *arguments, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert says in words(done)
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_shapes_are_measured_in_turn(tmp_path: Path) -> None:
    shapes = ("--shape", "4,40,16", "--shape", "8,30,16")
    done = ccelab("bench", "--head", "gaussian", *shapes, "--subject", "torch", "--no-html", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert [place.shape for place in Bench.read(tmp_path / "bench.json").places] == ["N=4 V=40 D=16", "N=8 V=30 D=16"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]


def test_the_papers_table_is_of_the_papers_shape() -> None:
    def shapes(head: str, papers: bool) -> list[Shape]:
        return _shapes("cuda", head, Shape(0), [], False, papers=papers)

    assert shapes(table1.HEAD, True) == [table1.SHAPE] == [Shape(8192, 256000, 2304)]
    assert shapes("real", True) == shapes(table1.HEAD, False) == [Shape(8192)]
    assert _shapes("cuda", table1.HEAD, Shape(64, hidden=128), [], False, papers=True) == [Shape(64, 256000, 128)]


def test_the_grid_is_wide_enough() -> None:
    assert len(set(GRID)) >= 20
    assert Shape.parse("8192,256000,2304") in GRID


def test_a_spread_is_a_median_with_quartiles() -> None:
    found = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (found.first_quartile, found.median, found.third_quartile) == (2.0, 3.0, 4.0)
