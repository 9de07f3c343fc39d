"""Small problems for oracles, and how one oracle is held to another."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from ccelab.reference import Problem, Solution
from ccelab.reference.products import TINIEST, U

OUTPUTS = [field.name for field in fields(Solution)]


def make(
    n: int = 6,
    v: int = 11,
    d: int = 9,
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Gaussian E and C with logits of a standard deviation of about `scale` sqrt(d)."""
    g = torch.Generator().manual_seed(seed)
    return Problem(
        embeddings=(torch.randn(n, d, generator=g, dtype=torch.float64) * scale).to(dtype),
        classifier=torch.randn(v, d, generator=g, dtype=torch.float64).to(dtype),
        **{"targets": torch.randint(0, v, (n,), generator=g), **options},
    )


def within(truth: Solution, value: Solution, error: Solution) -> None:
    """`truth` was rounded once to float64; beyond that and the bound, nothing is forgiven."""
    for name in OUTPUTS:
        t, x, e = (getattr(solution, name) for solution in (truth, value, error))
        assert (t is None) == (x is None) == (e is None), name
        if t is not None:
            same = (t == x) | (t.isnan() & x.isnan())
            close = ((t - x).abs() <= e + U * t.abs() + TINIEST) | (e == math.inf)
            assert t.shape == x.shape == e.shape
            assert bool((same | close).all()), f"{name}:\n{t}\n{x}\nbound {e}"
