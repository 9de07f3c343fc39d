"""The frontier of filters in FINDINGS.md: what granularity, order, tail and threshold cost, and what they lose."""

from __future__ import annotations

from collections.abc import Iterator

from ccelab.kernels import Variant

from .bench import Bench, Row

POWERS = (-8, -10, -12, -14, -16, -18)
FAMILIES = {
    "tiles, by mean logit": "cce",
    "tiles, by mean probability": "cce,order=mean_prob",
    "tiles, a tail": "cce-no-sort,tail=rank1",
    "segments": "cce-segment,tail=drop",
    "segments, a tail": "cce-segment",
}
E, C = "d_embeddings", "d_classifier"


def frontier(bench: Bench, peers: Bench) -> Iterator[str]:
    """A table, and what follows from it; `peers` has other people's rows."""
    rows = points(bench)
    yield "\n".join(
        [
            f"| eps | {' | '.join(FAMILIES)} |",
            f"|---|{'---|' * len(FAMILIES)}",
            *(f"| 2^{e} | {' | '.join(_cell(rows[name, e]) for name in FAMILIES)} |" for e in POWERS),
        ]
    )
    best = [(name, e) for name, e in rows if not any(_beats(other, rows[name, e]) for other in rows.values())]
    tailed = [rows["segments, a tail", e] for e in POWERS]
    others = [row for row in peers.places[0].rows if row.cost is not None and is_peer(row)]
    assert all(any(_beats(ours, theirs) for ours in tailed) for theirs in others)
    shown = (
        f"{name} at {', '.join(f'2^{e}' for n, e in best if n == name)}"
        for name in FAMILIES
        if any(n == name for n, _ in best)
    )
    yield (
        f"Products of forward and backward pass, and errors of dE and dC in thousandths ({bench.places[0].shape}, "
        f"{bench.provenance.device}; whole tiles with sums in bf16). Nothing beats, in time and in both errors, "
        + "; ".join(shown)
        + f". Every other implementation that was measured there ({', '.join(row.name for row in others)}) is beaten "
        "in all three by segments with a tail. A tail for whole tiles needs their natural order, in which more are "
        "live, and gives back little, since tiles drop little; with sums in bf16 it can hardly be seen."
    )


def points(bench: Bench) -> dict[tuple[str, int], Row]:
    """By family and power of two."""
    rows = {row.name: row for row in bench.places[0].rows}
    return {
        (name, e): rows[str(Variant.parse(f"{flags},eps=2^{e}"))] for name, flags in FAMILIES.items() for e in POWERS
    }


def is_peer(row: Row) -> bool:
    """Whether it is not one of our variants."""
    return not row.name.startswith("cce")


def _cell(row: Row) -> str:
    return f"{row.products:.2f}: {1000 * row.errors[E]:.1f}, {1000 * row.errors[C]:.1f}"


def _beats(one: Row, other: Row) -> bool:
    """As far as the table shows it."""
    mine, theirs = ((row.products, *(float(f"{row.errors[x]:.1e}") for x in (E, C))) for row in (one, other))
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))
