"""`Spec`: one problem as a few words and numbers, so that it shrinks, prints, is saved and comes back.

hypothesis draws these, never floats one by one: an array of 2^16 patterns takes seconds to draw and cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Variant

from .cases import DEVICE, SMALL, Case
from .families import FAMILIES

DTYPE = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What `case` makes a call of. Defaults are the simplest values, which shrinking tends to."""

    n: int = 1
    v: int = 1
    d: int = 1
    dtype: str = "bfloat16"
    family: str = "gaussian"
    seed: int = 0
    bias: str | None = None  # None, "storage" (the dtype of C) or "float32"
    softcap: float | None = None
    reduction: str = "mean"
    lse: bool = False  # whether the lse is an output with an upstream gradient
    ignored: int = 0  # rows
    upstream: str = "ones"  # "ones", "signed" or "zero"
    wanted: tuple[bool, bool, bool] = (True, True, True)

    def case(self, variant: str | Variant = "cce", schedule: Schedule = SMALL) -> Case:
        """The call, its numbers drawn from `seed`."""
        g = torch.Generator().manual_seed(self.seed)
        dtype = DTYPE[self.dtype]
        e, c, target = FAMILIES[self.family](g, self.n, self.v, self.d, dtype)
        target = target.clone()
        # Not in one block: every second row, from the last.
        target[list(range(self.n - 1, -1, -2))[: self.ignored]] = -100
        bias = None
        if self.bias is not None:
            bias = torch.randn(self.v, generator=g).to(DEVICE, dtype if self.bias == "storage" else torch.float32)
        shape = () if self.reduction != "none" else (self.n,)
        return Case(
            input=e.to(DEVICE, dtype),
            linear_weight=c.to(DEVICE, dtype),
            target=target.to(DEVICE),
            linear_bias=bias,
            reduction=self.reduction,  # type: ignore[arg-type]
            softcap=self.softcap,
            grad_loss=_upstream(self.upstream, shape, g),
            grad_lse=torch.randn(self.n, generator=g).to(DEVICE) / 4 if self.lse else None,
            wanted=self.wanted,
            variant=variant,
            schedule=schedule,
        )

    def but(self, **changes: Any) -> Spec:
        return replace(self, **changes)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Spec:
        return cls.of(json.loads(path.read_text()))

    @classmethod
    def of(cls, values: dict[str, Any]) -> Spec:
        return cls(**{**values, "wanted": tuple(values.get("wanted", (True, True, True)))})

    @classmethod
    def example(cls, path: Path, law: str) -> Spec | None:
        """What `save` wrote; of a law report, the example on which the law failed, None where it did not fail."""
        values = json.loads(path.read_text())
        if "laws" not in values:
            return cls.of(values)
        failures = (row["failure"] for row in values["laws"] if row["name"] == law and row["failure"])
        return next((cls.of(failure["spec"]) for failure in failures), None)


def _upstream(kind: str, shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    made = {
        "ones": torch.ones(shape),
        "signed": torch.randn(shape, generator=g),
        "zero": torch.zeros(shape),
    }
    return made[kind].to(DEVICE)
