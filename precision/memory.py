"""Keeps what a process frees, for work whose large arrays come and go thousands of times."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """glibc gives large blocks back to the system at once, which fills them with zeros whenever they are asked for
    again: 9 of 70 s of a report of two variants (64 tokens of the real head, 2 cores). Elsewhere nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
