"""Laws tried on every number of a 16-bit dtype, through the public call: at once on a GPU, in parts elsewhere."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .cases import DEVICE, Case
from .law import Trial, law
from .spec import DTYPE
from .strategies import specs

NEEDS = ["bit-exact", "lse", "schedule"]
HALVES = ("bfloat16", "float16")
PARTS = 1 if DEVICE == "cuda" else 32  # the interpreter takes 10 s for all numbers, and three times that for their ties
# One logit a row, which is E's number: one example says it all.
LOGITS = specs(dtypes=HALVES, options=False, n=1, v=1, d=1, reduction="none", lse=True)


def numbers(trial: Trial) -> Tensor:
    """Every `PARTS`-th bit pattern of the spec's dtype, from where its seed says."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(DTYPE[trial.spec.dtype])
    return patterns[trial.spec.seed % PARTS :: PARTS].to(trial.case.target.device)


def one_class(trial: Trial, logits: Tensor, upstream: Tensor) -> Case:
    """Rows of one logit each over a vocabulary of one word; `upstream` (N,) is what comes to the lse."""
    return replace(
        trial.case,
        schedule=trial.default_schedule,
        input=logits[:, None],
        linear_weight=torch.ones_like(logits[:1, None]),
        target=torch.zeros(len(logits), dtype=torch.int64, device=logits.device),
        grad_loss=torch.zeros_like(upstream),
        grad_lse=upstream,
        wanted=(True, False, False),
    )


@law("cce", "cce-exact", needs=NEEDS, draw=LOGITS, examples=0.1)
def test_every_number_is_a_logit(trial: Trial) -> None:
    """V = D = 1 and C = 1: the lse is E's number itself, whichever it is, and the loss 0; NaN where it is not finite.

    Tolerance: none, as the product, the maximum and log 1 are exact. Source: definition.
    """
    e = numbers(trial)
    outcome = trial.run(one_class(trial, e, torch.ones(len(e), device=e.device)))
    finite = e.isfinite()
    trial.same(outcome["lse"][finite], e.float()[finite], "lse")
    trial.same(outcome["loss"], torch.where(finite, 0.0, torch.nan), "loss")


@law("cce", "cce-no-filter", "cce-kahan", "cce-exact", needs=NEEDS, draw=LOGITS, examples=0.1)
def test_every_gradient_is_rounded_to_nearest_even(trial: Trial) -> None:
    """V = D = 1 and C = 1: dE is the lse's gradient, rounded once; all numbers of the dtype, and the ties between.

    Tolerance: none, since the softmax is exactly 1. Subnormal numbers, which kernels may flush, are left out, and so is
    what lies beyond the largest number. Source: IEEE 754, 4.3.1.
    """
    x = numbers(trial)
    info = torch.finfo(x.dtype)
    x = x[(x.abs() >= info.smallest_normal) & (x.abs() < info.max)]
    next_one = (x.view(torch.int16) + 1).view(x.dtype)
    upstream = torch.cat([x.float(), (x.float() + next_one.float()) / 2])
    outcome = trial.run(one_class(trial, torch.zeros_like(upstream, dtype=x.dtype), upstream))
    trial.same(outcome["d_embeddings"][:, 0], upstream.to(x.dtype), "dE")
