"""A bench for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from .bench import Bench, Place, Row
from .energy import Energy
from .table import table
from .timing import Spread

NO_TIMES = "Times and memory need a GPU: without one kernels run in Triton's interpreter, and only errors are measured."
LEGEND = (
    "loss: |mean loss - truth| in nats.  dE, dC: ||got - truth|| / ||truth|| against float64; x: over what two "
    "unavoidable roundings cost.  kept: percent of the tiles, or segments, of dE/dC."
)
COSTS = (
    "Times are medians with their quartiles, over one cuBLAS product of the same shape timed right before, all "
    "subjects in turns; a forward pass is that of training.  Memory: the peak beyond the inputs; net: of forward and "
    "backward, less the gradients themselves."
)
ENERGY = (
    "Energy: of a call among many, one right after the other. A GPU at its power limit is as fast as energy allows: "
    "what waits less then draws more, and no time is saved."
)


def show(bench: Bench, console: Console) -> None:
    """Per head the errors, the costs, and what has no numbers and why; the worst ratios where there are several."""
    console.print(f"{bench.provenance.device}, torch {bench.provenance.torch}", style="bold", highlight=False)
    for place in bench.places:
        head = place.head
        cap = f", softcap {head['softcap']}" if head.get("softcap") else ""
        title = f"{head['name']}: {place.shape} {head['dtype']}{cap}; {bench.true_mean(place)}"
        console.print(Text(f"\n{title}", style="bold"))
        _errors(place, console)
        if any(row.cost for row in place.rows):
            _costs(place, console)
        for row in place.rows:
            if row.reason:
                console.print(Text.assemble((f"{row.status}: ", "yellow"), f"{_label(row)}: {row.reason}"))
    if bench.timed and len(bench.places) > 1:
        _worst(bench, console)
    console.print(Text(f"\n{LEGEND}", style="dim"))
    if bench.timed:
        console.print(Text(COSTS, style="dim"))
    if bench.limit_watts is not None:
        console.print(Text(f"{ENERGY} The limit is {bench.limit_watts:.0f} W.", style="dim"))
    if bench.provenance.cuda is None:
        console.print(Text(NO_TIMES, style="yellow"))
    if not bench.complete:
        console.print(Text("stopped before everything was measured", style="yellow"))


def _label(row: Row) -> str:
    return f"{row.name} ({row.paper})" if row.paper else row.name


def _name(row: Row) -> str:
    """One flag a line, and the paper's name below: a wide column would cut the numbers."""
    return row.name.replace(",", ",\n ") + (f"\n {row.paper}" if row.paper else "")


def _errors(place: Place, console: Console) -> None:
    rows = table("Errors", "subject", "loss", "dE", "x", "dC", "x", "kept")
    for row in place.rows:
        if not row.errors:
            continue
        cells = [_name(row), f"{row.errors['loss']:.1e}"]
        for name in ("d_embeddings", "d_classifier"):
            over = row.over_floor.get(name)
            cells += [f"{row.errors[name]:.2e}", "-" if over is None else f"{over:.2f}"]
        rows.add_row(*cells, "/".join(f"{100 * share:.0f}" for share in row.kept.values()) or "-")
    if rows.row_count:
        console.print(rows)


def _costs(place: Place, console: Console) -> None:
    product = f"; product {place.product_ms.median:.3f} ms" if place.product_ms else ""
    rows = table(f"Times in ms, and over one product (x){product}", "subject", "forward", "x", "both", "x")
    memory = table("Memory in MiB", "subject", "forward", "both", "net")
    for row in place.rows:
        if cost := row.cost:
            spreads = (cost.forward_ms, cost.forward_over_product, cost.both_ms, cost.both_over_product)
            peaks = (cost.forward_mib, cost.both_mib, cost.beyond_gradients_mib)
            rows.add_row(_name(row), *map(_spread, spreads))
            memory.add_row(_name(row), *(f"{peak:.1f}" for peak in peaks))
    console.print(rows, memory, sep="\n\n")
    if place.product_energy is not None:
        _energy(place, place.product_energy, console)


def _energy(place: Place, product: Energy, console: Console) -> None:
    title = f"Energy in J, and over one product (x); product {product.joules:.3g} J, {product.watts:.0f} W"
    rows = table(title, "subject", "forward", "x", "both", "x", "W")
    for row in place.rows:
        if row.energy:
            of = (row.energy["forward"], row.energy["both"])
            cells = [text for e in of for text in (f"{e.joules:.3g}", f"{e.joules / product.joules:.3g}")]
            rows.add_row(_name(row), *cells, f"{of[1].watts:.0f}")
    console.print("", rows)


def _spread(found: Spread) -> str:
    """The median, and the quartiles below it."""
    return f"{found.median:.4g}\n{found.first_quartile:.4g}-{found.third_quartile:.4g}"


def _worst(bench: Bench, console: Console) -> None:
    rows = table("Worst ratio to the product over all shapes", "subject", "forward x", "both x")
    forward, both = (bench.worst(what) for what in ("forward_over_product", "both_over_product"))
    for name in forward:
        cells = (f"{ratio:.4g}\n{shape}" for ratio, shape in (found[name] for found in (forward, both)))
        rows.add_row(name.replace(",", ",\n "), *cells)
    console.print("", rows)
