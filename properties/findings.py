"""The page of laws that peers break: `python -m ccelab.properties.findings precision/FINDINGS.md`.

Everything on it is read from the reports in precision/findings (`evidence`), from `causes`, and from `predictions`.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccelab.precision import report
from ccelab.precision.lessons import lessons

from . import catalogue
from .causes import CAUSES, PEERS, Cause
from .evidence import Evidence, Row, counts, on_gpu
from .predictions import OURS, PREDICTED, Prediction

FOLDER = Path(report.__file__).parent / "findings"
UNKNOWN = "cause unknown"
HEAD = """\
# Findings

What the committed reports say: first of Cut Cross-Entropy and its variants, then of the laws that other
implementations break. Written by `make readme`.

## What was learned
"""
INTRO = """\
## Laws that other implementations break

Written by `python -m ccelab.properties.findings precision/FINDINGS.md` from the law reports in `precision/findings`.
A report comes from `pytest --pyargs ccelab.properties --subject S --dtype T --law-report R.json` and
`python -m ccelab.properties.evidence precision/findings R.json`; `--without softcap` keeps a defect from hiding others.
Where fewer laws are told of than elsewhere, the others were not tried: the run was cut short, or chose laws by name.

A law is a statement about one problem (`properties/`); a subject breaks it when an example is found on which it does
not hold. Outputs are held to error budgets computed from the input; those of peers are the budgets of fp32 logits and
fp32 sums (of Apple's filtering presets, those of the filter and sums that they name). A law that needs what a subject
does not promise is not applicable and counts for nothing. What a peer decided deliberately or documents is marked "by
design": there the number says what the decision costs.

A command repeats the smallest example found, from the root of a checkout, with the peer's package importable
(`pip install`, or its source on PYTHONPATH in the version named). Where it says `--device cpu`, Triton kernels run in
Triton's interpreter: fp32 and fp16 are computed there as the kernel says (exponentials are numpy's, so that an error
near its budget says little of a GPU), bf16 is not, so no peer with Triton kernels is judged in bf16 there
(`properties/adapters/interpreted.py`).

On a GPU Apple's runs with TORCH_COMPILE_DISABLE=1, which spares a compilation for every shape: all that it compiles in
these calls is an argsort of the mean logits and the softcap of the targets' logits. PyTorch answers a wrong target with
an assertion that ends the process's use of the GPU, so that law is left out.
"""


@dataclass
class Finding:
    """A cause, or a law of unknown cause, and the failures that it explains."""

    title: str
    cause: Cause | None
    failures: list[tuple[str, Evidence, Row]] = field(default_factory=list)  # the name of the evidence file with each

    @property
    def laws(self) -> list[str]:
        return sorted({row["name"] for _, _, row in self.failures})

    @property
    def on_hardware(self) -> bool:
        return any(on_gpu(one) for _, one, _ in self.failures)

    @property
    def smallest(self) -> tuple[str, Evidence, Row]:
        """The failure to show: on a GPU, fewest numbers and options, the largest error, the plainest subject."""
        return min(self.failures, key=lambda f: (not on_gpu(f[1]), *_size(f[2]), len(f[0]), f[0]))

    @property
    def largest(self) -> float:
        return max(float(row["closest"]) for _, _, row in self.failures)


def _size(row: Row) -> tuple[float, int, float, str]:
    spec = spec_of(row)
    numbers = spec["n"] * spec["v"] * spec["d"] if spec else float("inf")
    return numbers, len(options(spec)), -_ratio(row), row["name"]


def spec_of(row: Row) -> dict[str, Any]:
    """The smallest example found; empty where none was kept."""
    return row["failure"]["spec"] if row["failure"] else {}


def evidence(folder: Path = FOLDER) -> dict[str, Evidence]:
    """The committed reports, by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def findings(reports: dict[str, Evidence]) -> dict[str, list[Finding]]:
    """Of each peer; failures of one cause are one finding, whatever the version, the dtype and the law."""
    found: dict[str, dict[str, Finding]] = {}
    for name, one in reports.items():
        mine = found.setdefault(PEERS[one["subject"]], {})
        for row in one["laws"]:
            cause = cause_of(one, row)
            title = cause.title if cause else f"`{row['name']}`: {UNKNOWN}"
            mine.setdefault(title, Finding(title, cause)).failures.append((name, one, row))
    return {peer: sorted(mine.values(), key=_order) for peer, mine in found.items()}


