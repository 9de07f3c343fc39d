"""The laws and the bugs that each finds, as a page: `python -m ccelab.properties.catalogue properties/LAWS.md`."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from .law import Law
from .mutants import MUTANTS

HERE = Path(__file__).parent


def laws() -> dict[str, list[Law]]:
    """The laws of each file, by the file's first line."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        module = importlib.import_module(f"ccelab.properties.{path.stem}")
        tests: list[Any] = [test for name, test in vars(module).items() if name.startswith("test_")]
        found[(inspect.getdoc(module) or path.stem).partition("\n")[0]] = [test.law for test in tests]
    return found


def by_name() -> dict[str, Law]:
    """Every law."""
    return {law.name: law for members in laws().values() for law in members}


def page() -> str:
    """Every law with its statement, what it asks of a subject, and the seeded bugs that it kills."""
    sections = laws()
    count = sum(map(len, sections.values()))
    lines = [
        "# The laws, and the bugs that they find",
        "",
        f"Written by `make readme`: {count} laws, {len(MUTANTS)} seeded bugs. Each bug is planted into a kernel or",
        "launcher of the running process (`mutation.py`), where the law beside it must fail (`tests/test_mutants.py`).",
        "A law that names promises is not applicable to a subject that does not make them (`promises.py`).",
    ]
    for title, members in sections.items():
        lines += ["", f"## {title}", "", "| law | statement | promises | finds |", "|---|---|---|---|"]
        for law in members:
            bugs = "; ".join(mutant.bug for mutant in MUTANTS if mutant.law == law.name)
            cells = (f"`{law.name}`", law.summary.replace("|", "\\|"), ", ".join(sorted(law.needs)), bugs)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
