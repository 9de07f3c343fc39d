"""A report for the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .report import Report, Result

LEGEND = (
    "error: ||got - truth|| / ||truth||, against float64.  xfloor: over the two-rounding floor (residual rounded once, "
    "result rounded once, nothing else).\nloss: |error| of the mean, in nats; the second over the kernel's own logits, "
    "without the products' share.  budget: the worst element's error over its a-priori bound; at most 1 passes.\n"
    "tiles: kept for dE and dC.  mass: softmax probability in the skipped tiles of dE, mean over tokens."
)


def show(report: Report, console: Console) -> None:
    """Prints the head, the table of variants and the worst element of each gradient."""
    head, source = report.head, report.provenance
    title = f"{head['name']}: N={head['tokens']} V={head['vocabulary']} D={head['hidden']} {head['dtype']}"
    subtitle = f"{source.device}, torch {source.torch}; true mean loss {report.true_mean_loss:.6f} nats"
    parts: list[Text | Table] = [
        Text(title, style="bold"),
        Text(subtitle),
        _variants(report),
        Text(LEGEND, style="dim"),
        _worst(report),
    ]
    if not report.complete:
        parts.append(Text("stopped before all variants were measured", style="yellow"))
    console.print(Group(*parts))


def _variants(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("variant", no_wrap=True)
    for name in ("loss", "own logits", "dE error", "xfloor", "dC error", "xfloor", "budget", "tiles E/C", "mass"):
        table.add_column(name, justify="right", no_wrap=True)
    timed = any(result.timing for result in report.results)
    for name in ("fwd", "bwd") if timed else ():
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        cells = [result.variant, f"{abs(result.mean_loss_error):.1e}", f"{abs(result.mean_loss_error_own_logits):.1e}"]
        for name in ("d_embeddings", "d_classifier"):
            error, floor = result.outputs[name].normwise, report.floors[name].two_roundings
            cells += [f"{error:.2e}", f"{error / floor:.2f}" if floor else "-"]
        worst = max(m.over_budget or 0.0 for m in result.outputs.values())
        cells.append(f"{worst:.2f}" if result.within_budget else f"[bold red]{worst:.2f} OVER[/]")
        cells += [_share(result), f"{result.filtered_mass.get('mean', 0.0):.4f}"]
        if result.timing:
            cells += [f"{result.timing.forward_over_product:.2f}", f"{result.timing.backward_over_product:.2f}"]
        table.add_row(*cells)
    for name, label in (("one_rounding", "(one rounding)"), ("two_roundings", "(two roundings)")):
        e, c = (getattr(report.floors[key], name) for key in ("d_embeddings", "d_classifier"))
        table.add_row(label, "", "", f"{e:.2e}", "", f"{c:.2e}", "", style="dim")
    return table


def _share(result: Result) -> str:
    shares = []
    for side in "ec":
        kept, skipped = result.tiles[f"kept_{side}"], result.tiles[f"skipped_{side}"]
        shares.append(f"{100 * kept / (kept + skipped):.0f}" if kept + skipped else "-")
    return "/".join(shares) + " %"


def _worst(report: Report) -> Table:
    table = Table(title="Worst element against its budget", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("variant", "output", "place", "got", "truth"):
        table.add_column(name, no_wrap=True)
    for name in ("ulps", "budget", "signed bias"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        for name, m in result.outputs.items():
            if name.startswith("d_"):
                worst = m.worst_element
                place = ",".join(map(str, worst.place))
                got, want = f"{worst.got:.6e} {worst.got_hex}", f"{worst.want:.9e}"
                cells = (f"{worst.ulps:.1f}", f"{worst.over_budget or 0:.2f}", f"{m.signed_bias:+.1e}")
                table.add_row(result.variant, name, place, got, want, *cells)
    return table
