"""What the committed reports say in plain words: the first part of FINDINGS.md. Every number is read from them."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .adder_check import AdderCheck
from .bench import Bench, Row
from .frontier import C, E, frontier
from .granularity_study import ENTRIES, SEGMENTS, SHARED, WORDS, GranularityStudy
from .report import Report, Result
from .sweep import PointResult, Sweep

HERE = Path(__file__).parent
PAPER, REAL = (HERE / "baselines" / f"{name}-bfloat16.json" for name in ("gemma-alpaca", "smollm2"))
UNSURE = HERE / "baselines" / "gemma-web-bfloat16.json"
"""A head drawn after web text."""
BENCHED = HERE / "benches" / "table1-h200.json"
WEB = HERE / "benches" / "web-h200.json"
VARIED = HERE / "benches" / "variations-h200.json"
"""Thresholds of segments, and increments of tiles."""
LIFTED = HERE / "benches" / "lifted-h200.json"
"""The real head at the paper's D."""
NARROW = HERE / "benches" / "narrow-h200.json"
"""A large vocabulary over few columns."""
LONG = HERE / "benches" / "long-h200.json"
"""Many tokens."""
CAPPED, WEIGHTED = (HERE / "benches" / f"{name}-h200.json" for name in ("softcap", "weighted"))
FRONTIER = HERE / "benches" / "frontier-h200.json"
TILE = "increment=tile"


def report_by_tile(report: Path) -> Path:
    """The report of the same head with increments of single tiles, as the paper's kernel has them."""
    return report.with_name(report.name.replace("-bfloat16", "-tiles-bfloat16"))


TILES = tuple(map(report_by_tile, (PAPER, REAL)))


def lessons() -> str:
    """Markdown."""
    paper, real = Report.read(PAPER), Report.read(REAL)
    tiles = tuple(Report.read(path) for path in TILES)
    eps = Sweep.read(HERE / "studies" / "filtering-cuda.json")
    extremes = Sweep.read(HERE / "studies" / "extremes-cuda.json")
    bench, varied = Bench.read(BENCHED), Bench.read(VARIED)
    adder = AdderCheck.read(HERE / "studies" / "adder-cuda.json")
    blocks = [
        _intro(paper, real),
        *_heading("Where the error comes from", _stages(real, tiles[1])),
        *_heading(
            "What the filter costs",
            [*_filter(paper, real), *_unsure(Report.read(UNSURE)), *_threshold(eps), *_dead(paper)],
        ),
        *_heading(
            "What segments and a tail save",
            [
                *_segments(bench, Bench.read(WEB), Bench.read(LIFTED)),
                *_narrow(Bench.read(NARROW)),
                *_long(Bench.read(LONG)),
                *_thresholds_of_segments(varied),
            ],
        ),
        *_heading("What a softcap and weights cost", _options(Bench.read(CAPPED), Bench.read(WEIGHTED))),
        *_heading("The frontier of filters", frontier(Bench.read(FRONTIER), bench)),
        *_heading("Why not single entries", _entries(GranularityStudy.read(HERE / "studies" / "granularity.json"))),
        *_heading("What the sums cost", [*_sums(paper, real, *tiles), *_increments(varied), *_extremes(extremes)]),
        *_heading("What the loss owes to the tensor core", [*_loss(paper, real), *_adder(adder)]),
        *_heading("Which variant to take", _advice(paper, real, bench)),
        *_heading("What the paper claims", _claims(paper, real, *tiles)),
    ]
    return "\n\n".join(blocks)


def _heading(title: str, items: Iterator[str] | list[str]) -> Iterator[str]:
    yield f"### {title}"
    for item in items:
        yield item if item.startswith("|") else _filled(item)


def _filled(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False)


def floors(report: Report, result: Result, output: str) -> str:
    """Error over that of two roundings."""
    return f"{report.over_floor(result, output):.2f}"


def _both(paper: Report, real: Report, name: str, output: str) -> str:
    return f"{floors(paper, paper.result(name), output)} and {floors(real, real.result(name), output)}"


def _kept(report: Report, name: str) -> str:
    """Percent of the tiles of dE."""
    return f"{100 * (report.result(name).kept(E) or 0.0):.0f}"


