"""The pytest plugin in a project that is not this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccelab.properties.plugin import end_where_the_gpu_is_lost

THEIRS = """
import sys
import pytest
from hypothesis import settings

@pytest.mark.gpu
def test_gpu(): pass

def test_light():
    assert not {"torch", "triton", "numpy", "ccelab.kernels"} & set(sys.modules)

def test_profile(request):
    assert settings().max_examples == EXAMPLES
"""


def pytest_in(folder: Path, *options: str, examples: int) -> str:
    (folder / "test_theirs.py").write_text(THEIRS.replace("EXAMPLES", str(examples)))
    command = [sys.executable, "-P", "-m", "pytest", "-rs", "--strict-markers", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_registers_without_importing_torch_or_choosing_a_profile(tmp_path: Path) -> None:
    assert "2 passed" in pytest_in(tmp_path, "-k", "not gpu", "--hypothesis-profile=default", examples=100)
    assert "1 passed" in pytest_in(tmp_path, "-k", "profile", "--hypothesis-profile=exhaustive", examples=500)


def test_a_gpu_test_runs_or_says_why_not(tmp_path: Path) -> None:
    said = pytest_in(tmp_path, "-k", "gpu", examples=0)
    assert "1 passed" in said if torch.cuda.is_available() else "1 skipped" in said and "needs a CUDA device" in said


def test_a_law_that_loses_the_gpu_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    end_where_the_gpu_is_lost("test_of_no_gpu")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    end_where_the_gpu_is_lost("test_that_leaves_it_be")
    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(pytest.exit.Exception, match="--deselect test_that_asks_too_much"):
        end_where_the_gpu_is_lost("test_that_asks_too_much")
