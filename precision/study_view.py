"""Studies and law reports for the terminal."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from rich.console import Console

from .adder_check import AdderCheck
from .adder_study import AdderStudy
from .exhaustive import ExhaustiveTable
from .granularity_study import GranularityStudy
from .names import GRADIENTS
from .schedule_study import ScheduleStudy
from .table import table


def show_exhaustive(study: ExhaustiveTable, console: Console) -> None:
    rows = table(f"Every input: {study.provenance.device}", "function", "tried", "max ulp", "bias", "worst input")
    for f in study.functions:
        tried = f"{f.inputs}{'' if f.exhaustive else ' of more'}"
        rows.add_row(f.name, tried, f"{f.max_ulp:.2f}", f"{f.mean_bias:+.1e}", f.worst_input)
    console.print(rows)


def show_adders(study: AdderStudy, console: Console) -> None:
    rows = table("Error of a dot product, in u sum |terms|", "machine", "terms", "D", "bias", "rms", "largest", left=2)
    for p in study.points:
        rows.add_row(p.machine, p.terms, str(p.length), f"{p.bias:+.2f}", f"{p.rms:.2f}", f"{p.largest:.2f}")
    console.print(rows)


def show_adder_check(check: AdderCheck, console: Console) -> None:
    tiles = list(check.rows[0].unlike_model) if check.rows else []
    columns = ("operands", "kind", "D", "dots", *(f"unlike, {tile}" for tile in tiles), "not nearest")
    rows = table(f"Dots that differ from the adder's model: {check.provenance.device}", *columns, left=2)
    for r in check.rows:
        unlike = (str(count) for count in r.unlike_model.values())
        rows.add_row(r.dtype, r.kind, str(r.length), str(r.dots), *unlike, str(r.unlike_nearest))
    console.print(rows)


def show_schedules(study: ScheduleStudy, console: Console) -> None:
    """Per head and variant, least and largest over the schedules."""
    for spread in study.heads:
        head = spread.head
        title = f"Over the schedules: {head['name']}, N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}"
        rows = table(title, "variant", "repeats", "dE x floor", "dC x floor", "same dE", "same dC")
        for variant in spread.variants:
            errors = {name: [run.over_floor[name] for run in variant.runs] for name in GRADIENTS}
            rows.add_row(
                variant.variant,
                "bit for bit" if variant.deterministic else "[bold red]no[/]",
                *(f"{min(found):.2f} to {max(found):.2f}" for found in errors.values()),
                *(f"{100 * variant.agreement[name].same:.0f} %" for name in GRADIENTS),
            )
        console.print(rows)


def show_granularity(study: GranularityStudy, console: Console) -> None:
    """Errors over the gradient, of dE and dC."""
    head = study.head
    title = f"What a filter loses: {head['name']}, N={head['tokens']}, V={head['vocabulary']}, D={head['hidden']}"
    columns = ("keeps", "eps", "kept", "read", *(f"{g}{tail}" for tail in ("", ", tail") for g in GRADIENTS.values()))
    rows = table(title, *columns, left=1)
    for p in study.points:
        errors = (f"{found[g]:.1e}" for found in (p.dropped, p.with_tail) for g in GRADIENTS)
        rows.add_row(p.granularity, f"2^{p.power}", f"{p.entries:.0f}", f"{p.gathered:.0f}", *errors)
    console.print(rows)


def show_laws(report: dict[str, Any], console: Console) -> None:
    """Per law: examples over all variants, and how near to its tolerance the nearest came."""
    laws: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in report["laws"]:
        laws[str(row.get("name"))].append(row)
    rows = table(f"Laws on {report.get('subject')}", "law", "variants", "examples", "closest")
    for name, found in laws.items():
        closest = [float(row["closest"]) for row in found if row.get("closest") is not None]
        broken = [str(row.get("variant")) for row in found if row.get("failure")]
        rows.add_row(
            name + (f"\n [bold red]broken:[/] {', '.join(broken)}" if broken else ""),
            str(len(found)),
            str(sum(int(row.get("examples") or 0) for row in found)),
            f"{max(closest):.3f}" if closest else "-",
        )
    console.print(rows)
    if not report.get("complete", True):
        console.print("stopped before its end", style="yellow")
