"""Subjects: whatever computes a linear cross-entropy under the signature of `ccelab.kernels.linear_cross_entropy`.

A subject has a name in a catalogue, or is ``package.module:function``. A catalogue is a mapping from names to
``package.module:function`` that an installed package announces as an entry point of the group `GROUP`. So the adapters
of peers, which lie in a layer above this one, are found by name and imported by nobody here.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GROUP = "ccelab.subjects"


class Unsupported(Exception):
    """A subject raises it for a problem that it documents not to take."""


class NotInstalled(ValueError):
    """The package of a subject is missing; the message says how to get it."""


def catalogue() -> dict[str, str]:
    """The names that installed packages give to subjects, and where each is: ``package.module:function``."""
    found: dict[str, str] = {}
    for entry in metadata.entry_points(group=GROUP):
        found |= entry.load()
    return found


def find(name: str, named: dict[str, str]) -> Callable[..., Any]:
    """The callable that `named` or ``package.module:function`` says. A peer's package is not imported yet.

    Raises:
        NotInstalled: its package is missing.
        ValueError: there is no such subject; the message says what is legal.
    """
    module, _, attribute = named.get(name, name).partition(":")
    if not attribute:
        raise ValueError(f"no subject {name!r}: legal are {', '.join(named)}, or package.module:function")
    try:
        call: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        hint = "; is its folder on PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"subject {name!r} cannot be loaded: {error}{hint}") from error
    if not callable(call):
        raise ValueError(f"subject {name!r} is a {type(call).__name__}, which cannot be called")
    package, install = package_of(call)
    if package and package not in sys.modules and find_spec(package) is None:
        raise NotInstalled(f"subject {name!r} needs {package}, which is not installed: {install}")
    return call


def package_of(call: Callable[..., Any]) -> tuple[str, str]:
    """The import name of the package that the subject wraps, and how to get it; empty where it says none."""
    return getattr(call, "package", None) or ("", "")


def version_of(call: Callable[..., Any]) -> str | None:
    """The subject's own word, or that of the package that it wraps or is in; None where none is known.

    It is read, not imported: adapters import peers when they are called.
    """
    own: str | None = getattr(call, "version", None)
    if own:
        return own
    package = package_of(call)[0] or call.__module__.partition(".")[0]
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        spec = find_spec(package)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    found = re.search(r"^__version__ = [\"'](.+)[\"']", Path(spec.origin).read_text(), flags=re.MULTILINE)
    return found.group(1) if found else None


def accepted(call: Callable[..., Any]) -> Callable[..., Any]:
    """The subject, spared variant, schedule and stats, and options at their defaults, where it does not take them."""
    parameters = inspect.signature(call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return call
    return partial(_call, call, frozenset(parameters))


def _call(function: Callable[..., Any], known: frozenset[str], *args: Any, **kwargs: Any) -> Any:
    idle = {"linear_bias": None, "softcap": None, "shift": 0, "return_lse": False}
    kept = {
        k: x
        for k, x in kwargs.items()
        if k in known or (k not in ("variant", "schedule", "stats") and not (k in idle and x == idle[k]))
    }
    return function(*args, **kept)
