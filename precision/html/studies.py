"""Sections drawn from committed studies: what a report alone cannot show, since it takes many heads or many shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from ..adder_check import AdderCheck
from ..adder_study import AdderStudy
from ..exhaustive import ExhaustiveTable
from ..names import GRADIENTS
from ..study import STUDIES
from ..sweep import Point, Sweep
from .figure import Figure, Section, Table, not_made, number
from .lines import QUANTITIES, error_over_floor, lines_of, over_axis, table_of, where
from .plot import MUTED, Series, log_axis, panel, plain_ticks, series


def tiles(path: Path = STUDIES / "tiles.json") -> Section:
    """Error against the number of increments, per accumulator."""
    if not path.exists():
        figure = not_made("tiles")
    else:
        found = Sweep.read(path)
        figure = Figure(
            title="Error against the number of tiles",
            how="Each point is the same head cut into other tiles: smaller tiles, more increments per sum. A flat "
            "line is an accumulator that does not care how often it is added to; the dotted guides grow as the square "
            "root of the number of tiles (roundings that fall either way) and in proportion to it (roundings of one "
            f"sign, or a sum that stagnates). Measured on {where(found)}.",
            panels=[
                over_axis(
                    found,
                    error_over_floor(output, name),
                    "block",
                    x=partial(_increments, output),
                    label=f"increments to each sum of {name}",
                    decorate=_guides,
                )
                for output, name in GRADIENTS.items()
            ],
            legend=lines_of(found),
            tables=[table_of(found)],
        )
    intro = (
        "With increment=tile a gradient is summed tile by tile, as in the paper; the flag accumulate chooses how the "
        "sum is carried from one to the next. The presets let the tensor core sum a group of tiles first."
    )
    return Section(slug="tiles", title="Number of tiles", intro=intro, figures=[figure])


def _increments(output: str, point: Point) -> float:
    return point.tiles[output]


def _guides(axes: Axes) -> None:
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for slope, name in ((0.5, "√tiles"), (1.0, "tiles")):
        axes.plot([low, high], [1, (high / low) ** slope], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        at = min(high, low * (top**0.9) ** (1 / slope))
        axes.text(at, (at / low) ** slope, name + " ", color=MUTED, fontsize=8, ha="right", va="bottom")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)


def filtering(folder: Path = STUDIES) -> list[Figure]:
    """What eps buys and costs, from every study of that."""
    found = [Sweep.read(path) for path in sorted(folder.glob("filtering*.json"))]
    return [figure for study in found for figure in _filtering(study)] or [not_made("filtering")]


def _filtering(found: Sweep) -> list[Figure]:
    eps = Figure(
        title="What the threshold buys and costs",
        how="To the right the threshold is larger and more is skipped: tiles, or by cce-segment columns of tiles. "
        "2⁻¹² is the paper's, and the default in bfloat16. Above the dashed line the gradient is further from the "
        "truth than two roundings put it. Compare variants at the same share kept, not at the same eps. "
        f"Measured on {where(found)}.",
        panels=[over_axis(found, quantity, "eps") for quantity in QUANTITIES[:5]],
        legend=lines_of(found),
        tables=[table_of(found)],
    )
    return [eps, _dead_by_rank(found)]


def _dead_by_rank(found: Sweep) -> Figure:
    variant = found.settings["variants"][0]
    points = [(p.values["eps"], r.dead_rows) for p in found.points for r in p.results if r.variant == variant]
    ranks = [(b.first_rank, b.last_rank, b.targets) for b in points[0][1].buckets] if points and points[0][1] else []
    labels = [f"rank {a}–{b}{', targets' if t else ', never targets'}" for a, b, t in ranks]
    lines = series(labels)

    def draw(axes: Axes) -> None:
        log_axis(axes, "x", 2)
        for place, line in enumerate(lines):
            shares = [
                (eps, dead.buckets[place].dead / max(dead.buckets[place].rows, 1))
                for eps, dead in points
                if dead is not None
            ]
            axes.plot(*zip(*sorted(shares), strict=True), "o-", color=line.colour, linewidth=line.width)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")
        axes.set_xlabel("eps")

    return Figure(
        title="Which words learn nothing",
        how="Words are ranked by how often they are targets of the batch, then by how often the softmax expects them: "
        "rank 1 is the most frequent. A row of dC that is exactly zero, though the true gradient is not, belongs to a "
        f"word that this batch does not move. The variant is {variant}.",
        panels=[panel("share of dC rows left at zero", draw)],
        legend=lines,
    )


def extremes(path: Path = STUDIES / "extremes-cuda.json") -> Section:
    """A head whose softmax is flat, and one that is nearly sure of each word."""
    figure = not_made("extremes")
    if path.exists():
        found = Sweep.read(path)
        figure = Figure(
            title="Flat and peaked",
            how="Scale is what the logits of a Gaussian head are multiplied by: at 2^-3 nearly every word is as likely "
            "as any other, at 8 a few words hold everything. Flat rows are the hardest for sums in storage precision, "
            f"peaked ones for the filter. Measured on {where(found)}.",
            tables=[table_of(found)],
            open_tables=True,
        )
    intro = "Real heads lie between two extremes, in which filter and sums behave very differently."
    return Section(slug="extremes", title="Flat and peaked", intro=intro, figures=[figure])


def adders(folder: Path = STUDIES) -> Section:
    """Error of a dot product against D on each model of an adder, and whether a GPU adds as its model does."""
    path, checks = folder / "adders.json", sorted(folder.glob("adder-*.json"))
    section = adders_of(AdderStudy.read(path) if path.exists() else None)
    return replace(section, figures=[*section.figures, *(adder_figure(AdderCheck.read(check)) for check in checks)])


def adder_figure(check: AdderCheck) -> Figure:
    """Dots that a GPU computed otherwise than the model, by kind of operands."""
    kinds = list(dict.fromkeys((row.dtype, row.kind) for row in check.rows))
    rows = []
    for dtype, kind in kinds:
        of_kind = [row for row in check.rows if (row.dtype, row.kind) == (dtype, kind)]
        dots = sum(row.dots for row in of_kind)
        unlike = (sum(row.unlike_model[tile] for row in of_kind) for tile in of_kind[0].unlike_model)
        nearest = sum(row.unlike_nearest for row in of_kind)
        rows.append([dtype, kind, f"{dots:,}", *(f"{count:,}" for count in unlike), f"{100 * nearest / dots:.1f} %"])
    tiles = list(check.rows[0].unlike_model)
    return Figure(
        title=f"The model against the GPU: {check.provenance.device}",
        how="Dot products of the kernels, compared bit for bit with the model of the adder, for D of "
        f"{', '.join(str(d) for d in dict.fromkeys(row.length for row in check.rows))}. The last column says how many "
        "are not the correctly rounded sum: what the model has to explain.",
        tables=[
            Table(
                title="Dots that differ from the model",
                columns=("operands", "kind", "dots", *(f"{tile} tile" for tile in tiles), "not rounded to nearest"),
                rows=rows,
                words=frozenset({0, 1}),
            )
        ],
        open_tables=True,
    )


def adders_of(study: AdderStudy | None) -> Section:
    """The section of a study at hand."""
    intro = "Logits are dot products of length D on the tensor core, whose adder does not round to nearest."
    figure = not_made("adders") if study is None else _adder_figure(study)
    return Section(slug="adders", title="Length of the dot product", intro=intro, figures=[figure])


def _adder_figure(study: AdderStudy) -> Figure:
    lines = series(list(dict.fromkeys(point.machine for point in study.points)))
    return Figure(
        title="Error of one dot product against D",
        how="Left: the mean of the signed error of positive terms. Below zero, and falling with D, is truncation: "
        "every addition loses a little, always towards zero, so that a tolerance that grows as √D is wrong. Right: "
        "the root mean square for terms of either sign, where truncation hardly shows. One unit is u = 2⁻²⁴ times the "
        f"sum of the terms' sizes. {study.draws} draws of bfloat16 operands per point.",
        panels=[
            panel("positive terms: bias", _adder_lines(study, lines, "positive", "bias")),
            panel("terms of either sign: rms", _adder_lines(study, lines, "signed", "rms")),
        ],
        legend=lines,
        tables=[
            Table(
                title="Every point",
                columns=("machine", "terms", "D", "bias", "rms", "largest"),
                rows=[
                    [p.machine, p.terms, str(p.length), number(p.bias), number(p.rms), number(p.largest)]
                    for p in study.points
                ],
                words=frozenset({0, 1}),
            )
        ],
    )


def _adder_lines(study: AdderStudy, lines: list[Series], terms: str, what: str) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        log_axis(axes, "x", 2)
        lengths = sorted({p.length for p in study.points})
        for line in lines:
            points = sorted(
                (p.length, getattr(p, what)) for p in study.points if p.machine == line.label and p.terms == terms
            )
            if points:
                axes.plot(*zip(*points, strict=True), "o-", color=line.colour, linewidth=line.width)
        axes.axhline(0, color=MUTED, linewidth=1)
        shown = lengths[::2] if len(lengths) > 5 else lengths
        plain_ticks(axes, "x", shown, [str(length) for length in shown])
        axes.set_xlabel("D")
        axes.set_ylabel("u · Σ|terms|")

    return draw


def every_input(folder: Path = STUDIES) -> Section:
    """Tables in the manner of JAX's pages on elementwise accuracy."""
    found = [ExhaustiveTable.read(path) for path in sorted(folder.glob("exhaustive-*.json"))]
    figures = [
        Figure(
            title=table.provenance.device,
            how="Max ulp: the largest error in units in the last place of the true result, in the format of the "
            "result; 0.5 is correct rounding. Bias: the mean signed error; 0 is fair. A row marked exhaustive has "
            "tried every input there is, so that its maximum is one and no sample's. NaN and infinities count as "
            "mismatches where only one side has them; results below the normal range are left out, since the GPU "
            "flushes them. The exponential is 2 to the power of x log₂ e, whose rounding costs more ulps the larger "
            "|x| is, and the slope of the softcap is made of exponentials: the budgets allow for both.",
            tables=[exhaustive_rows(table)],
            open_tables=True,
        )
        for table in found
    ]
    return Section(
        slug="exhaustive",
        title="Every input",
        intro="The elementwise pieces of the kernels, one by one, on all 2¹⁶ numbers of bfloat16.",
        figures=figures or [not_made("exhaustive-cpu")],
    )


def exhaustive_rows(table: ExhaustiveTable) -> Table:
    columns = ("function", "inputs", "tried", "max ulp", "bias, ulp", "worst input", "result", "truth", "mismatches")
    return Table(
        title=f"Elementwise accuracy, {table.provenance.device}",
        columns=columns,
        rows=[
            [
                f.name,
                f"{f.of}{' (exhaustive)' if f.exhaustive else ''}",
                str(f.inputs),
                number(f.max_ulp),
                number(f.mean_bias, 2),
                *(Markup("<code>{}</code>").format(bits) for bits in (f.worst_input, f.worst_got, f.worst_truth)),
                str(f.mismatches),
            ]
            for f in table.functions
        ],
        words=frozenset({0, 1, 5, 6, 7}),
    )
