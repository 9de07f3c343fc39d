"""The model of the tensor core's adder against the GPU at hand: dot products of many kinds, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ccelab.kernels import Tiles

from .emulation import HOPPER, with_own_logits
from .files import read_json
from .provenance import Provenance, provenance

SCHEMA = 1
KINDS = ("normal", "positive", "one-signed", "spread", "positive-spread", "cancelling", "wide", "subnormal")
LENGTHS = (16, 17, 64, 100, 576, 2303, 2304)
SIDE = 1024  # so many rows times so many columns of dots per configuration
TILES = {  # the default ones of both passes, and others
    "128x256": Tiles(block_n=128, block_v=256, block_d=64, warps=8, stages=4),
    "128x128": Tiles(block_n=128, block_v=128, block_d=64, warps=8, stages=3),
}
Logits = Callable[[Tensor, Tensor, Tiles], Tensor]
OWN_LOGITS: Logits = with_own_logits(HOPPER).logits


@dataclass(frozen=True, kw_only=True)
class AdderRow:
    """One kind of operands of one length."""

    dtype: str
    kind: str
    length: int  # D
    dots: int
    unlike_model: dict[str, int]  # dots that differ in some bit from the model, by tile
    unlike_nearest: int  # dots that are not the correctly rounded sum: what a model has to explain


@dataclass(kw_only=True)
class AdderCheck:
    """Every configuration, and where it ran."""

    provenance: Provenance
    rows: list[AdderRow] = field(default_factory=list)
    kind: str = "adder check"
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path) -> AdderCheck:
        """Raises FileNotFoundError, or ValueError where `path` holds something else."""
        return read_json(cls, path, "check of the adder", (SCHEMA,))


def adder_check(
    device: torch.device,
    logits: Logits = OWN_LOGITS,
    *,
    lengths: Sequence[int] = LENGTHS,
    side: int = SIDE,
    progress: Callable[[int, int, str], None] = lambda done, of, step: None,
) -> AdderCheck:
    """Compares `logits`, which are the kernels' own, on `device` with the Hopper model; about a minute on an H100."""
    check = AdderCheck(provenance=provenance(device))
    dtypes = (torch.bfloat16, torch.float16)
    plan = [(dtype, length, kind) for dtype in dtypes for length in lengths for kind in KINDS]
    for seed, (dtype, length, kind) in enumerate(plan):
        progress(seed, len(plan), f"{kind} {dtype} of length {length}")
        e, c = operands(kind, dtype, side, length, seed, device)
        model = HOPPER.dot(e.float(), c.float().T, None, dtype)
        found = {name: logits(e, c, tiles) for name, tiles in TILES.items()}
        nearest = (e.double() @ c.double().T).float()
        check.rows.append(
            AdderRow(
                dtype=str(dtype).removeprefix("torch."),
                kind=kind,
                length=length,
                dots=model.numel(),
                unlike_model={name: _unlike(got, model) for name, got in found.items()},
                unlike_nearest=_unlike(found["128x256"], nearest),
            )
        )
    return check


def _unlike(one: Tensor, other: Tensor) -> int:
    return int(((one != other) & ~(one.isnan() & other.isnan())).sum())


def operands(
    kind: str, dtype: torch.dtype, side: int, length: int, seed: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Two (side, length) matrices of the storage dtype."""
    g = torch.Generator(device).manual_seed(seed)
    e, c = (_vectors(kind, dtype, side, length, g) for _ in range(2))
    if kind == "one-signed":
        c = -c
    if kind == "cancelling":
        half = length // 2
        e[:, half : 2 * half] = -e[:, :half]
        c[:, half : 2 * half] = (c[:, :half].double() * (1 + 2.0**-7)).to(dtype)
    return e.contiguous(), c.contiguous()


def _vectors(kind: str, dtype: torch.dtype, side: int, length: int, g: torch.Generator) -> Tensor:
    x = torch.randn(side, length, generator=g, device=g.device, dtype=torch.float64)
    if kind in ("positive", "one-signed", "positive-spread"):
        x = x.abs()
    low, high = (-60, 55) if dtype == torch.bfloat16 else (-13, 13)
    exponents = {
        "spread": (low // 4, high // 4),  # little is aligned to little
        "positive-spread": (low // 4, high // 4),
        "wide": (low, high),
        "subnormal": (-138, -60) if dtype == torch.bfloat16 else (-26, -12),  # operands, products or sums
    }
    if kind in exponents:
        x = x * 2.0 ** torch.randint(*exponents[kind], x.shape, generator=g, device=g.device)
    if kind in ("wide", "subnormal"):  # zeros among them
        x = torch.where(torch.rand(x.shape, generator=g, device=g.device) < 0.1, 0.0, x)
    return x.to(dtype)
