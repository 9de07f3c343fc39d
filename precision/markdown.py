"""The README's tables, written from committed reports: `python -m ccelab.precision.markdown README.md` renews them."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

from ccelab.kernels import PRESETS

from .bench import Bench
from .bench_table import bench_table
from .lessons import report_by_tile
from .plot_stages import draw
from .report import Report, Result

BASELINES = Path(__file__).parent / "baselines"
SHOWN = {
    "gemma-alpaca-bfloat16": "On a drawn head with the statistics of a real one, at the paper's shape",
    "smollm2-bfloat16": "On a real head, that of SmolLM2-135M-Instruct (from a GGUF, 8-bit) on English text",
}
BENCH = "table1-h200"
STAGED, PLOT = "smollm2-bfloat16", "error-by-stage"
ROOT = Path(__file__).resolve().parent.parent
PICTURE = BASELINES.resolve() / "error-by-stage.svg"
END = "<!-- end -->"


def begin(name: str) -> str:
    """The line above the table of a report of `SHOWN`."""
    return f"<!-- {name}: written by `make readme` -->"


def renew(text: str) -> str:
    """`text` with what stands between the marks of each report replaced by its table or sentence.

    Raises:
        ValueError: a mark is missing.
    """
    sections = {name: _section(name, title) for name, title in SHOWN.items()}
    table = bench_table(Bench.read(BASELINES.parent / "benches" / f"{BENCH}.json"))
    for name, section in {**sections, "laws-bfloat16": _laws(), PLOT: _stages(), BENCH: table}.items():
        before, mark, rest = text.partition(begin(name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise ValueError(f"the text needs a line {begin(name)!r} and, below it, {END!r}")
        text = f"{before}{mark}\n{section}\n{END}{after}"
    return text


def _section(name: str, title: str) -> str:
    path = BASELINES / f"{name}.json"
    report, tiles = Report.read(path), Report.read(report_by_tile(path))
    head, source = report.head, report.provenance
    where = f"N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}, {head['dtype']}; {source.device}"
    first = report.results[0]
    loss = (
        f"The mean loss is within {abs(first.mean_loss_error):.1e} of float64's {report.true_mean_loss:.4f}, and "
        f"within {abs(first.mean_loss_error_own_logits):.1e} of float64 over the kernel's own logits."
    )
    text = textwrap.fill(f"{title} ({where}, torch {source.torch}) {_summary(report, tiles)} {loss}", 120)
    return f"{text}\n\n{_table(report)}"


def _laws() -> str:
    """What was tried on our own kernels on GPUs, the latest first; a report with a broken law is not committed."""
    paths = (BASELINES.parent / "laws").glob("ours-bfloat16-*.json")
    runs = sorted((json.loads(path.read_text()) for path in paths), key=lambda run: str(run["provenance"]["time"]))
    told = ["On GPUs, in bfloat16, no law was violated by our kernels:\n"]
    for run in reversed(runs):
        source, names = run["provenance"], [f"`{name}`" for name in run["variants"]]
        text = (
            f"- {source['device']}, torch {source['torch']}, at {source['commit']}: "
            f"{len({row['name'] for row in run['laws']})} laws, {run['examples']} examples (`{run['profile']}`) on "
            f"{'all presets' if set(run['variants']) >= set(PRESETS) else ', '.join(names)}"
        )
        text += "." if run["complete"] else "; stopped before its end."
        told.append(textwrap.fill(text, 120, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(told)


def _stages() -> str:
    """Where errors come from, in a sentence and a picture."""
    report = Report.read(BASELINES / f"{STAGED}.json")
    tables = [table for result in report.results for table in result.stages.values()]
    explained = min(table.explained for table in tables if table.explained is not None)
    share, filtered = (report.result("cce").stages["d_embeddings"].share(s) for s in ("add_increment", "is_live"))
    text = (
        f"Why they are off: {100 * share:.0f} % of the squared error of dE in `cce` come from adding up in bf16, "
        f"{100 * filtered:.0f} % from the filter. The "
        f"kernels were emulated stage by stage; on the real head the emulation explains at least "
        f"{100 * explained:.2f} % of the error of every output of every variant."
    )
    return f"{textwrap.fill(text, 120)}\n\n![Share of each stage in the error of dE]({PICTURE.relative_to(ROOT)})"


def _summary(report: Report, tiles: Report) -> str:
    """What sums and filters cost dE, in words."""

    def times(of: Report, name: str) -> str:
        return f"{of.over_floor(of.result(name), 'd_embeddings'):.2f}"

    kahan = times(tiles, "cce-no-filter,accumulate=kahan,increment=tile")
    return (
        "sums in bf16 of one tile after the other, as the paper's kernel has them (`increment=tile`), put dE "
        f"{times(tiles, 'cce-no-filter,increment=tile')} times as far from the truth as two roundings would, Kahan's "
        f"{kahan} times. The presets below let the tensor core sum what is kept of a group first: theirs come to "
        f"{times(report, 'cce-no-filter')} and {times(report, 'cce-kahan-full-e')}, with the filter to "
        f"{times(report, 'cce')} and {times(report, 'cce-kahan')}; fp32 sums to "
        f"{times(report, 'cce-exact')}."
    )


def _table(report: Report) -> str:
    floors = (f"{report.floors[name].two_roundings:.2e}" for name in ("d_embeddings", "d_classifier"))
    lines = [
        "| variant | dE error | × floor | dC error | × floor | worst / budget | kept dE, dC | forward | backward |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(result, report) for result in report.results),
        f"| two roundings | {' | | '.join(floors)} | | | | | |",
    ]
    return "\n".join(lines)


def _row(result: Result, report: Report) -> str:
    cells = [f"`{result.variant}`"]
    for name in ("d_embeddings", "d_classifier"):
        cells += [f"{result.outputs[name].normwise:.2e}", f"{report.over_floor(result, name):.2f}"]
    cells.append(f"{result.closest:.2f}")
    kept = (result.kept(name) or 0.0 for name in ("d_embeddings", "d_classifier"))
    cells.append(", ".join(f"{100 * share:.0f} %" for share in kept))
    t = result.timing
    cells += ["", ""] if t is None else [f"{t.forward_over_product:.2f}", f"{t.backward_over_product:.1f}"]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(renew(readme.read_text()))
    PICTURE.write_text(draw(Report.read(BASELINES / f"{STAGED}.json")))
