"""`ccelab variants`."""

from __future__ import annotations

from rich.console import Console

from ..table import table


def variants() -> None:
    """List the presets and the fields that a flag string may set."""
    from dataclasses import fields

    from ccelab.kernels.variant import LEGAL, PRESETS

    names = [field.name for field in fields(PRESETS["cce"])]
    presets = table("Presets", "preset", *names, left=1 + len(names))
    for preset, variant in PRESETS.items():
        values = (getattr(variant, name) for name in names)
        presets.add_row(
            preset, *("default" if v is None else {True: "yes", False: "no"}.get(v, str(v)) for v in values)
        )
    legal = table("A flag string is PRESET(,field=value)*", "field", "values", left=2)
    for name, choices in LEGAL.items():
        legal.add_row(name, " | ".join({True: "yes", False: "no"}.get(v, str(v)) for v in choices))
    legal.add_row("eps", "2^-12, a decimal, or default: finfo(dtype).eps / 32")
    console = Console()
    console.print(presets, "", legal, "", sep="\n")
    console.print("For instance --variant cce-exact --variant cce,accumulate=hilo,eps=2^-14", highlight=False)
