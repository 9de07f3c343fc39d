"""Imports point one way: tests -> properties -> precision -> {kernels, reference}."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "kernels": set[str](),
    "reference": set[str](),
    "precision": {"kernels", "reference"},
    "properties": {"kernels", "reference", "precision"},
    "tests": {"kernels", "reference", "precision", "properties"},
}


def imported(module: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(module, ast.Import):
        return [alias.name for alias in module.names]
    prefix = "." * module.level + (module.module or "")
    return [f"{prefix}.{alias.name}" for alias in module.names] if prefix == "ccelab" else [prefix]


def violations(source: str, folder: str, depth: int = 0) -> Iterator[str]:
    """What a file of `folder`, `depth` folders below it, imports against the rules."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.ImportFrom) and node.level > depth + 1:
            yield f"line {node.lineno}: a relative import that leaves {folder}/; write `from ccelab.… import`"
        for name in imported(node):
            head, _, rest = name.partition(".")
            if head in MAY_IMPORT:
                yield f"line {node.lineno}: `{name}` is not ours at the top level; write `ccelab.{name}`"
            layer = rest.partition(".")[0]
            if head == "ccelab" and layer != folder and layer not in MAY_IMPORT[folder]:
                yield f"line {node.lineno}: {folder} must not import {name}"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}, {violation}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for violation in violations(path.read_text(), folder, depth=len(path.relative_to(ROOT / folder).parts) - 1)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("reference", "from ccelab.kernels import PRESETS"),
        ("kernels", "import ccelab.reference.problem"),
        ("kernels", "from ccelab import reference"),
        ("precision", "def f():\n    from ccelab.properties.plugin import PROFILES"),
        ("properties", "import kernels"),
        ("properties", "from kernels.variant import Variant"),
        ("properties", "from ..reference import Problem"),
    ],
)
def test_a_planted_violation_is_found(folder: str, source: str) -> None:
    assert list(violations(source, folder))


def test_a_relative_import_within_a_folder_is_allowed() -> None:
    assert not list(violations("from ..problem import Problem", "reference", depth=1))
