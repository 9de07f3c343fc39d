"""The README's tables, written from committed reports: `python -m ccelab.precision.markdown README.md` renews them."""

from __future__ import annotations

import sys
from pathlib import Path

from .report import Report, Result

BASELINES = Path(__file__).parent / "baselines"
BEGIN, END = "<!-- tables: made by `make readme` from precision/baselines -->", "<!-- end of tables -->"
SHOWN = {
    "gemma-alpaca-bfloat16": "A planted head of the paper's shape",
    "smollm2-bfloat16": "A real head, SmolLM2-135M",
}


def tables() -> str:
    """One table per report of `SHOWN`, each under a line that says what was measured and where."""
    return "\n\n".join(_table(title, Report.read(BASELINES / f"{name}.json")) for name, title in SHOWN.items())


def renew(text: str) -> str:
    """`text` with what stands between the marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text needs a line {BEGIN!r} and, below it, {END!r}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _table(title: str, report: Report) -> str:
    head, source, floors = report.head, report.provenance, report.floors
    first = report.results[0]
    lines = [
        f"{title}: N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}, on "
        f"{source.device} and torch {source.torch}. Mean loss within {abs(first.mean_loss_error):.1e} of float64's "
        f"{report.true_mean_loss:.4f}, and within {abs(first.mean_loss_error_own_logits):.1e} of float64 over the "
        "kernel's own logits.",
        "",
        "| variant | dE error | × floor | dC error | × floor | worst / budget | tiles dE, dC | forward | backward |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result, report) for result in report.results),
        f"| two roundings | {floors['d_embeddings'].two_roundings:.2e} | | {floors['d_classifier'].two_roundings:.2e} "
        "| | | | | |",
    ]
    return "\n".join(lines)


def _row(result: Result, report: Report) -> str:
    cells = [f"`{result.variant}`"]
    for name in ("d_embeddings", "d_classifier"):
        error = result.outputs[name].normwise
        cells += [f"{error:.2e}", f"{error / report.floors[name].two_roundings:.2f}"]
    cells.append(f"{max(m.over_budget or 0.0 for m in result.outputs.values()):.2f}")
    kept = (100 * result.tiles[f"kept_{s}"] / (result.tiles[f"kept_{s}"] + result.tiles[f"skipped_{s}"]) for s in "ec")
    cells.append(", ".join(f"{share:.0f} %" for share in kept))
    t = result.timing
    cells += ["", ""] if t is None else [f"{t.forward_over_product:.2f}", f"{t.backward_over_product:.1f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(renew(readme.read_text()))
