"""Subjects, and what they promise: how the laws see what `ccelab.precision.subjects` finds by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ccelab.kernels import Variant, linear_cross_entropy
from ccelab.precision import subjects

from .adapters import NAMED
from .promises import OURS, PROMISES


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
    call = subjects.find(name, {"ours": "ccelab.kernels:linear_cross_entropy", **NAMED})
    promises = frozenset(getattr(call, "promises", ()))
    if unknown := promises - PROMISES.keys():
        raise ValueError(f"{name} promises {', '.join(sorted(unknown))}; known are {', '.join(PROMISES)}")
    budget = getattr(call, "budget", "cce-exact")
    return Subject(name, call, promises, Variant.of(budget))


def version(subject: Subject) -> str | None:
    """Of the package that the subject comes from; None where there is no saying."""
    return subjects.version_of(subject.call)


def accepted(subject: Subject) -> Callable[..., Any]:
    """The subject, spared the keywords that it did not promise and does not take."""
    return subject.call if subject.is_ours else subjects.accepted(subject.call)
