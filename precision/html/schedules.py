"""How much one variant's answers change with the schedule, and whether they repeat: from the committed studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from markupsafe import Markup
from matplotlib.axes import Axes

from ..names import GRADIENTS
from ..schedule_study import SPREAD_OUTPUTS, Agreement, HeadSpread, ScheduleStudy, VariantSpread
from ..study import STUDIES
from .figure import Figure, Section, Table, not_made, number, percent
from .plot import GRID, MUTED, Series, log_axis, panel, plain_ticks, series

TICKS = (1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0)
FINE_TICKS = (1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.1)
SHORT = {"loss": "loss", **GRADIENTS}


def schedules(folder: Path = STUDIES) -> Section:
    """Every study of schedules in `folder`."""
    found = [ScheduleStudy.read(path) for path in sorted(folder.glob("schedules*.json"))]
    return schedules_of(found)


def schedules_of(studies: list[ScheduleStudy]) -> Section:
    """The section of studies at hand."""
    figures = [figure for study in studies for head in study.heads for figure in _figures(study, head)]
    return Section(
        slug="schedules",
        title="Schedule spread",
        intro="A schedule is how a kernel cuts its work: the rows and columns of a tile, the columns of D that one "
        "step multiplies, the splits of the vocabulary. It decides where sums are rounded and what the filter can "
        "drop. None is wrong; this is how far apart they are.",
        figures=figures or [not_made("schedules")],
    )


def _figures(study: ScheduleStudy, head: HeadSpread) -> list[Figure]:
    lines = series(list(dict.fromkeys(run.changes for variant in head.variants for run in variant.runs)))
    return [
        Figure(
            title=f"Error under every schedule: {_name(head)}",
            how="A dot is the variant under one schedule; its colour says what that schedule has of its own, all else "
            "being the default. A narrow strip is a variant that does not care how its work is cut. Backward columns "
            "move dE and backward rows dC, since these are what each is summed along: smaller tiles, more increments, "
            "and more roundings where sums are kept in the storage dtype. Schedules that change next to nothing lie on "
            f"the default's dot, one below the other. Measured on {_where(study, head)}.",
            panels=[
                panel(
                    f"{short}: error over two roundings",
                    _strips(head, output, lines),
                    width=5.6,
                    height=1.0 + 0.36 * len(head.variants),
                )
                for output, short in GRADIENTS.items()
            ],
            legend=lines,
            tables=[*(_errors(head, output) for output in GRADIENTS), _unchanged(head)],
        ),
        Figure(
            title=f"What all schedules agree on: {_name(head)}",
            how=f"Deterministic: on {study.provenance.device} every schedule was run twice, the second time "
            f"{study.repeated}, and every bit of loss, lse, dE and dC was the same. That is no promise between two "
            "schedules, which the other columns are about. Error: the least and the largest over the schedules. Bits: "
            "what the least and the largest value a, b of an element have in common, log₂ |a + b| / 2|a − b|, at most "
            f"those of the significand ({_digits(head)}); given are the median element and, in brackets, the one below "
            "which the worst hundredth lies. 0 means that these elements are made of rounding, or that a tile is "
            "dropped under one schedule and kept under another. Same: the share of elements that no schedule changes. "
            "The presets share the forward pass, and with it the columns of the loss.",
            tables=[_agreement(head)],
            open_tables=True,
        ),
    ]


def _name(head: HeadSpread) -> str:
    spread = head.head.get("spread")
    return f"{head.head['name']} head" + (f", logits of standard deviation {spread:g}" if spread else "")


def _digits(head: HeadSpread) -> str:
    return ", ".join(f"{SHORT[output]} {found.digits}" for output, found in head.variants[0].agreement.items())


def _where(study: ScheduleStudy, head: HeadSpread) -> str:
    h = head.head
    shape = f"N={h['tokens']}, V={h['vocabulary']}, D={h['hidden']}, {h['dtype']}"
    return f"{shape}, {study.provenance.device}"


def _strips(head: HeadSpread, output: str, lines: list[Series]) -> Callable[[Axes], None]:
    """A row per variant, within it the schedules one below the other."""

    def draw(axes: Axes) -> None:
        log_axis(axes, "x")
        colours = {line.label: line.colour for line in lines}
        for row, variant in enumerate(head.variants):
            errors = [run.over_floor[output] for run in variant.runs]
            axes.fill_betweenx([row - 0.36, row + 0.36], min(errors), max(errors), color=GRID, linewidth=0)
            for k, run in enumerate(variant.runs):
                height = row - 0.32 + 0.64 * k / max(len(errors) - 1, 1)
                axes.plot(errors[k], height, "o", color=colours[run.changes], markersize=3.6)
        axes.axvline(1, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        low, high = axes.get_xlim()
        shown = [tick for tick in (TICKS if high / low > 1.15 else FINE_TICKS) if low <= tick <= high]
        plain_ticks(axes, "x", shown, [number(tick) for tick in shown])
        axes.set_yticks(range(len(head.variants)), [variant.variant for variant in head.variants])
        axes.set_ylim(len(head.variants) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("error over two roundings")

    return draw


def _errors(head: HeadSpread, output: str) -> Table:
    runs = zip(*(variant.runs for variant in head.variants), strict=True)
    return Table(
        title=f"{SHORT[output]}: error over two roundings",
        columns=("schedule", *(variant.variant for variant in head.variants)),
        rows=[[one[0].name, *(number(run.over_floor[output]) for run in one)] for one in runs],
    )


def _unchanged(head: HeadSpread) -> Table:
    runs = list(zip(*(variant.runs for variant in head.variants), strict=True))
    return Table(
        title="Variants whose bits are those under the default schedule, and the schedules in full",
        columns=("schedule", *SHORT.values(), "in full"),
        rows=[
            [
                one[0].name,
                *(f"{sum(run.as_default[output] for run in one)} of {len(one)}" for output in SPREAD_OUTPUTS),
                one[0].schedule,
            ]
            for one in runs[1:]
        ],
        words=frozenset({0, 4}),
    )


def _agreement(head: HeadSpread) -> Table:
    common = (f"{short} {what}" for short in SHORT.values() for what in ("bits", "same"))
    return Table(
        title="Spread of every variant",
        columns=("variant", "repeated", "dE × floor", "dC × floor", "worst / budget", *common),
        rows=[
            [
                Markup("<code>{}</code>").format(variant.variant),
                _badge(variant),
                *(_range(variant, output) for output in GRADIENTS),
                f"{max(run.over_budget for run in variant.runs):.2f}",
                *(cell for output in SPREAD_OUTPUTS for cell in _common(variant.agreement[output])),
            ]
            for variant in head.variants
        ],
        words=frozenset({0, 1}),
    )


def _badge(variant: VariantSpread) -> Markup:
    if variant.deterministic:
        return Markup('<span class="badge pass">✓ deterministic</span>')
    which = ", ".join(run.name for run in variant.runs if not run.repeats)
    return Markup('<span class="badge fail">✗ not deterministic</span><span class="reasons">{}</span>').format(which)


def _range(variant: VariantSpread, output: str) -> str:
    errors = [run.over_floor[output] for run in variant.runs]
    return f"{min(errors):.2f}–{max(errors):.2f}"


def _common(found: Agreement) -> tuple[str, str]:
    return f"{found.median:.1f} ({found.first_percentile:.1f})", percent(found.same)
