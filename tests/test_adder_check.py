"""The comparison of a device's dots with the model finds what differs, and nothing where nothing does."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ccelab.kernels import Tiles
from ccelab.precision.adder_check import KINDS, AdderCheck, adder_check
from ccelab.precision.emulation import HOPPER
from ccelab.precision.files import write_json
from ccelab.precision.study import STUDIES

CPU = torch.device("cpu")


def as_modelled(e: Tensor, c: Tensor, tiles: Tiles) -> Tensor:
    return HOPPER.dot(e.float(), c.float().T, None, e.dtype)


def rounded(e: Tensor, c: Tensor, tiles: Tiles) -> Tensor:
    return (e.double() @ c.double().T).float()


def test_the_model_agrees_with_itself_and_not_with_rounding(tmp_path: Path) -> None:
    same = adder_check(CPU, as_modelled, lengths=(17, 100), side=32)
    assert {row.kind for row in same.rows} == set(KINDS)
    assert not any(count for row in same.rows for count in row.unlike_model.values())
    assert all(row.unlike_nearest for row in same.rows if row.kind == "positive")
    other = adder_check(CPU, rounded, lengths=(100,), side=32)
    assert not any(row.unlike_nearest for row in other.rows)
    assert all(any(row.unlike_model.values()) for row in other.rows if row.kind in ("normal", "positive"))
    write_json(same, tmp_path / "check.json")
    assert AdderCheck.read(tmp_path / "check.json") == same


def test_the_h100_adds_as_its_model_does() -> None:
    """More than a million dots of every kind, committed: all bits alike but where bf16 falls below 2^-126."""
    check = AdderCheck.read(STUDIES / "adder-cuda.json")
    assert "H100" in check.provenance.device
    for row in check.rows:
        assert row.dots >= 10**6
        if (row.dtype, row.kind) != ("bfloat16", "subnormal"):
            assert not any(row.unlike_model.values()), row
