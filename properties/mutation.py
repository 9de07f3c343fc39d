"""`Mutant`: one seeded bug, planted into a kernel or a launcher of this process by exchanging text of its source.

The shipped files are not touched: the function's source is read, changed, compiled, and put wherever the original is
referred to. A test is as good as the bugs that it finds (DeMillo, Lipton, Sayward, "Hints on test data selection",
1978).
"""

from __future__ import annotations

import importlib
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PACKAGE = "ccelab."


@dataclass(frozen=True)
class Mutant:
    """A bug, the law that finds it, and the variant on which it does."""

    bug: str
    law: str
    variant: str
    place: str  # "module:function", the module within ccelab.kernels
    old: str  # occurs exactly once in the function
    new: str

    @property
    def name(self) -> str:
        return self.bug.replace(" ", "-")


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """The process has the bug until the end of the block.

    Raises:
        LookupError: the text to exchange is not, or not only once, in the function: the mutant is out of date.
    """
    module_name, _, name = mutant.place.partition(":")
    module = importlib.import_module(f"{PACKAGE}kernels.{module_name}")
    original = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(_written(original, str(module.__file__))))
    if (count := source.count(mutant.old)) != 1:
        raise LookupError(f"{mutant.bug}: {mutant.old!r} occurs {count} times in {mutant.place}, expected once")
    changed = _compiled(source.replace(mutant.old, mutant.new), module, name, mutant.name)
    places = [
        (holder, attribute)
        for holder_name, holder in list(sys.modules.items())
        if holder_name.startswith(PACKAGE)
        for attribute, value in list(vars(holder).items())
        if value is original
    ]
    for holder, attribute in places:
        setattr(holder, attribute, changed)
    try:
        yield
    finally:
        for holder, attribute in places:
            setattr(holder, attribute, original)


def _written(function: Any, file: str) -> Callable[..., Any] | type:
    """What stands in the file: kernels and device functions are wrapped, emulations wear another's name."""
    function = getattr(function, "fn", function)
    if inspect.isclass(function) or function.__code__.co_filename == file:
        return function if inspect.isclass(function) else function.__code__
    return _written(function.__wrapped__, file)


def _compiled(source: str, module: Any, name: str, label: str) -> Any:
    """The function of the changed source, in its module's names. Triton reads the source again, from linecache."""
    file = f"<mutant {label}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Any] = {}
    exec(compile(source, file, "exec"), vars(module), made)
    return made[name]
