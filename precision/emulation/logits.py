"""Stages of a block of logits, shared by both passes."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import Tiles

from .arithmetic import Arithmetic, soft_cap
from .machine import Machine
from .setup import Columns, Rows


def product(a: Arithmetic, rows: Rows, columns: Columns, tiles: Tiles) -> Tensor:
    """(R, n) E . C."""
    if isinstance(a, Machine):
        return a.logits(rows.storage, columns.storage, tiles)
    return rows.double @ columns.double.T


def add_bias(a: Arithmetic, z: Tensor, columns: Columns) -> Tensor:
    return z if columns.bias is None else z.to(a.dtype) + columns.bias.to(a.dtype)


def cap(a: Arithmetic, z: Tensor, softcap: float | None) -> Tensor:
    return z if softcap is None else soft_cap(a, z.to(a.dtype), softcap)


def masked(z: Tensor, columns: Columns) -> Tensor:
    """-inf outside the vocabulary."""
    return z if bool(columns.inside.all()) else torch.where(columns.inside, z, -torch.inf)
