"""A report for the terminal."""

from __future__ import annotations

import re

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .names import GRADIENTS
from .report import Report, Result
from .table import table
from .verdict import Grade

LEGEND = (
    "error: ||got - truth|| / ||truth|| against float64.  x: over the two-rounding floor (the residual rounded once, "
    "the result rounded once, nothing else).  budget: the worst element's error over its a-priori bound; at most 1 "
    "passes.  kept: percent of tiles (of segments, cce-segment) for dE/dC.  mass: softmax probability of what dE "
    "skips, mean over tokens.\nmean: |error| of the mean loss in nats.  logits: the same against float64 over the "
    "kernel's own logits, which leaves out the error of the products.  bias: sum of (got - truth) sign(truth) over sum "
    "of |truth|; 0 for fair rounding."
)
WITH_BIAS = {**GRADIENTS, "d_bias": "db"}


def show(report: Report, console: Console) -> None:
    """Prints the head and the tables of a report, at most 80 columns wide."""
    head, source = report.head, report.provenance
    title = f"{head['name']}: N={head['tokens']} V={head['vocabulary']} D={head['hidden']} {head['dtype']}"
    title += f", softcap {head['softcap']}" if head.get("softcap") else ""
    title += ", with a bias" if head.get("bias") else ""
    subtitle = f"{source.device}, torch {source.torch}; true mean loss {report.true_mean_loss:.6f}"
    parts: list[Text | Table] = [Text(title, style="bold"), Text(subtitle), _errors(report), _loss(report)]
    if any(result.timing for result in report.results):
        parts.append(_time(report))
    parts += [_worst(report), Text(LEGEND, style="dim"), *_verdicts(report)]
    if not report.complete:
        parts.append(Text("stopped before all variants were measured", style="yellow"))
    spaced = (piece for part in parts for piece in ((part, "") if isinstance(part, Table) else (part,)))
    console.print(Group(*spaced))


def _verdicts(report: Report) -> list[Text]:
    """A line per variant, and one per reason."""
    colours = {Grade.passed: "green", Grade.limited: "yellow", Grade.inconclusive: "magenta", Grade.failed: "bold red"}
    lines = []
    for result in report.results:
        if result.verdict is not None:
            lines.append(
                Text.assemble((result.verdict.grade.value, colours[result.verdict.grade]), f": {result.variant}")
            )
            lines += [Text(f"  {reason}", style="dim") for reason in result.verdict.reasons]
    return lines


def _short(x: float, spec: str = ".1e") -> str:
    """Scientific notation without the exponent's leading zero."""
    return re.sub(r"e([+-])0", r"e\1", f"{x:{spec}}")


def _name(result: Result) -> str:
    """The variant, one flag a line: a column as wide as a long flag string would cut the numbers."""
    return result.variant.replace(",", ",\n ")


def _errors(report: Report) -> Table:
    bias = ["db"] if any("d_bias" in result.outputs for result in report.results) else []
    rows = table("Error of the gradients", "variant", "dE", "x", "dC", "x", *bias, "budget", "kept", "mass")
    for result in report.results:
        cells = [_name(result)]
        for name in GRADIENTS:
            times = report.over_floor(result, name)
            cells += [_short(result.outputs[name].normwise, ".2e"), "-" if times is None else f"{times:.2f}"]
        cells += [_short(result.outputs["d_bias"].normwise, ".2e")] if bias else []
        worst = f"{result.closest:.2f}"
        cells.append(worst if result.within_budget else f"[bold red]{worst} OVER[/]")
        rows.add_row(*cells, _share(result), f"{result.filtered_mass.get('mean', 0.0):.3f}")
    for name, label in (("one_rounding", "(one rounding)"), ("two_roundings", "(two roundings)")):
        e, c = (getattr(report.floors[key], name) for key in GRADIENTS)
        rows.add_row(label, _short(e, ".2e"), "", _short(c, ".2e"), style="dim")
    return rows


def _share(result: Result) -> str:
    shares = (result.kept(output) for output in GRADIENTS)
    return "/".join("-" if share is None else f"{100 * share:.0f}" for share in shares)


def _loss(report: Report) -> Table:
    columns = ("mean", "logits", "rms", "max", "lse max", "bias dE", "bias dC")
    rows = table("Loss (of the mean, and per token), lse, and bias of the gradients", "variant", *columns)
    for result in report.results:
        token, lse = result.outputs["loss"], result.outputs["lse"]
        errors = (result.mean_loss_error, result.mean_loss_error_own_logits, token.rms, token.largest, lse.largest)
        biases = (result.outputs[name].signed_bias for name in GRADIENTS)
        rows.add_row(_name(result), *(_short(abs(x)) for x in errors), *(_short(x, "+.1e") for x in biases))
    return rows


def _time(report: Report) -> Table:
    """Ratios to one product of the same shape."""
    rows = table("Time over one cuBLAS product", "variant", "forward", "backward", "forward MiB", "backward MiB")
    for result in report.results:
        if t := result.timing:
            ratios = f"{t.forward_over_product:.3f}", f"{t.backward_over_product:.1f}"
            rows.add_row(_name(result), *ratios, f"{t.forward_mib:.2f}", f"{t.backward_mib:.0f}")
    return rows


def _worst(report: Report) -> Table:
    columns = ("variant", "", "place", "got", "bits", "truth", "ulps", "budget")
    rows = table("Worst element against its budget", *columns, left=3)
    for result in report.results:
        for name, label in WITH_BIAS.items():
            if name not in result.outputs:
                continue
            worst = result.outputs[name].worst_element
            place, got, want = ",".join(map(str, worst.place)), _short(worst.got, ".4e"), _short(worst.want, ".4e")
            cells = (
                f"{worst.ulps:.1f}" if worst.ulps < 1e5 else _short(worst.ulps, ".0e"),
                f"{worst.over_budget or 0:.2f}",
            )
            rows.add_row(_name(result), label, place, got, worst.got_hex, want, *cells)
    return rows
