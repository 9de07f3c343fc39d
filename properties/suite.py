"""The suite as pytest sees it: which law is tried on which variants, and what came of it."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccelab.kernels import Variant, backend
from ccelab.kernels.variant import named

from . import plugin
from .cases import DEVICE, SMALL
from .law import Bench, Law
from .promises import PROMISES
from .spec import Spec
from .subject import Subject, load, version


def benches(law: Law, config: pytest.Config, failures: Path) -> list[Any]:
    """The parameters of a law's test: a bench per variant, skipped with the reason where the law does not apply.

    Raises:
        ValueError: an option names a variant or a subject that does not exist.
    """
    subject = judged(config)
    replay = plugin.option(config, "--replay")
    spec = Spec.example(replay, law.name) if isinstance(replay, Path) else None
    parameters = []
    for variant in chosen(law, config, subject):
        bench = Bench(subject, variant, failures, spec)
        reason = law.refusal(subject, variant)
        if spec is None and replay is not None:
            reason = f"{replay} holds no example of it"
        marks = [pytest.mark.skip(reason=f"not applicable: {reason}")] if reason else []
        parameters.append(pytest.param(bench, id=str(variant), marks=marks))
    return parameters


def judged(config: pytest.Config) -> Subject:
    """The subject that is asked for, less the promises that it is to be judged without.

    Raises:
        ValueError: there is no such subject, or no such promise.
    """
    without: list[str] = plugin.option(config, "--without") or []  # type: ignore[assignment]
    if unknown := set(without) - PROMISES.keys():
        raise ValueError(f"no promise {', '.join(sorted(unknown))}; known are {', '.join(PROMISES)}")
    subject = load(str(plugin.option(config, "--subject")))
    return replace(subject, promises=subject.promises - set(without))


def variants_named(config: pytest.Config) -> list[str]:
    """What --variant says."""
    return plugin.option(config, "--variant") or []  # type: ignore[return-value]


def described(config: pytest.Config) -> dict[str, object]:
    """Who is judged as what, for the law report.

    Raises:
        ValueError: as `judged`, or an option that does not go with the others or is no file of an example.
        OSError: there is no such file.
    """
    subject = judged(config)
    names = variants_named(config)
    named(names)  # refuses what is none
    if names and subject.budget is not None:
        raise ValueError(
            f"--variant {names[0]}: a variant is one of our kernels, and {subject.name} is judged by the budget of "
            f"{subject.budget}; leave --variant out"
        )
    if isinstance(replay := plugin.option(config, "--replay"), Path):
        try:
            Spec.example(replay, "")
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"--replay {replay} is no example that a failure saved, and no law report") from None
    return {
        "subject": subject.name,
        "peer version": version(subject),
        "without": plugin.option(config, "--without") or [],
        "dtypes": plugin.option(config, "--dtype") or ["all"],
        "variants": plugin.option(config, "--variant") or "each law's own",
    }


def chosen(law: Law, config: pytest.Config, subject: Subject) -> list[Variant]:
    """The variants asked for; else the law's own; a subject with one budget is one variant."""
    names = variants_named(config)
    if not names:
        return [subject.budget] if subject.budget is not None else [Variant.parse(name) for name in law.variants]
    return named(names)


def header(config: pytest.Config) -> list[str]:
    """What is judged, and by which versions on what."""
    variants = ", ".join(variants_named(config)) or "those that each law needs"
    without: list[str] = plugin.option(config, "--without") or []  # type: ignore[assignment]
    less = f" without {', '.join(without)}" if without else ""
    machine = f"torch {torch.__version__}, Python {platform.python_version()}"
    return [
        f"ccelab: subject {plugin.option(config, '--subject')}{less}; variants: {variants}",
        f"ccelab: {backend.describe(torch.device(DEVICE))}, {machine}",
        f"ccelab: schedule {SMALL}",
    ]


def tally(reports: Iterable[pytest.TestReport]) -> list[dict[str, Any]]:
    """One row per law and variant: outcome, reason, examples, closest approach to the budget, tiles, the failure."""
    rows = []
    for report in reports:
        properties = dict(report.user_properties)
        law: Any = properties.get("law")
        if law is None or (report.passed and report.when != "call"):
            continue
        seen: Any = properties.get("seen", {"examples": 0, "closest": 0.0, "tiles": {}, "failure": None})
        outcome = {"passed": "pass", "failed": "fail", "skipped": "not applicable"}[report.outcome]
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ").removeprefix("not applicable: ")
        rows.append({**law, "outcome": outcome, "reason": reason, **seen})
    return sorted(rows, key=lambda row: (row["name"], row["variant"]))


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """A line per law, then the reasons of what did not apply."""
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'law':{width}}  pass fail  n/a  examples  closest to budget"]
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        counts = [sum(row["outcome"] == outcome for row in mine) for outcome in ("pass", "fail", "not applicable")]
        closest = max(mine, key=lambda row: float(row["closest"]))
        near = f"{closest['closest']:.2f} ({closest['variant']})" if closest["closest"] else ""
        examples = sum(row["examples"] for row in mine)
        lines.append(f"{name:{width}}  {counts[0]:4d} {counts[1]:4d} {counts[2]:4d}  {examples:8d}  {near}".rstrip())
    for reason in dict.fromkeys(row["reason"] for row in rows if row["reason"]):
        count = sum(row["reason"] == reason for row in rows)
        lines.append(f"not applicable {count} times: {reason}")
    total = sum(row["examples"] for row in rows)
    laws = len({row["name"] for row in rows})
    lines.append(f"{laws} law{'' if laws == 1 else 's'}, {total} example{'' if total == 1 else 's'}")
    return lines
