"""`ccelab variants`."""

from __future__ import annotations

import textwrap

from rich.console import Console

from ..table import table


def variants() -> None:
    """List the presets and the fields that a flag string may set."""
    from dataclasses import fields

    from ccelab.kernels.variant import LEGAL, PRESETS, Variant, shown

    names = [field.name for field in fields(Variant)]
    width = max(map(len, PRESETS)) + 2
    presets = ["Presets, and how they differ from cce"]
    for preset, variant in PRESETS.items():
        others = (name for name in names if getattr(variant, name) != getattr(Variant(), name))
        text = ", ".join(f"{name}={shown(getattr(variant, name))}" for name in others)
        presets.append(textwrap.fill(f"{preset:<{width}}{text}".rstrip(), 80, subsequent_indent=" " * width))
    legal = table("A flag string is PRESET(,field=value)*", "field", "values", left=2)
    for name, choices in LEGAL.items():
        legal.add_row(name, " | ".join(map(shown, choices)))
    legal.add_row("eps", "2^-12, a decimal, or default: finfo(dtype).eps / 32")
    legal.add_row("eps_e", "the same; default: eps / 4")
    console = Console()
    console.print(*presets, "", legal, "", sep="\n", highlight=False)
    console.print("For instance --variant cce-exact --variant cce,accumulate=hilo,eps=2^-14", highlight=False)
