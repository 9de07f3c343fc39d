"""Whether this process interprets is chosen before any test file imports triton; and what tests of studies share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ccelab.kernels  # noqa: F401


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """What a bug leaves unwritten would often hold the right numbers, of a call before."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # by torch's default that fills it
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shown(tmp_path: Path) -> Callable[[Any], tuple[str, str]]:
    """What `ccelab show --html` prints of a study, and its page; what was written is read as it was."""
    from typer.testing import CliRunner

    from ccelab.precision.cli import app
    from ccelab.precision.files import write_json

    def shown(study: Any) -> tuple[str, str]:
        path = tmp_path / "study.json"
        write_json(study, path)
        assert type(study).read(path) == study
        done = CliRunner().invoke(app, ["show", str(path), "--html"], env={"COLUMNS": "120"})
        assert done.exit_code == 0, done.output
        return done.output, path.with_suffix(".html").read_text()

    return shown
