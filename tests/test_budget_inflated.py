"""The budget refuses zeros, the opposite sign and four times the error on problems of 10^4 elements per gradient.

bf16 and fp16: on every family. fp32: on all but those of `SPREAD`, which says why.
"""

from __future__ import annotations

import pytest
import torch

from ccelab.kernels import PRESETS, Schedule, Tiles
from ccelab.precision.measure import worst_ratio
from ccelab.properties.cases import Verdict, assert_within_budget
from ccelab.properties.families import FAMILIES
from ccelab.properties.spec import Spec

INFLATED = 4.0
TILES = Tiles(block_n=64, block_v=64, block_d=32)
SCHEDULE = Schedule(forward=TILES, backward=TILES, splits=2)

ADVERSARIAL = ("offset", "integers")
"""Few classes have any probability and logits are large, or one binade holds all: every output of fp32 comes near its
bound (.65 to .99)."""

SPREAD = {
    "d_embeddings": {"flat", "coherent", "subnormal", "confident", "dominant", "near_threshold"},
    "d_classifier": {"near_threshold", "subnormal"},
}
"""Where the worst fp32 gradient need not come to a quarter of its bound: here it comes to .01 to .28.

A sum over n classes or rows has n errors of a softmax, of random signs, of which a bound counts the sizes. Even the
true sizes, of 160 rows, would leave near_threshold's dC at .125 and coherent's at .33 (sum d_i e_i over sum |d_i||e_i|,
d the errors of the kernel's residuals); and a bound on one is some three times its typical size, since exp2 and log are
known to an ulp or so, and what goes into them is not known to the last bit. With the upstream gradients of a mean over
160 tokens, whose products round too, dC stays below a quarter on seven families more (.06 to .24).
"""


def judged(dtype: str, family: str, variant: str) -> Verdict:
    spec = Spec(n=128, v=112, d=96, dtype=dtype, family=family, seed=1, bias="storage", lse=True, reduction="none")
    return assert_within_budget(spec.case(variant, SCHEDULE))


def assert_refused(verdict: Verdict, name: str) -> None:
    got, want = verdict.outcome[name].double(), getattr(verdict.truth, name)
    bound = getattr(verdict.budget.bound, name)
    assert worst_ratio(torch.zeros_like(got), want, bound) > 1, f"{name}: zeros"
    assert worst_ratio(-got, want, bound) > 1, f"{name}: the opposite"
    assert worst_ratio(want + INFLATED * (got - want), want, bound) > 1, f"{name}: {verdict.ratios[name]:.3f} times 4"


PAIRS = list(zip(FAMILIES, (list(PRESETS) * 3)[: len(FAMILIES)], strict=True))
"""Every family, and by turns every preset."""


@pytest.mark.parametrize(("family", "variant"), PAIRS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_gradients_in_16_bits(dtype: str, family: str, variant: str) -> None:
    verdict = judged(dtype, family, variant)
    for name in ("d_embeddings", "d_classifier", "d_bias"):
        assert verdict.outcome[name].numel() >= 10**4 or name == "d_bias"
        assert_refused(verdict, name)


@pytest.mark.parametrize(("family", "variant"), PAIRS)
def test_gradients_in_fp32(family: str, variant: str) -> None:
    verdict = judged("float32", family, variant)
    for name, spread in SPREAD.items():
        if family not in spread:
            assert_refused(verdict, name)


@pytest.mark.parametrize("variant", PRESETS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_output_of_every_preset(dtype: str, variant: str) -> None:
    """Loss and lse are fp32 whatever the dtype."""
    adversarial = judged(dtype, ADVERSARIAL[list(PRESETS).index(variant) % 2], variant)
    for name in ("loss", "lse", "d_embeddings", "d_classifier", "d_bias"):
        assert_refused(adversarial, name)


@pytest.mark.parametrize(("family", "name"), [("coherent", "d_embeddings"), ("near_threshold", "d_embeddings")])
def test_what_is_left_is_what_is_said(family: str, name: str) -> None:
    ratio = judged("float32", family, "cce-exact").ratios[name]
    assert ratio < 1 / INFLATED, f"{ratio:.3f}: take {family} out of SPREAD"
