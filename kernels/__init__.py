"""Cut Cross-Entropy kernels: one Triton source, one `Variant` per combination of numerical flags.

Names are imported on first use, so that reading the table of variants needs no Triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .interpreter import choose

choose()

if TYPE_CHECKING:
    from .function import linear_cross_entropy
    from .schedule import ProductTiles, Schedule, Tiles, default_schedule
    from .statistics import Statistics
    from .variant import PRESETS, Variant, every

_HOME = {
    "PRESETS": "variant",
    "ProductTiles": "schedule",
    "Schedule": "schedule",
    "Statistics": "statistics",
    "Tiles": "schedule",
    "Variant": "variant",
    "default_schedule": "schedule",
    "every": "variant",
    "linear_cross_entropy": "function",
}

__all__ = [
    "PRESETS",
    "ProductTiles",
    "Schedule",
    "Statistics",
    "Tiles",
    "Variant",
    "default_schedule",
    "every",
    "linear_cross_entropy",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
