"""What a process frees is still there when it asks for as much again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TWICE = """
import resource
import numpy as np
from ccelab.precision.memory import keep_freed_memory

if {keeps}:
    keep_freed_memory()

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.full(2**25, 1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), faults())
"""


@pytest.mark.skipif(
    not (sys.platform == "linux" and "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")), reason="mallopt is glibc's"
)
@pytest.mark.parametrize("keeps", [True, False])
def test_freed_memory_is_kept_if_it_should(keeps: bool) -> None:
    found = subprocess.run(
        [sys.executable, "-c", TWICE.format(keeps=keeps)], capture_output=True, text=True, check=True
    )
    first, second = map(int, found.stdout.split())
    assert first > 0
    assert (second < first / 10) == keeps
