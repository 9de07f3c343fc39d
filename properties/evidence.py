"""Committed evidence: law reports cut down to what `findings` shows and what repeats it.

`python -m ccelab.properties.evidence precision/findings REPORT.json...` adds reports to a folder, one file for each
subject, version, dtype and device; those of one such file are parts of one judgement (`-k`), laws of a later part
replace those of an earlier one. A report on our own kernels keeps a line for each law and variant instead, and its
parts may be of other variants.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

KEPT = ("time", "ccelab", "commit", "python", "torch", "triton", "device", "machine")
"""Of the provenance. The command may hold paths of the machine it ran on."""

Row = dict[str, Any]
Evidence = dict[str, Any]


def name_of(report: dict[str, Any]) -> str:
    """A file name, without its ending."""
    own = report["subject"] == "ours"
    version = (
        "" if own else (report["peer version"] or "").partition("+")[0]
    )  # +cpu and the like are said by the device
    place = "cuda" if on_gpu(report) else "cpu"
    if own and place == "cuda":  # parts on different GPUs are not one judgement
        model = re.search(r"[A-Z]+\d+", report["provenance"]["device"])
        place = model[0].lower() if model else place
    parts = [report["subject"], version, *report["dtypes"], place]
    if own and (profile := profile_of(report)) != "exhaustive":
        parts.append(profile)
    less = [f"without-{'-'.join(report['without'])}"] if report["without"] else []
    return "-".join(part for part in (*parts, *less) if part)


def profile_of(report: dict[str, Any]) -> str:
    """Of hypothesis: how many examples a law has."""
    chosen = re.search(r"--hypothesis-profile[= ](\w+)", report["provenance"]["command"])
    return chosen[1] if chosen else "quick"


def on_gpu(report: dict[str, Any]) -> bool:
    return "interpreter" not in report["provenance"]["device"]


def reduced(report: dict[str, Any]) -> Evidence:
    """What the page needs of a law report."""
    rows = {outcome: [r for r in report["laws"] if r["outcome"] == outcome] for outcome in ("pass", "not applicable")}
    return {
        **{key: report[key] for key in ("subject", "peer version", "without", "dtypes", "complete")},
        "provenance": {key: report["provenance"][key] for key in KEPT},
        "passed": {row["name"]: row["examples"] for row in rows["pass"]},
        "not applicable": {row["name"]: row["reason"] for row in rows["not applicable"]},
        "laws": [_failed(row) for row in report["laws"] if row["outcome"] == "fail"],
    }


def own(report: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """The JSON of a report on our own kernels: which variants each law was tried on, how often, how close it came.

    `before` is what an earlier part has found, of other laws or variants.

    Raises:
        ValueError: a law was broken: that is to be mended, not committed.
    """
    rows = [row for row in report["laws"] if row["outcome"] != "not applicable"]
    if broken := sorted({row["name"] for row in rows if row["outcome"] == "fail"}):
        raise ValueError(f"our own kernels break {', '.join(broken)}")
    earlier = before or {"variants": [], "laws": [], "complete": True}
    places = {(row["name"], row["variant"]): row for row in [*earlier["laws"], *rows]}
    head = {key: report[key] for key in ("subject", "dtypes")}
    head["profile"] = profile_of(report)
    head["variants"] = list(dict.fromkeys([*earlier["variants"], *report["variants"]]))
    head["complete"] = report["complete"] and earlier["complete"]
    head["examples"] = sum(row["examples"] for row in places.values())
    head["provenance"] = {key: report["provenance"][key] for key in KEPT}
    kept = ("name", "variant", "examples", "closest")
    lines = ",\n  ".join(
        json.dumps({key: places[place][key] for key in kept}, allow_nan=False) for place in sorted(places)
    )
    return f'{json.dumps(head, indent=1)[:-2]},\n "laws": [\n  {lines}\n ]\n}}\n'


def _failed(row: Row) -> Row:
    failure = row["failure"] and {**row["failure"], "message": plain(row["failure"]["message"])}
    closest = row["closest"] if math.isfinite(row["closest"]) else str(row["closest"])  # JSON has no infinity
    return {
        "name": row["name"],
        "variant": row["variant"],
        "examples": row["examples"],
        "closest": closest,
        "failure": failure,
    }


def plain(message: str) -> str:
    """A message without what pytest adds to it (the expression again), addresses, and folders of the machine."""
    kept = re.split(r"\n *(?:assert |\+ )", message)[0].strip().partition("\n")[0]
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/", "", re.sub(r" at 0x[0-9a-f]+", "", kept))


def merged(one: Evidence | None, other: Evidence) -> Evidence:
    """Two parts of one judgement."""
    if one is None:
        return other
    names = {*other["passed"], *other["not applicable"], *(row["name"] for row in other["laws"])}
    # A part that chose laws by name says nothing of the rest.
    rest = {key: {k: x for k, x in one[key].items() if k not in names} for key in ("passed", "not applicable")}
    laws = [*(row for row in one["laws"] if row["name"] not in names), *other["laws"]]
    return {
        **other,
        "complete": one["complete"] and other["complete"],
        "passed": dict(sorted({**rest["passed"], **other["passed"]}.items())),
        "not applicable": dict(sorted({**rest["not applicable"], **other["not applicable"]}.items())),
        "laws": sorted(laws, key=lambda row: (row["name"], row["variant"])),
    }


def counts(evidence: Evidence) -> Counter[str]:
    """How many laws passed, are broken, and do not apply."""
    broken = {row["name"] for row in evidence["laws"]}
    return Counter({
        "passed": len(evidence["passed"].keys() - broken),
        "broken": len(broken),
        "not applicable": len(evidence["not applicable"].keys() - broken - evidence["passed"].keys()),
    })  # fmt: skip


def add(folder: Path, reports: list[Path]) -> None:
    """Writes the reports into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for report in reports:
        found = json.loads(report.read_text())
        path = folder / f"{name_of(found)}.json"
        before = json.loads(path.read_text()) if path.is_file() else None
        if found["subject"] == "ours":
            path.write_text(own(found, before))
            continue
        text = json.dumps(merged(before, reduced(found)), indent=1, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n")


if __name__ == "__main__":
    add(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