def _intro(paper: Report, real: Report) -> str:
    shapes = (
        f"{name} (N={r.head['tokens']}, V={r.head['vocabulary']}, D={r.head['hidden']})"
        for name, r in (("a drawn head at the paper's shape", paper), ("a real one, SmolLM2's", real))
    )
    return _filled(
        f"Measured on an {paper.provenance.device} in bf16, on {' and on '.join(shapes)}; figures in pairs are of "
        "these two. An error is given over that of two roundings, the least that bf16 allows: the residual rounded "
        "once, the result rounded once, everything else exact."
    )


def _stages(staged: Report, tiles: Report) -> Iterator[str]:
    explained = [t.explained for r in staged.results for t in r.stages.values() if t.explained is not None]
    cce, exact, kahan = (staged.result(name).stages[E].share for name in ("cce", "cce-exact", "cce-kahan"))
    by_tile = tiles.result(f"cce,{TILE}").stages[E].share
    yield (
        f"An emulation of the kernels, stage by stage, explains at least {100 * min(explained):.2f} % of the squared "
        f"error of every output of every variant on the real head. Of the error of dE in `cce`, as the paper adds, a "
        f"tile at a time, {100 * by_tile('add_increment'):.0f} % come from adding up in bf16 and "
        f"{100 * by_tile('is_live'):.0f} % from the filter; where the tensor core sums a group first, "
        f"{100 * cce('add_increment'):.0f} and {100 * cce('is_live'):.0f} % of much less. With Kahan's sums the cast "
        f"of the increments has {100 * kahan('cast_increment'):.0f} %, that of the residual "
        f"{100 * kahan('cast_residual'):.0f} %, that of the result {100 * kahan('cast_output'):.0f} %, and the filter "
        f"{100 * kahan('is_live'):.0f} %. "
        "`cce-exact` has only its two casts left: the residual's "
        f"({100 * exact('cast_residual'):.0f} %) and the result's "
        f"({100 * exact('cast_output'):.0f} %)."
    )


def _filter(paper: Report, real: Report) -> Iterator[str]:
    yield (
        "At the paper's threshold of 2^-12 and with Kahan's sums, the filter takes dE from "
        f"{_both(paper, real, 'cce-kahan-full-e', E)} to {_both(paper, real, 'cce-kahan', E)}, and dC from "
        f"{_both(paper, real, 'cce-kahan-full-c', C)} to {_both(paper, real, 'cce-kahan', C)}. It "
        f"keeps {_kept(paper, 'cce')} and {_kept(real, 'cce')} % of the tiles; without the "
        f"sort {_kept(paper, 'cce-no-sort')} and {_kept(real, 'cce-no-sort')} %. So it is not "
        "below bf16's own rounding where it drops much, and costs little where it drops little; sorting decides which. "
        "With sums in bf16, a tile at a time, none of this can be seen, since they cost more. All this is of whole "
        f"tiles of {_tile(paper)}; segments, which are finer, are a section further down."
    )


def _unsure(web: Report) -> Iterator[str]:
    closest = {e: max(r.outputs[e].over_budget or 0.0 for r in web.results) for e in (E, C)}
    taken = {name: floors(web, web.result(name), E) for name in ("cce-kahan-full-e", "cce-kahan", "cce-segment")}
    yield (
        f"Web text, whose words are less sure, pays more. On a head drawn after it, of the paper's shape too, the same "
        f"filter keeps {_kept(web, 'cce')} % of the tiles and takes dE from {taken['cce-kahan-full-e']} to "
        f"{taken['cce-kahan']}; `cce-segment` comes to {taken['cce-segment']}. The budgets know of it: no output of "
        f"any preset is above its own there, and dE and dC come to {closest[E]:.2f} and {closest[C]:.2f} of it at most."
    )


def _tile(report: Report) -> str:
    """Rows x words that the filter keeps or drops together."""
    found = re.search(r"backward (\d+)x(\d+)x", report.results[0].schedule)
    assert found
    return f"{found[1]} x {found[2]}"


