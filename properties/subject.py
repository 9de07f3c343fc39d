"""Subjects: whatever computes a linear cross-entropy under the signature of `linear_cross_entropy`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ccelab.kernels import Variant, linear_cross_entropy

from .adapters import NAMED
from .promises import OURS, PROMISES

ADAPTERS = "ccelab.properties.adapters"


@dataclass(frozen=True)
class Subject:
    """A callable, what it promises, and whose budget it is held to (None: that of the variant under test)."""

    name: str
    call: Callable[..., Any]
    promises: frozenset[str]
    budget: Variant | None = None

    @property
    def is_ours(self) -> bool:
        return self.call is linear_cross_entropy


def load(name: str) -> Subject:
    """`ours`, a name of `NAMED`, or ``package.module:function``.

    Raises:
        ValueError: there is no such subject, its package is not installed, or it promises what nobody knows.
    """
    if name == "ours":
        return Subject(name, linear_cross_entropy, OURS)
    module, _, attribute = f"{ADAPTERS}.{NAMED[name]}".partition(":") if name in NAMED else name.partition(":")
    if not attribute:
        raise ValueError(f"no subject {name!r}: legal are ours, {', '.join(NAMED)}, or package.module:function")
    try:
        call = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"subject {name!r} cannot be loaded: {error}") from error
    package, install = getattr(call, "package", None) or ("", "")
    if package and package not in sys.modules and find_spec(package) is None:
        raise ValueError(f"subject {name!r} needs {package}, which is not installed: {install}")
    promises = frozenset(getattr(call, "promises", ()))
    if unknown := promises - PROMISES.keys():
        raise ValueError(f"{name} promises {', '.join(sorted(unknown))}; known are {', '.join(PROMISES)}")
    budget = getattr(call, "budget", "cce-exact")
    return Subject(name, call, promises, Variant.of(budget))


def version(subject: Subject) -> str | None:
    """Of the package that the subject comes from. It is read, not imported: adapters import peers when they are called.

    None where there is no saying.
    """
    package = "ccelab" if subject.is_ours else (getattr(subject.call, "package", None) or ("", ""))[0]
    if not package:
        return str(torch.__version__) if subject.call.__module__.endswith(".torch_own") else None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        spec = find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = re.search(r"^__version__ = [\"'](.+)[\"']", Path(spec.origin).read_text(), flags=re.MULTILINE)
    return found.group(1) if found else None


def accepted(subject: Subject) -> Callable[..., Any]:
    """The subject, spared the keywords that it did not promise and does not take."""
    if subject.is_ours:
        return subject.call
    parameters = inspect.signature(subject.call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return subject.call
    return partial(_call, subject.call, frozenset(parameters))


def _call(function: Callable[..., Any], known: frozenset[str], *args: Any, **kwargs: Any) -> Any:
    """Drops variant, schedule and stats, and options at their defaults."""
    idle = {"linear_bias": None, "softcap": None, "shift": 0, "return_lse": False}
    kept = {
        k: x
        for k, x in kwargs.items()
        if k in known or (k not in ("variant", "schedule", "stats") and not (k in idle and x == idle[k]))
    }
    return function(*args, **kept)
