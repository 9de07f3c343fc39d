"""Heads without structure, for contrast: independent Gaussian E and C."""

from __future__ import annotations

import torch

from .head import Head
from .targets import draw_targets


def gaussian(
    n: int = 1024,
    v: int = 49152,
    d: int = 576,
    *,
    spread: float = 6.7,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> Head:
    """E (n, d) and C (v, d) Gaussian, such that a row's logits have the standard deviation `spread`.

    The default spread has the mean rank-1 probability .54 of Gaussian logits "of the same spread" as SmolLM2's. Random
    data misleads in both directions: tails die out too fast, and with no shared vocabulary structure no order of the
    columns helps (every 128x128 tile is live, sorted or not). One seed is one head on every device: the CPU draws
    all numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    e = (torch.randn(n, d, generator=generator) * (spread / d**0.5)).to(device, dtype)
    c = torch.randn(v, d, generator=generator).to(device, dtype)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64).to(device)
    return Head(
        embeddings=e,
        classifier=c,
        targets=draw_targets(e, c, uniform),
        name="gaussian",
        provenance={"generator": "gaussian", "spread": spread, "seed": seed},
    )
