"""Where a number comes from: versions, device, commit, time."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy

from ccelab.kernels import backend  # before triton: it chooses between GPU and interpreter

# isort: split
import torch
import triton

from ccelab.reference import Problem
from ccelab.reference.heads import Head


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything about a run that is not its input."""

    time: str  # UTC, ISO 8601
    command: str
    ccelab: str
    commit: str | None  # of the checkout that the package runs from; "+" means changes on top; None outside a checkout
    python: str
    torch: str
    triton: str
    numpy: str
    mpmath: str
    device: str
    cuda: str | None
    driver: str | None
    machine: str


def provenance(device: torch.device) -> Provenance:
    on_gpu = device.type == "cuda"
    return Provenance(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        ccelab=_version("ccelab"),
        commit=_commit(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=triton.__version__,
        numpy=numpy.__version__,
        mpmath=_version("mpmath"),
        device=backend.describe(device),
        cuda=torch.version.cuda if on_gpu else None,
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        machine=platform.machine(),
    )


def head_facts(head: Head, problem: Problem) -> dict[str, Any]:
    """A head by name, shape, dtype and options, and where it comes from."""
    n, v, d = problem.shape
    return {
        "name": head.name,
        "tokens": n,
        "vocabulary": v,
        "hidden": d,
        "dtype": str(problem.embeddings.dtype).removeprefix("torch."),
        "softcap": problem.softcap,
        "bias": problem.bias is not None,
        **head.provenance,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:  # on the path, but not installed
        return "unknown"


def _commit() -> str | None:
    here = str(Path(__file__).resolve().parent)
    commit = _output("git", "-C", here, "rev-parse", "--short=12", "HEAD")
    if commit is None or _output("git", "-C", here, "ls-files", "--error-unmatch", "provenance.py") is None:
        return None
    return commit + ("+" if _output("git", "-C", here, "status", "--porcelain", "--untracked-files=no") else "")


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