def _order(finding: Finding) -> tuple[bool, int]:
    """As in `CAUSES`, what is by design after the rest, unknown causes last."""
    if finding.cause is None:
        return True, len(CAUSES)
    return finding.cause.by_design, CAUSES.index(finding.cause)


def cause_of(one: Evidence, row: Row) -> Cause | None:
    subject, version = one["subject"], one["peer version"] or ""
    causes = (cause for cause in CAUSES if not (cause.on_a_cpu and on_gpu(one)))
    return next((cause for cause in causes if cause.explains(subject, row["name"], version, spec_of(row))), None)


def page(folder: Path = FOLDER) -> str:
    reports = evidence(folder)
    found = findings(reports)
    blocks = [
        HEAD.rstrip(),
        lessons(),
        INTRO.rstrip(),
        "### Summary",
        _summary(reports),
        "## Confirmed on hardware",
        *(list(_sections(found, on_hardware=True)) or ["Nothing yet."]),
        "## Confirmed in Triton's interpreter or on the CPU",
        "Those that are confirmed on hardware are not repeated.",
        *_sections(found, on_hardware=False),
        "## Predicted only",
        "Read in the source, or seen in a script that is no law. A law whose name is missing is not written yet.",
        _predictions(reports),
        "## Found in our own kernels",
        "By the same laws, on an H100. All are fixed, so that no command repeats them.",
        _own(),
    ]
    return "\n\n".join(blocks) + "\n"


