"""Stub."""

from typing import Any


def write_page(made: Any, path: Any) -> None: ...
