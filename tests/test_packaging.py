"""The files that install ccelab agree with each other and with the README."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ccelab.properties.adapters import NAMED

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(pin.name): pin.specifier
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if (text := line.partition("#")[0].strip())
    for pin in [Requirement(text)]
}
INSTALLED_BY_MAKE = [
    *PROJECT["dependencies"],
    *(r for e in ("test", "real") for r in PROJECT["optional-dependencies"][e]),
]


@pytest.mark.parametrize("text", INSTALLED_BY_MAKE)
def test_the_pin_lies_in_the_range(text: str) -> None:
    requirement = Requirement(text)
    (pin,) = PINS[canonicalize_name(requirement.name)]
    assert pin.operator == "=="
    assert pin.version in requirement.specifier


def test_every_pin_is_exact() -> None:
    assert [name for name, pin in PINS.items() if [p.operator for p in pin] != ["=="]] == []


def test_triton_is_the_one_that_torch_asks_for() -> None:
    """torch's CUDA build requires one Triton exactly; its CPU build does not say, so the pair is written out here."""
    assert (str(PINS[canonicalize_name("torch")]), str(PINS[canonicalize_name("triton")])) == ("==2.13.0", "==3.7.1")


def test_this_python_is_in_the_range() -> None:
    assert Requirement(f"ccelab{PROJECT['requires-python']}").specifier.contains(
        ".".join(map(str, sys.version_info[:3]))
    )


def test_every_folder_with_code_is_installed() -> None:
    mapping = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    roots = ("kernels", "reference", "precision", "properties")
    folders = {str(path.parent.relative_to(ROOT)) for root in roots for path in (ROOT / root).rglob("*.py")}
    assert folders <= set(mapping["package-dir"].values())
    assert set(mapping["packages"]) == set(mapping["package-dir"])
    for folder in mapping["package-dir"].values():
        assert (ROOT / folder / "py.typed").is_file() or (ROOT / folder).parent != ROOT


def test_the_entry_points_are_installed() -> None:
    """The metadata of an editable install is a copy: this fails where it is older than pyproject.toml."""
    (plugin,) = metadata.entry_points(group="pytest11", name="ccelab")
    assert plugin.value == PROJECT["entry-points"]["pytest11"]["ccelab"]
    (subjects,) = metadata.entry_points(group="ccelab.subjects", name="ccelab")
    assert subjects.load() is NAMED
    (command,) = metadata.entry_points(group="console_scripts", name="ccelab")
    assert command.value == PROJECT["scripts"]["ccelab"]


def test_the_readme_names_real_commands() -> None:
    """`make X` in the README exists in the Makefile, and the two that matter are both there."""
    mentioned = set(re.findall(r"\bmake (?:[A-Z]+=\S+ )*([a-z]+)\b", code_of((ROOT / "README.md").read_text())))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"report", "test"} <= mentioned <= targets


def code_of(markdown: str) -> str:
    """The fenced blocks and the code spans of a Markdown text."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", markdown, flags=re.DOTALL))
