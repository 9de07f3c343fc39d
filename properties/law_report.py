"""What a run of the laws found, as JSON: a row per law and variant, with the example of each failure.

It is written while the run goes on, so that stopping a long one loses nothing.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ccelab.precision.provenance import provenance

from .cases import DEVICE
from .suite import tally

PAUSE = 3.0
"""Seconds between two writes at least."""


class LawReport:
    """A pytest plugin that writes to `path` what the laws have found so far."""

    def __init__(self, path: Path, judged: dict[str, Any]) -> None:
        self.path, self.judged = path, judged
        self.provenance = asdict(provenance(torch.device(DEVICE)))
        self.reports: list[pytest.TestReport] = []
        self.written = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if dict(report.user_properties).get("law") is None:
            return
        self.reports.append(report)
        if time.monotonic() - self.written > PAUSE:
            self.write(complete=False)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.write(complete=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED))

    def write(self, *, complete: bool) -> None:
        rows = tally(self.reports)
        found = {
            **self.judged,
            "complete": complete,
            "examples": sum(row["examples"] for row in rows),
            "provenance": self.provenance,
            "laws": rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".part")
        beside.write_text(json.dumps(found, indent=1) + "\n")
        beside.replace(self.path)
        self.written = time.monotonic()