def _threshold(eps: Sweep) -> Iterator[str]:
    powers = (8, 10, 12, 14, 16)
    tiles, segments = (_by_power(eps, variant) for variant in (f"cce-kahan,{TILE}", "cce-segment"))
    of_tiles = "; ".join(
        f"2^-{power}: {100 * r.kept[E]:.0f} % kept, dE {r.over_floor[E]:.2f}, dC {r.over_floor[C]:.2f}"
        for power in powers
        for r in [tiles[power]]
    )
    yield (
        f"On {eps.settings['tokens']} tokens of the real head, Kahan's sums a tile at a time, by threshold: {of_tiles}."
        " From 2^-14 on the filter is hidden under Kahan's own error."
    )
    of_segments = "; ".join(
        f"2^-{power}: {100 * r.kept[E]:.0f} and {100 * r.kept[C]:.0f} % kept, dE {r.over_floor[E]:.2f}, "
        f"dC {r.over_floor[C]:.2f}"
        for power in powers
        for r in [segments[power]]
    )
    yield (
        f"`cce-segment` on the same tokens, of dE and dC: {of_segments}. At one threshold segments lose more than "
        "tiles do, since a tile that has one live entry keeps all; at one error they keep less."
    )


def _by_power(eps: Sweep, variant: str) -> dict[int, PointResult]:
    """Results by minus the binary logarithm of eps."""
    return {round(-math.log2(p.values["eps"])): r for p in eps.points for r in p.results if r.variant == variant}


def _dead(paper: Report) -> Iterator[str]:
    result = paper.result("cce")
    dead = result.dead_rows
    if dead is not None:
        yield (
            f"What the norm does not show: at the paper's shape {dead.dead} of {paper.head['vocabulary']} rows of dC "
            "are exactly zero after `cce` and should not be. They hold "
            f"{100 * dead.lost:.4f} % of its norm, and are all that their words would have learned from this batch."
        )


def _segments(bench: Bench, web: Bench, lifted: Bench) -> Iterator[str]:
    rows = _timed(bench)
    figures = partial(_figures, rows)
    fewest = rows["cce-segment"].kept
    yield (
        f"On the drawn head at {bench.places[0].shape}, on an {bench.provenance.device}, through the public call and "
        f"forward pass included, `cce-segment` takes {figures('cce-segment')} (errors of dE and dC), where `cce` takes "
        f"{figures('cce')}, `cce,order=mean_prob` {figures('cce,order=mean_prob')}, `cce-exact` "
        f"{figures('cce-exact')} and torch.compile {figures('torch-compile')}. It keeps "
        f"{100 * fewest[E]:.0f} % of the columns of tiles for dE and {100 * fewest[C]:.0f} % of rows of half tiles for "
        f"dC, where whole tiles in the paper's order are {100 * rows['cce'].kept[E]:.0f} %."
    )
    others = _timed(web)
    of_web = partial(_figures, others)
    yield (
        f"How much it saves is the text's to say. On a head drawn after web text, whose words are less sure, "
        f"{100 * others['cce-segment'].kept[C]:.0f} % of the rows are kept, and `cce-segment` takes "
        f"{of_web('cce-segment')}: {of_web('cce-segment,eps=2^-13')} with eps=2^-13, "
        f"{of_web('cce-segment,eps=2^-15')} with eps=2^-15, and {of_web('cce-segment,eps_e=2^-17')} where dE alone "
        f"keeps more, with eps_e=2^-17. There `cce` takes {of_web('cce')}, `cce-exact` {of_web('cce-exact')} and "
        f"torch.compile {of_web('torch-compile')}."
    )
    near, ours = others["cce-segment,row_order=none"], others["cce-segment"]
    small = _timed(lifted)
    of_real = partial(_figures, small)
    batch, similar = (small[name].kept[E] for name in ("cce-segment,row_order=none", "cce-segment"))
    yield (
        "Rows that resemble each other share a block of dE (`row_order=similar`), so that more of what it keeps is "
        f"their own. As rows lie in the batch it keeps {100 * near.kept[E]:.1f} % of the words of the web head for "
        f"{100 * ours.kept[E]:.1f} % and is {near.errors[E]:.2e} off for {ours.errors[E]:.2e}; of the real head's, "
        f"whose neighbours have less in common, {100 * batch:.0f} % for {100 * similar:.0f} %, both at "
        f"{small['cce-segment'].errors[E]:.1e}."
    )
    yield (
        f"A small vocabulary has little to leave out. On the real head, lifted to {lifted.places[0].shape}, "
        f"{100 * small['cce-segment'].kept[C]:.0f} % of the rows are kept, and `cce-segment` takes "
        f"{of_real('cce-segment')}, where `cce` takes {of_real('cce')}, `cce,order=mean_prob` "
        f"{of_real('cce,order=mean_prob')}, `cce-exact` {of_real('cce-exact')}, `cce-stored` {of_real('cce-stored')} "
        f"and torch.compile {of_real('torch-compile')}."
    )


