"""The stages of the budget are those of the kernels, sum to the whole, and stand where their option does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ccelab.kernels.function
import ccelab.kernels.launch  # noqa: F401 - all kernels, and with them all stages
from ccelab.kernels import PRESETS, Variant, backend
from ccelab.precision.budget import budget
from ccelab.precision.emulation import ORDER
from ccelab.precision.stages import STAGES, applying
from ccelab.properties.cases import Case, draw, peaked
from ccelab.reference import Problem

TAILS = ("cce-no-sort,tail=rank1", "cce-kahan-full-e,order=none,eps=2^-6,tail=rank1")
OPTIONS: dict[str, Any] = {"bias": torch.bfloat16, "lse": True, "softcap": 5.0}


def test_stages_are_the_helpers_that_kernels_mark() -> None:
    assert set(STAGES) == set(backend.STAGES)
    assert tuple(STAGES) == ORDER


def test_every_stage_says_what_is_done_and_of_what_shape_its_bound_is() -> None:
    for stage in STAGES.values():
        assert stage.what.endswith("."), stage.name
        assert len((stage.bound.__doc__ or "").strip().split("\n\n")) >= 2, stage.name


def by_output(case: Case) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], dict[str, dict[str, float]]]:
    variant = Variant.of(case.variant)
    whole = budget(case.problem(), variant, case.schedule)
    split = budget(case.problem(), variant, case.schedule, by_stage=True)
    assert not whole.stages
    assert (whole.tiles_live_e, whole.tiles_live_c) == (split.tiles_live_e, split.tiles_live_c)
    bounds = {name: x for name, x in vars_of(whole.bound).items() if x is not None}
    return bounds, split.stages, split.stage_norms


def vars_of(solution: object) -> dict[str, Tensor | None]:
    names = ("loss", "reduced", "lse", "d_embeddings", "d_classifier", "d_bias")
    return {name: getattr(solution, name) for name in names}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("variant", [*PRESETS, "cce-no-filter,accumulate=hilo", "cce-exact,target=indexed", *TAILS])
def test_the_stages_sum_to_the_bound(variant: str, dtype: torch.dtype) -> None:
    """Which is computed without them: equal up to float64's own rounding."""
    for case in (draw(dtype=dtype, variant=variant, **OPTIONS), peaked(dtype=dtype, variant=variant, reduction="none")):
        bounds, stages, norms = by_output(case)
        assert stages.keys() == bounds.keys() == norms.keys()
        for name, bound in bounds.items():
            total = sum(stages[name].values())
            assert isinstance(total, Tensor)
            torch.testing.assert_close(total, bound, rtol=1e-9, atol=0.0)
            for stage, norm in norms[name].items():
                assert float(stages[name][stage].norm()) == pytest.approx(norm, rel=1e-12), stage


@pytest.mark.parametrize("variant", ["cce-kahan", "cce-exact", "cce,target=indexed", "cce-segment", *TAILS])
def test_stages_stand_where_their_option_does(variant: str) -> None:
    case = peaked(variant=variant, **OPTIONS)
    _, stages, _ = by_output(case)
    present = {stage for terms in stages.values() for stage in terms}
    assert present == set(applying(Variant.of(variant), case.problem()))


@pytest.mark.parametrize(
    ("variant", "without"),
    [
        ("cce-exact", {"store_exponentials", "restore_softmax"}),
        ("cce-stored", {"recompute_logits", "softmax"}),
    ],
)
def test_a_plain_call_has_few_stages(variant: str, without: set[str]) -> None:
    case = peaked(variant=variant, reduction="none")
    _, stages, _ = by_output(case)
    present = {stage for terms in stages.values() for stage in terms}
    absent = {"add_bias", "soft_cap", "soft_cap_slope", "indexed_dot", "reduce_losses", "is_live", "sum_bias"}
    assert present == set(STAGES) - absent - {"cast_increment", "add_tail"} - without
    assert present == set(applying(Variant.of(variant), case.problem()))


def test_the_largest_terms_come_first() -> None:
    case = draw(variant="cce-no-filter")
    problem: Problem = case.problem()
    terms = budget(problem, Variant.of(case.variant), case.schedule, by_stage=True).terms_at("d_embeddings", (3, 4))
    assert list(terms) == sorted(terms, key=lambda stage: -terms[stage])
    assert next(iter(terms)) in ("add_increment", "cast_increment", "cast_residual")
    assert "is_live" not in terms
