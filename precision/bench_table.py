"""A bench as a table of the README."""

from __future__ import annotations

import textwrap

from .bench import Bench, Place, Row, Status


def bench_table(bench: Bench) -> str:
    """Markdown of a bench of one place: who was measured, beside one cuBLAS product in the same run."""
    (place,) = bench.places
    source = bench.provenance
    assert place.product_ms is not None
    text = (
        f"{place.shape}, bfloat16, a drawn head; {source.device}, torch {source.torch}. Times are medians of "
        f"{bench.repetitions} rounds through all subjects in turn, over one product of {place.product_ms.median:.1f} "
        "ms. MiB are the peak beyond the inputs and the gradients. The loss is |mean loss - truth| in nats."
    )
    lines = [
        "| subject | paper's row | forward | both | MiB | loss error | dE error | dC error |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in place.rows if row.status is Status.measured),
    ]
    return "\n".join([textwrap.fill(text + _missing(place), 120), "", *lines])


def _row(row: Row) -> str:
    assert row.cost is not None
    ratios = (row.cost.forward_over_product.median, row.cost.both_over_product.median)
    cells = [f"`{row.name}`", row.paper or "", *(f"{ratio:.2f}" for ratio in ratios)]
    cells.append(f"{row.cost.beyond_gradients_mib:.0f}")
    cells += [f"{row.errors[name]:.1e}" for name in ("loss", "d_embeddings", "d_classifier")]
    return f"| {' | '.join(cells)} |"


def _missing(place: Place) -> str:
    absent = [f"`{row.name}` ({row.status.value})" for row in place.rows if row.status is not Status.measured]
    return f" Not measured: {', '.join(absent)}." if absent else ""