def _narrow(bench: Bench) -> Iterator[str]:
    texts = []
    for place in bench.places:
        figures = partial(_figures, {row.name: row for row in place.rows})
        texts.append(
            f"at D={place.head['hidden']} `cce-segment` takes {figures('cce-segment')}, `cce` {figures('cce')}, "
            f"`cce-exact` {figures('cce-exact')} and torch.compile {figures('torch-compile')}"
        )
    vocabulary = bench.places[0].head["vocabulary"]
    yield (
        "Narrow heads save less, since what finds the live entries and lists them does not shrink with D. With the "
        f"same statistics and V={vocabulary}, {'; '.join(texts)}."
    )


def _long(bench: Bench) -> Iterator[str]:
    lines = ["| | | products | dE | dC | MiB |", "|---|---|---|---|---|---|"]
    for place in bench.places:
        for row in (row for row in place.rows if row.cost is not None):
            errors = f"{row.errors[E]:.1e} | {row.errors[C]:.1e}"
            lines.append(f"| {place.shape} | `{row.name}` | {row.products:.2f} | {errors} | {_memory(row):.0f} |")
    yield (
        "Many tokens want more memory beyond the gradients: residuals of a group of the vocabulary have a row for "
        "every token, and groups of few words leave multiprocessors idle. Both passes on the same head, errors and "
        "memory:"
    )
    yield "\n".join(lines)


def _memory(row: Row) -> float:
    """MiB beyond the gradients."""
    assert row.cost is not None
    return row.cost.beyond_gradients_mib


def _options(capped: Bench, weighted: Bench) -> Iterator[str]:
    rows = _timed(capped)
    figures = partial(_figures, rows)
    forward = {name: row.cost.forward_over_product.median for name, row in rows.items() if row.cost is not None}
    kept = rows["cce-segment"].kept
    yield (
        f"A softcap of {capped.places[0].head['softcap']:g} is a tanh for every logit: the forward pass of `cce-exact` "
        f"takes {forward['cce-exact']:.2f} products with it, and both passes {figures('cce-exact')}. On this head, "
        "which was not trained with one, it also flattens the softmax, so that more is alive: `cce` takes "
        f"{figures('cce')}, and `cce-segment`, which then keeps {100 * kept[E]:.0f} % of the words and "
        f"{100 * kept[C]:.0f} % of the rows, {figures('cce-segment')}."
    )
    rows = _timed(weighted)
    figures = partial(_figures, rows)
    yield (
        "Weights of tokens in place of a mean (`reduction=none`, upstream gradients that differ) cost nothing: "
        f"`cce-segment` takes {figures('cce-segment')}, `cce` {figures('cce')}, `cce-exact` {figures('cce-exact')}, "
        f"`cce-stored` {figures('cce-stored')} and torch.compile {figures('torch-compile')}."
    )


def _timed(bench: Bench) -> dict[str, Row]:
    (place,) = bench.places
    return {row.name: row for row in place.rows if row.cost is not None}


def _figures(rows: dict[str, Row], name: str) -> str:
    row = rows[name]
    return f"{row.products:.2f} products at {row.errors[E]:.1e} and {row.errors[C]:.1e}"


