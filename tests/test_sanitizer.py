"""NVIDIA's compute-sanitizer finds nothing in any preset: no access out of bounds, no race in shared memory."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

SANITIZER = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
FOUND = 9
"""The exit status that says so."""

EVERY_PRESET = """
import torch
from ccelab.kernels import PRESETS, Schedule, Tiles, linear_cross_entropy

tiles = Tiles(block_n=64, block_v=64, block_d=32, warps=4, stages=2)
schedule = Schedule(forward=tiles, backward=tiles, splits=2, look_ahead=0)
torch.manual_seed(0)
n, v, d = 150, 330, 72  # more than two tiles of each, and ragged
targets = torch.randint(v, (n,), device="cuda")
for variant in PRESETS:
    e, c = (torch.randn(rows, d, device="cuda").bfloat16().requires_grad_() for rows in (n, v))
    linear_cross_entropy(e, c, targets, variant=variant, schedule=schedule).backward()
    torch.cuda.synchronize()
    print(variant)
"""


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which(SANITIZER) is None, reason="compute-sanitizer, of the CUDA toolkit, is not installed")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_nothing_is_found(tool: str) -> None:
    command = [SANITIZER, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, "-c", EVERY_PRESET]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
