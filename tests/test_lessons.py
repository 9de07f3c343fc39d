"""What FINDINGS.md and the README say in words is so in the committed reports."""

from __future__ import annotations

from ccelab.kernels import PRESETS
from ccelab.precision import markdown
from ccelab.precision.bench import Bench
from ccelab.precision.frontier import FAMILIES, POWERS, C, E, frontier, is_peer, points
from ccelab.precision.granularity_study import ENTRIES, SEGMENTS, WORDS, GranularityStudy
from ccelab.precision.lessons import (
    BENCHED,
    CAPPED,
    FRONTIER,
    HERE,
    LIFTED,
    LONG,
    NARROW,
    PAPER,
    REAL,
    TILE,
    TILES,
    UNSURE,
    VARIED,
    WEB,
    WEIGHTED,
    lessons,
)
from ccelab.precision.plot_stages import draw
from ccelab.precision.report import Report
from ccelab.precision.sweep import Sweep

PAIR = (Report.read(PAPER), Report.read(REAL))
BY_TILE = tuple(Report.read(path) for path in TILES)
STAGED = Report.read(REAL)


def over_floor(report: Report, name: str, output: str = E) -> float:
    return report.result(name).outputs[output].normwise / report.floors[output].two_roundings


def test_stages_explain_what_is_said() -> None:
    for result in STAGED.results:
        assert set(result.stages) == {"loss", "lse", E, C}
        for output, table in result.stages.items():
            assert table.explained is not None
            assert table.explained >= 0.9, (result.variant, output)  # what the emulation must reach
            measured = [row for row in table.rows if row.measured is not None]
            assert abs(sum(row.share or 0.0 for row in measured) - 1) < 1e-6
            before = 0.0
            for row in measured:
                # The filter drops residuals with the errors of the stages before it; its bound is of the truth's.
                allowed = None if row.predicted is None else row.predicted + (before if row.stage == "is_live" else 0.0)
                assert allowed is None or (row.measured or 0.0) <= allowed, (result.variant, output, row)
                before += row.predicted or 0.0
    kahan = {row.stage: row.share or 0.0 for row in STAGED.result("cce-kahan").stages[E].rows}
    casts = [kahan[stage] for stage in ("cast_increment", "cast_residual", "cast_output")]
    assert casts == sorted(casts, reverse=True)
    assert casts[-1] > kahan["is_live"] > kahan["add_increment"]
    group, tile = STAGED.result("cce").outputs[E].normwise, BY_TILE[1].result(f"cce,{TILE}").outputs[E].normwise
    assert group < tile / 4  # "of much less"
    exact = {row.stage: row.share or 0.0 for row in STAGED.result("cce-exact").stages[E].rows}
    assert exact["cast_residual"] + exact["cast_output"] > 0.99


def test_filter_and_sums_are_as_the_words_have_them() -> None:
    for report, tiles in zip(PAIR, BY_TILE, strict=True):
        unfiltered = over_floor(tiles, f"cce-no-filter,accumulate=kahan,{TILE}")
        assert over_floor(tiles, f"cce-kahan,{TILE}") > unfiltered
        assert over_floor(tiles, f"cce-no-filter,accumulate=hilo,{TILE}") < 1.02 < unfiltered < 2
        assert over_floor(tiles, f"cce-no-filter,{TILE}") > 5 * unfiltered
        assert over_floor(tiles, f"cce-no-filter,{TILE}") > 3 * over_floor(report, "cce-no-filter")
        assert unfiltered > over_floor(report, "cce-kahan-full-e") > over_floor(report, "cce-exact")
        assert over_floor(report, "cce-no-filter", C) < 1.02
        assert over_floor(report, "cce-exact") < 1.02 > over_floor(report, "cce-exact", C)
        assert (report.result("cce").kept(E) or 1) < (report.result("cce-no-sort").kept(E) or 0)
        assert over_floor(report, "cce-kahan-full-c", C) <= over_floor(report, "cce-kahan", C)
    eps = Sweep.read(HERE / "studies" / "filtering-cuda.json")
    at = {p.values["eps"]: r.over_floor[E] for p in eps.points for r in p.results if r.variant == f"cce-kahan,{TILE}"}
    limit = at[2.0**-18]
    assert at[2.0**-14] < 1.05 * limit < at[2.0**-12]
    extremes = {
        p.values["scale"]: {r.variant: r for r in p.results}
        for p in Sweep.read(HERE / "studies" / "extremes-cuda.json").points
    }
    bf16 = f"cce,{TILE}"
    assert extremes[0.125][bf16].over_floor[E] > 5 * extremes[8.0][bf16].over_floor[E]


