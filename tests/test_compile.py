"""The kernels compile for GPUs that this machine need not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE_ONLY = Path(__file__).parent / "compile_only.py"
KERNELS = {"logsumexp_kernel", "combine_kernel", "embeddings_kernel", "classifier_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "variants"),
    [
        (80, ["cce"]),  # no tensor descriptors
        (90, ["cce-no-filter,accumulate=kahan,target=indexed"]),
    ],
)
def test_kernels_compile(arch: int, variants: list[str], tmp_path: Path) -> None:
    """In a process of its own, since one that interprets cannot compile, and with a cache of its own."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(COMPILE_ONLY), str(arch), *variants]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 4 * len(variants)
    for variant, dtype, _, *kernels in lines:
        indexed = {"indexed_dot_kernel"} if "indexed" in variant else set()
        sorting = {"mean_rows_kernel", "mean_logit_kernel"} if variant in ("cce", "cce-kahan") else set()
        assert set(kernels) == KERNELS | indexed | sorting, (variant, dtype)