def _thresholds_of_segments(bench: Bench) -> Iterator[str]:
    rows = _timed(bench)
    figures = partial(_figures, rows)
    yield (
        f"The threshold is what its error is made of. At {bench.provenance.commit}, where `cce-segment` took "
        f"{rows['cce-segment'].products:.2f} products: "
        + "; ".join(f"2^{e}: {figures(f'cce-segment,eps=2^{e}')}" for e in (-12, -13, -15, -16))
        + ". At the preset's 2^-14 the tail is worth a factor of "
        f"{rows['cce-segment,tail=drop'].errors[E] / rows['cce-segment'].errors[E]:.1f} in dE, and costs "
        f"{rows['cce-segment'].products - rows['cce-segment,tail=drop'].products:.2f} of a product."
    )
    wider = {e: f"cce-segment,eps_e={e}" for e in ("2^-15", "2^-14")}
    yield (
        "Words are the smaller part of that work, so that dE looks closer than dC: at entries above a quarter of eps, "
        f"the default of `eps_e`. In that run it was {figures(wider['2^-15'])} at 2^-15, at dC's own 2^-14 "
        f"{figures(wider['2^-14'])}: a factor of "
        f"{rows[wider['2^-14']].errors[E] / rows['cce-segment'].errors[E]:.1f} in dE for "
        f"{rows['cce-segment'].products - rows[wider['2^-14']].products:.2f} of a product."
    )


def _entries(study: GranularityStudy) -> Iterator[str]:
    power = -14
    entries, words, segments = (study.find(name, power) for name in (ENTRIES, WORDS, SEGMENTS))
    yield (
        f"On {study.head['tokens']} rows of the drawn head (V={study.head['vocabulary']}), in float64, 2^{power} "
        f"leaves {entries.entries:.0f} live entries per row. By entries, dE then lacks {entries.with_tail[E]:.1e} of "
        f"its norm and dC {entries.with_tail[C]:.1e}, with a tail, and each reads a row of C and one of E. Words where "
        f"any of {SHARED[WORDS]} rows has a live entry are {words.gathered:.0f} rows of C per row, and leave "
        f"{words.with_tail[E]:.1e} of dE; segments of {SHARED[SEGMENTS]} words are {segments.gathered:.0f} rows of E, "
        f"and leave {segments.with_tail[C]:.1e} of dC. It is so at every threshold: what is kept together loses less, "
        "reads less, and feeds a tensor core. So no kernel here goes by entries."
    )


def _sums(paper: Report, real: Report, *tiles: Report) -> Iterator[str]:
    rows = {s: f"cce-no-filter,accumulate={s},{TILE}" for s in ("hilo", "kahan")}
    first, second = tiles
    yield (
        f"Nothing filtered and a tile at a time, dE is at {_both(first, second, f'cce-no-filter,{TILE}', E)} with sums "
        f"in bf16, {_both(first, second, rows['kahan'], E)} with Kahan's, {_both(first, second, rows['hilo'], E)} with "
        "a pair of bf16 numbers that is fed fp32 increments (`hilo`), and "
        f"{_both(paper, real, 'cce-exact', E)} in fp32. Kahan's sums lose what they lose in casting the increment; "
        "`hilo` takes the same memory and is as good as fp32."
    )
    yield (
        "Most of this is what one tile at a time costs. The tensor core keeps its own sum in fp32: if it first sums "
        f"what is kept of a group of {_terms(paper)} words or tokens (of two thirds more words where dE drops none), "
        "sums in bf16 come to "
        f"{_both(paper, real, 'cce-no-filter', E)} in dE and {_both(paper, real, 'cce-no-filter', C)} in dC, whose sum "
        f"is then one increment; Kahan's to {_both(paper, real, 'cce-kahan-full-e', E)} and "
        f"{_both(paper, real, 'cce-kahan-full-c', C)}. With the filter, `cce` goes from "
        f"{_both(first, second, f'cce,{TILE}', E)} to {_both(paper, real, 'cce', E)}."
    )


def _terms(report: Report) -> str:
    found = re.search(r"(\d+) terms per group", report.results[0].schedule)
    assert found
    return found[1]


def _increments(bench: Bench) -> Iterator[str]:
    rows = _timed(bench)
    group, tile = rows["cce"], rows[f"cce,{TILE}"]
    yield (
        f"It is the faster way, too: at {bench.provenance.commit} `cce` took {group.products:.2f} products so, and "
        f"{tile.products:.2f} a tile at a time (forward pass included), since nothing then stands between one product "
        "and the next."
    )


