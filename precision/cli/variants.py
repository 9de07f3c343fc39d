"""`ccelab variants`."""

from __future__ import annotations

import textwrap

from rich.console import Console

THRESHOLDS = {
    "eps": "2^-12, a decimal, or default: finfo(dtype).eps / 32",
    "eps_e": "the same; default: eps / 4",
}
MEANINGS = {
    "filter_e": "dE leaves out what is negligible",
    "filter_c": "dC does",
    "order": "of the vocabulary: as it is, by mean logit (paper), by mean probability of some rows",
    "accumulate": "sums in the dtype of storage (paper), compensated there (Kahan), as two such numbers, or in fp32",
    "increment": "a sum takes in what is kept of a group of tiles at once, or of one (paper)",
    "target": "its logit is one of those in the sum, or a product of its own (paper)",
    "granularity": "what is left out: whole tiles (paper), or segments of them",
    "row_order": "of segments, which rows share a block of dE: neighbours, or those that are alike",
    "tail": "what is left out is lost (paper), or given back along one vector",
    "exponentials": "computed again by the backward pass (paper), or stored by the forward pass",
    "eps": "entries are negligible up to this, times what comes from upstream",
    "eps_e": "of segments, the same for dE",
}


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
    values = {name: " | ".join(map(shown, choices)) for name, choices in LEGAL.items()} | THRESHOLDS
    width = max(map(len, values)) + 2
    legal = ["A flag string is PRESET(,field=value)*"]
    for name, text in values.items():
        legal.append(f"{name:<{width}}{text}")
        legal.append(textwrap.indent(textwrap.fill(MEANINGS[name], 80 - width), " " * width))
    console = Console()
    console.print(*presets, "", *legal, "", sep="\n", highlight=False)
    console.print("For instance --variant cce-exact --variant cce,accumulate=hilo,eps=2^-14", highlight=False)
