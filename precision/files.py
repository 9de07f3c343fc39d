"""JSON files of this package: written whole or not at all, without NaN literals, read back as dataclasses."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
SHOWN = 3  # problems of a file that cannot be read


def to_json(record: Any) -> str:
    """A dataclass as JSON without NaN or infinity literals, which other languages cannot read: they become strings.

    Lists of numbers stand on one line each: a heat map is rows of numbers to whoever reads a diff.
    """
    text = json.dumps(_plain(asdict(record)), indent=1, allow_nan=False)
    return (
        re.sub(
            r'\[\s+([^][{}"]*?)\s+\]',
            lambda found: f"[{', '.join(part.strip() for part in found[1].split(','))}]",
            text,
        )
        + "\n"
    )


def write_json(record: Any, path: Path) -> None:
    write_text(to_json(record), path)


def write_text(text: str, path: Path) -> None:
    """Replaces `path` in one step: whoever reads it finds the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than a `what`.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a {what}: it is not a JSON object")
    return found


def read_json(cls: type[T], path: Path, what: str, schemas: Collection[int]) -> T:
    """The dataclass that `write_json` left at `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else than a `what`, or another schema of it.
    """
    from pydantic import TypeAdapter, ValidationError  # only reading needs it

    found = load_object(path, what)
    if (kind := found.get("kind")) and kind != getattr(cls, "kind", None):
        raise ValueError(f"{path} is not a {what}: it is of the kind {kind!r}")
    schema = found.get("schema")
    if schema not in schemas:
        raise ValueError(
            f"{path} has schema {schema}, this version of ccelab reads {' and '.join(map(str, schemas))}: "
            f"make the {what} again"
        )
    try:
        return TypeAdapter(cls).validate_json(path.read_text())
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors(include_url=False)]
        more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(f"{path} is not a {what}: {'; '.join(wrong[:SHOWN])}{more}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