def _extremes(extremes: Sweep) -> Iterator[str]:
    flat, peaked = (
        {r.variant: r for r in point.results} for point in sorted(extremes.points, key=lambda p: p.values["scale"])
    )
    bf16 = f"cce,{TILE}"
    dead = peaked[bf16].dead_rows
    yield (
        f"A flat softmax is the worst case of bf16 sums of tiles (dE {flat[bf16].over_floor[E]:.1f}, Kahan "
        f"{flat[f'cce-kahan,{TILE}'].over_floor[E]:.2f}), since every tile adds a little of one sign. Where the "
        f"softmax is peaked the same sums are nearly harmless ({peaked[bf16].over_floor[E]:.2f}), and the filter "
        f"leaves {dead.dead if dead else 0} rows of dC at zero."
    )


def _loss(paper: Report, real: Report) -> Iterator[str]:
    first, exact = paper.results[0], real.result("cce-exact")
    yield (
        f"At the paper's shape the mean loss is {abs(first.mean_loss_error):.1e} from the truth and "
        f"{abs(first.mean_loss_error_own_logits):.1e} from float64 over the kernel's own logits. Per token, "
        f"{100 * exact.stages['loss'].share('dot_logits'):.1f} % of the squared error are those of the logits: of the "
        "tensor core, which truncates. Target and sum take the same logits, so that most of its bias cancels."
    )


def _adder(adder: AdderCheck) -> Iterator[str]:
    small = [row for row in adder.rows if (row.dtype, row.kind) == ("bfloat16", "subnormal")]
    usual = [row for row in adder.rows if row not in small]
    dots, same = (sum(row.dots for row in usual), sum(row.dots - max(row.unlike_model.values()) for row in usual))
    off = sum(max(row.unlike_model.values()) for row in small) / sum(row.dots for row in small)
    yield (
        f"On an {adder.provenance.device}, the published model of its adder (16 products and the accumulator at once, "
        f"25 fractional bits, truncated) gives {same:,} of {dots:,} dot products bit for bit, for D from "
        f"{min(r.length for r in usual)} to "
        f"{max(r.length for r in usual)}, in tiles of {' and '.join(usual[0].unlike_model)}. Where bf16 operands, "
        f"products or sums lie below 2^-126, {100 * off:.2f} % of the dots differ."
    )


def _advice(paper: Report, real: Report, bench: Bench) -> Iterator[str]:
    rows = {row.name: row for row in bench.places[0].rows}
    yield (
        "For pretraining, where rare words must learn: do not filter dC, and do not add up in bf16. "
        f"`cce-kahan-full-c` is at {_both(paper, real, 'cce-kahan-full-c', E)} in dE and "
        f"{_both(paper, real, 'cce-kahan-full-c', C)} in dC; `cce-exact` is at the floor in both, and so is "
        f"`cce-stored`, in {rows['cce-stored'].products:.2f} products for {rows['cce-exact'].products:.2f}, where "
        "there is memory for what it stores. Where a filter may "
        f"look at segments instead of tiles, `cce-segment` is at {_both(paper, real, 'cce-segment', E)} and "
        f"{_both(paper, real, 'cce-segment', C)}, and gives back what it drops; on a large vocabulary it is by far the "
        "fastest."
    )
    yield (
        "For fine-tuning, where the model is sure of most tokens and rare words may stay as they are: `cce-kahan`, or "
        "`cce-kahan,eps=2^-14`, which brings dE to Kahan's own error. `cce` itself where an error of dE of "
        f"{100 * paper.result('cce').outputs[E].normwise:.1f} % of its norm is small beside the noise of the batch."
    )


def _claims(paper: Report, real: Report, *tiles: Report) -> Iterator[str]:
    kahan = _both(tiles[0], tiles[1], f"cce-no-filter,accumulate=kahan,{TILE}", E)
    yield (
        "That a threshold of 2^-12 loses nothing that bf16 would keep: true of dC's norm, not of dE on a vocabulary of "
        f"{paper.head['vocabulary']} ({floors(paper, paper.result('cce-kahan'), E)} floors), and not of the rows of "
        "rare words. That Kahan's sums repair what bf16 loses: nearly "
        f"({kahan}, a tile at a time). That sorting the vocabulary empties tiles: "
        f"{_kept(real, 'cce-no-sort')} to {_kept(real, 'cce')} % on the real head. That the "
        f"loss is that of the full computation: yes, to {abs(paper.results[0].mean_loss_error):.1e}."
    )