def _summary(reports: dict[str, Evidence]) -> str:
    lines = [
        "| subject | version | dtype | judged without | device | passed | broken | not applicable |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in reports.values():
        number = counts(one)
        cells = [
            f"`{one['subject']}`",
            one["peer version"] or "",
            ", ".join(one["dtypes"]),
            ", ".join(one["without"]),
            device_of(one),
            *(str(number[key]) for key in ("passed", "broken", "not applicable")),
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("  ", " "))
    return "\n".join(lines)


def device_of(one: Evidence) -> str:
    """In a word or two."""
    device: str = one["provenance"]["device"]
    if on_gpu(one):
        return device.partition(",")[0]
    return "CPU" if one["subject"].startswith("torch") else "interpreter"


def _sections(found: dict[str, list[Finding]], *, on_hardware: bool) -> Iterator[str]:
    for peer, members in found.items():
        if chosen := [finding for finding in members if finding.on_hardware == on_hardware]:
            yield f"### {peer}"
            for finding in chosen:
                yield from _entry(finding)


def _entry(finding: Finding) -> Iterator[str]:
    name, one, row = finding.smallest
    by_design = " (by design)" if finding.cause and finding.cause.by_design else ""
    yield f"#### {finding.title}{by_design}"
    if finding.cause:
        yield _filled(f"{finding.cause.text} Source: {finding.cause.source}.")
    yield "\n".join([
        *_item(f"seen in: {'; '.join(_seen(finding))}"),
        *_item(f"laws: {', '.join(f'`{law}`' for law in finding.laws)}"),
        *_item(f"smallest example (`{row['name']}`): {example(spec_of(row))}"),
        *_item(f"what was said: {said(row)}"),
        *([f"- error over budget: {_ratio(row):.2g}, at most {finding.largest:.2g} seen"] if _ratio(row) else []),
    ])  # fmt: skip
    yield f"```\n{command(name, one, row)}\n```"


def said(row: Row) -> str:
    """The message of the failure; the statement that does not hold, where the message is pytest's alone."""
    message: str = row["failure"]["message"] if row["failure"] else ""
    if message and not message.startswith("assert "):
        return message
    return f"{message or 'an exception'}; the law says: {_laws()[row['name']].summary}"


def _ratio(row: Row) -> float:
    """Error over budget at the element that the message names; 0 if it names none."""
    found = re.search(r"off by ([^ ,]+), allowed ([^ ,;]+)", said(row))
    if found is None:
        return 0.0
    error, bound = map(float, found.groups())
    return error / bound if bound else float("inf")


_laws = functools.cache(catalogue.by_name)


def _seen(finding: Finding) -> list[str]:
    """Subjects and versions, with their dtypes; for a finding that hardware confirms, where each was seen."""
    dtypes: dict[str, dict[str, None]] = {}
    for _, one, _ in finding.failures:
        where = f" on {'a GPU' if on_gpu(one) else device_of(one)}" if finding.on_hardware else ""
        who = f"`{one['subject']}` {one['peer version']}{where}".replace("on interpreter", "in the interpreter")
        dtypes.setdefault(who, {}).update(dict.fromkeys(one["dtypes"]))
    return [f"{who} ({', '.join(sorted(several))})" for who, several in sorted(dtypes.items())]


def command(name: str, one: Evidence, row: Row) -> str:
    """What repeats the example of a failure; where none was kept, what found one."""
    words = ["pytest --pyargs ccelab.properties --device", "cuda" if on_gpu(one) else "cpu"]
    words += ["--subject", one["subject"], "-k", f"test_{row['name']}"]
    if row["failure"]:
        return " ".join([*words, "--replay", f"precision/findings/{name}"])
    return " ".join([*words, *(f"--dtype {x}" for x in one["dtypes"]), *(f"--without {x}" for x in one["without"])])


def example(spec: dict[str, Any]) -> str:
    """A spec in words."""
    if not spec:
        return "not kept"
    head = f"N={spec['n']}, V={spec['v']}, D={spec['d']}, {spec['dtype']}, family {spec['family']}, seed {spec['seed']}"
    return ", ".join([head, *options(spec)])


def options(spec: dict[str, Any]) -> list[str]:
    """Those that are not at their simplest."""
    if not spec:
        return []
    words = {
        f"bias in {'its dtype' if spec['bias'] == 'storage' else 'fp32'}": spec["bias"] is not None,
        f"softcap {spec['softcap']}": spec["softcap"] is not None,
        f"reduction {spec['reduction']}": spec["reduction"] != "mean",
        "lse": spec["lse"],
        f"rows ignored: {spec['ignored']}": spec["ignored"] > 0,
        f"{spec['upstream']} upstream gradient": spec["upstream"] != "ones",
    }
    return [word for word, said in words.items() if said]


def _predictions(reports: dict[str, Evidence]) -> str:
    lines = []
    for one in PREDICTED:
        broken, passed = tried(one, reports)
        if broken:
            continue
        law = f"law: `{one.law}`." if one.law else ""
        again = f"`{one.command}`" if one.command else ""
        not_so = f"The law passed on {', '.join(passed)}." if passed else ""
        lines += _item(
            " ".join(part for part in (f"{one.peer}: {one.title}. {one.source}.", law, not_so, again) if part)
        )
    return "\n".join(lines)


def tried(one: Prediction, reports: dict[str, Evidence]) -> tuple[list[str], list[str]]:
    """The devices on which the law that a prediction names was broken, and those on which it passed."""
    its = [
        report
        for report in reports.values()
        if on_gpu(report) and report["subject"] == one.subject and one.dtype in report["dtypes"]
        and str(report["peer version"]).startswith(one.version)
    ]  # fmt: skip
    broken = [device_of(report) for report in its if one.law in {row["name"] for row in report["laws"]}]
    return broken, [device_of(report) for report in its if one.law in report["passed"]]


def _own() -> str:
    return "\n".join(line for what, law, cause in OURS for line in _item(f"{law}: {what}. {cause}"))


def _item(text: str) -> list[str]:
    return _wrapped(text, "- ", "  ")


def _filled(text: str) -> str:
    return "\n".join(_wrapped(text, "", ""))


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        text, 120, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
