"""A bench: error against time and memory per head, and the worst ratios where heads are many."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..bench import Bench, Cost, Place, Row
from ..bench_view import ENERGY, NO_TIMES
from ..names import GRADIENTS
from ..timing import Spread
from .figure import Figure, Section, Table, number, percent
from .frontier import HOW, frontiers
from .plot import series

COSTS: tuple[tuple[Callable[[Cost], float], str], ...] = (
    (lambda cost: cost.both_over_product.median, "time of forward and backward / product"),
    (lambda cost: cost.both_mib, "MiB of forward and backward, gradients included"),
)


def where(bench: Bench) -> str:
    """What was measured on what."""
    heads = list(dict.fromkeys(f"{place.head['name']}, {place.head['dtype']}" for place in bench.places))
    return f"{'; '.join(heads)}. On {bench.provenance.device}, torch {bench.provenance.torch}."


def sections(bench: Bench) -> list[Section]:
    """The worst ratios first, then a section per head."""
    worst = [_worst(bench)] if bench.timed and len(bench.places) > 1 else []
    return worst + [_section(place, f"head-{k}", bench) for k, place in enumerate(bench.places, 1)]


def _section(place: Place, slug: str, bench: Bench) -> Section:
    found = [
        against_costs(place, "Error against time and memory", bench.provenance.cuda),
        _errors(place),
        _costs(place, bench.repetitions),
        _energy(place, bench.limit_watts),
        _without_numbers(place),
    ]
    intro = f"{place.head['name']}, {place.head['dtype']}; {bench.true_mean(place)}."
    return Section(slug=slug, title=place.shape, intro=intro, figures=[figure for figure in found if figure])


def against_costs(place: Place, title: str, cuda: str | None = None) -> Figure:
    """The error of each gradient against time, and against memory."""
    timed = [
        (row, row.cost) for row in place.rows if row.cost is not None and row.over_floor.keys() >= GRADIENTS.keys()
    ]
    if not timed:
        return Figure(title=title, missing="Nothing was timed." if cuda else NO_TIMES)
    lines = series([_label(row) for row, _ in timed])
    return Figure(
        title=title,
        how=HOW,
        panels=frontiers(
            [([cost(c) for _, c in timed], label) for cost, label in COSTS],
            [row.over_floor for row, _ in timed],
            lines,
        ),
        legend=lines,
    )


def _errors(place: Place) -> Figure | None:
    rows = [
        [
            _label(row),
            number(row.errors["loss"]),
            *(text for name in GRADIENTS for text in (number(row.errors[name]), number(row.over_floor.get(name)))),
            " / ".join(percent(share) for share in row.kept.values()) or "–",
        ]
        for row in place.rows
        if row.errors
    ]
    columns = ("subject", "loss", "dE", "dE × floor", "dC", "dC × floor", "kept dE / dC")
    return _table(
        "Errors",
        "Loss: |mean loss − truth| in nats. dE and dC: distance from float64, as it is and over what two unavoidable "
        "roundings cost. Kept: by the filter, of tiles or segments.",
        columns,
        rows,
    )


def _costs(place: Place, repetitions: int) -> Figure | None:
    rows = []
    for row in place.rows:
        if c := row.cost:
            times = (c.forward_ms, c.both_ms, c.forward_over_product, c.both_over_product)
            memory = (c.forward_mib, c.both_mib, c.beyond_gradients_mib)
            rows.append([_label(row), *map(_spread, times), *map(number, memory)])
    product = f" The product: {_spread(place.product_ms)} ms." if place.product_ms else ""
    columns = (
        "subject", "forward, ms", "both, ms", "forward / product", "both / product", "forward, MiB", "both, MiB",
        "less gradients",
    )  # fmt: skip
    return _table(
        "Costs",
        f"Medians of {repetitions} rounds that go through all subjects in turn, quartiles in brackets. Each call is "
        f"over the cuBLAS product E·Cᵀ timed right before it.{product} A forward pass is that of training: it keeps, "
        "and may compute, what the backward pass needs. Memory is the peak beyond the inputs.",
        columns,
        rows,
    )


def _energy(place: Place, limit_watts: float | None) -> Figure | None:
    product = place.product_energy
    if product is None:
        return None
    rows = [
        [
            _label(row),
            *(text for e in row.energy.values() for text in (number(e.joules), number(e.joules / product.joules))),
            *(number(e.watts) for e in row.energy.values()),
        ]
        for row in place.rows
        if row.energy
    ]
    limit = "" if limit_watts is None else f" of {number(limit_watts)} W"
    columns = ("subject", "forward, J", "forward / product", "both, J", "both / product", "forward, W", "both, W")
    return _table(
        "Energy",
        f"{ENERGY} The product takes {number(product.joules)} J at {number(product.watts)} W{limit}.",
        columns,
        rows,
    )


def _without_numbers(place: Place) -> Figure | None:
    rows = [[_label(row), row.status.value, row.reason] for row in place.rows if row.reason]
    how = "An answer that is no nearer to the truth than zeros is refused: nothing is timed that was not checked."
    return _table("What has no numbers, or no times", how, ("subject", "", "reason"), rows, frozenset({0, 1, 2}))


def _worst(bench: Bench) -> Section:
    forward, both = (bench.worst(what) for what in ("forward_over_product", "both_over_product"))
    rows = [
        [name, number(ratio), shape, number(both[name][0]), both[name][1]] for name, (ratio, shape) in forward.items()
    ]
    columns = ("subject", "forward / product", "at", "both / product", "at")
    how = "The largest median ratio of each subject, and the shape where it is: a cliff would show here."
    figure = _table("Worst ratio over all shapes", how, columns, rows, frozenset({0, 2, 4}))
    return Section(slug="worst", title="Worst ratios", intro="", figures=[figure] if figure else [])


def _table(
    title: str,
    how: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: frozenset[int] = frozenset({0}),
) -> Figure | None:
    """A figure that is a table; None where it has no rows."""
    if not rows:
        return None
    table = Table(title=title, columns=columns, rows=rows, words=words)
    return Figure(title=title, how=how, tables=[table], open_tables=True)


def _label(row: Row) -> str:
    return f"{row.name} ({row.paper})" if row.paper else row.name


def _spread(found: Spread) -> str:
    return f"{number(found.median, 4)} ({number(found.first_quartile, 4)}–{number(found.third_quartile, 4)})"