def test_a_filter_costs_text_that_is_unsure_more() -> None:
    web = Report.read(UNSURE)
    assert {result.variant for result in web.results} == set(PRESETS)
    for result in web.results:
        for name, output in result.outputs.items():
            assert output.over_budget is not None
            assert output.over_budget <= 1, (result.variant, name)
    kahan, full = (over_floor(web, name) for name in ("cce-kahan", "cce-kahan-full-e"))
    assert kahan - full > over_floor(PAIR[0], "cce-kahan") - over_floor(PAIR[0], "cce-kahan-full-e") > 0
    assert full < over_floor(web, "cce-segment") < kahan


def test_times_are_as_the_words_have_them() -> None:
    for path in (BENCHED, VARIED):
        (place,) = Bench.read(path).places
        cost = {row.name: row.cost.both_over_product.median for row in place.rows if row.cost is not None}
        others = [cost[name] for name in cost if not name.startswith("cce-segment")]
        assert cost["cce-segment"] < 0.75 * min(others)  # "by far the fastest"
    assert cost["cce"] < cost[f"cce,{TILE}"]  # "the faster way, too"


def test_narrow_heads_save_less_and_weights_cost_nothing() -> None:
    wide, *narrow = (
        {row.name: row.products for row in place.rows if row.cost is not None}
        for path in (BENCHED, NARROW)
        for place in Bench.read(path).places
    )
    by_width = [narrow[0], narrow[1], wide]
    for name in ("cce-segment", "cce", "cce-exact", "torch-compile"):
        assert [cost[name] for cost in by_width] == sorted((cost[name] for cost in by_width), reverse=True)
    (place,) = Bench.read(WEIGHTED).places
    for row in place.rows:
        assert row.products < 1.02 * wide[row.name]
    (capped,) = Bench.read(CAPPED).places
    (same,) = Bench.read(BENCHED).places
    for name in ("cce-segment", "cce"):
        kept, before = (next(row.kept for row in p.rows if row.name == name) for p in (capped, same))
        assert kept[E] > before[E]
        assert kept[C] > before[C]


def test_many_tokens_take_less_memory_than_their_logits() -> None:
    for place in Bench.read(LONG).places:
        costs = {row.name: row.cost for row in place.rows if row.cost is not None}
        logits = place.head["tokens"] * place.head["vocabulary"] * 2 / 2**20
        assert costs["torch-compile"].beyond_gradients_mib >= logits
        assert all(costs[name].beyond_gradients_mib < logits / 6 for name in ("cce-segment", "cce", "cce-exact"))
        others = [cost.both_over_product.median for name, cost in costs.items() if name != "cce-segment"]
        assert costs["cce-segment"].both_over_product.median < min(others)


def test_rows_that_resemble_each_other_keep_less_and_lose_less() -> None:
    for path in (WEB, LIFTED):
        (place,) = Bench.read(path).places
        batch, similar = (
            next(row for row in place.rows if row.name == f"cce-segment{flag}") for flag in (",row_order=none", "")
        )
        assert similar.kept[E] < batch.kept[E]
        assert similar.kept[C] == batch.kept[C]
        assert similar.errors[E] < batch.errors[E]
        assert similar.errors[C] == batch.errors[C]


def test_the_words_are_wrapped_and_without_missing_numbers() -> None:
    text = lessons()
    assert max(map(len, text.splitlines())) <= 120
    assert "nan" not in text.split()


def test_the_picture_is_that_of_the_report() -> None:
    assert markdown.PICTURE.read_text() == draw(STAGED)


def test_every_committed_file_is_accounted_for() -> None:
    page = (HERE / "EVIDENCE.md").read_text()
    for folder in ("baselines", "benches", "laws", "studies"):
        for path in (HERE / folder).glob("*.json"):
            assert f"`{folder}/{path.name}`" in page, path.name


def test_entries_lose_more_and_read_more() -> None:
    study = GranularityStudy.read(HERE / "studies" / "granularity.json")
    for power in {point.power for point in study.points}:
        entries, words, segments = (study.find(name, power) for name in (ENTRIES, WORDS, SEGMENTS))
        for together, output in ((words, E), (segments, C)):
            assert together.gathered < entries.gathered
            assert together.dropped[output] < entries.dropped[output]
            assert together.with_tail[output] < entries.with_tail[output]


def test_the_frontier_is_what_is_said() -> None:
    bench, peers = Bench.read(FRONTIER), Bench.read(BENCHED)
    rows = points(bench)
    assert bench.complete
    assert len(rows) == len(FAMILIES) * len(POWERS) == 30
    table, text = frontier(bench, peers)
    assert table.count("\n") == len(POWERS) + 1
    assert "segments, a tail at 2^-8, 2^-10, 2^-12, 2^-14, 2^-16, 2^-18" in text
    for e in POWERS:  # what a tail is worth, and that tiles in their natural order keep most
        assert rows["segments, a tail", e].errors[E] < rows["segments", e].errors[E]
        assert rows["tiles, a tail", e].kept[E] > rows["tiles, by mean logit", e].kept[E]
    others = [row.name for row in peers.places[0].rows if is_peer(row)]
    assert others == ["liger", "torch-eight-chunks", "torch-compile", "torch"]
