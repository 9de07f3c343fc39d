"""Files of this package by what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adder_check import AdderCheck
from .adder_study import AdderStudy
from .bench import Bench
from .exhaustive import ExhaustiveTable
from .files import load_object
from .granularity_study import GranularityStudy
from .report import Report
from .schedule_study import ScheduleStudy
from .sweep import Sweep

Study = Sweep | Bench | ExhaustiveTable | AdderStudy | AdderCheck | ScheduleStudy | GranularityStudy
KINDS: dict[str, type[Study]] = {
    "sweep": Sweep,
    "bench": Bench,
    "exhaustive": ExhaustiveTable,
    "adders": AdderStudy,
    "adder check": AdderCheck,
    "schedules": ScheduleStudy,
    "granularity": GranularityStudy,
}


@dataclass(frozen=True)
class LawReport:
    """What ``pytest properties --law-report`` wrote, of which only a table is shown."""

    content: dict[str, Any]


def read_saved(path: Path) -> Report | Study | LawReport:
    """What `path` holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds none of these.
    """
    found = load_object(path, "report")
    if isinstance(found.get("laws"), list):
        return LawReport(found)
    kind = found.get("kind")
    return KINDS[kind].read(path) if kind in KINDS else Report.read(path)
