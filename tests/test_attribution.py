"""Shares add up, and name the stage that is to blame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ccelab.kernels import PRESETS, Variant
from ccelab.precision.attribution import Attribution, attribute
from ccelab.precision.call import run
from ccelab.precision.emulation import INTERPRETER, all_on, emulate, stages_of
from ccelab.properties.cases import SMALL, draw, peaked
from ccelab.reference import double

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the machine is the interpreter's")


def shares(found: Attribution) -> dict[str, float]:
    return {stage.stage: stage.share for stage in found.stages}


@pytest.mark.parametrize("variant", [*PRESETS, "cce,accumulate=hilo,target=indexed"])
def test_shares_sum_to_one_and_explain_all_of_the_error(variant: str) -> None:
    problem = peaked(lse=True, bias=torch.float32, softcap=20.0).problem()
    flags, truth = Variant.of(variant), double(problem)
    got, stats = run(problem, flags, SMALL)
    found = attribute(problem, truth, got, flags, SMALL, INTERPRETER, stats)
    assert set(found) == {"loss", "reduced", "lse", "d_embeddings", "d_classifier", "d_bias"}
    for name, attribution in found.items():
        assert abs(sum(shares(attribution).values()) - 1) < 1e-9, name
        assert set(shares(attribution)) <= set(stages_of(name))
        assert attribution.explained == 1.0
        assert attribution.residue == 0.0
        error = (getattr(got, name).double() - getattr(truth, name)).norm() / getattr(truth, name).norm()
        assert attribution.error == pytest.approx(float(error), rel=1e-9)


def test_the_stage_to_blame_has_the_largest_share() -> None:
    problem = draw((64,), 300).problem()
    truth = double(problem)

    def worst(variant: str, output: str) -> str:
        got = attribute(problem, truth, None, Variant.of(variant), SMALL, INTERPRETER)[output]
        assert got.explained is None
        assert got.residue is None
        return max(got.stages, key=lambda stage: stage.share).stage

    assert worst("cce,eps=2^-1", "d_embeddings") == "is_live"
    assert worst("cce-no-filter", "d_embeddings") == "add_increment"
    assert worst("cce-exact", "d_embeddings") in ("cast_residual", "cast_output")


def test_what_is_not_emulated_is_residue() -> None:
    problem, flags = peaked().problem(), Variant.of("cce-exact")
    truth, got = double(problem), emulate(peaked().problem(), flags, SMALL, INTERPRETER, all_on())
    d_embeddings = got.d_embeddings
    assert d_embeddings is not None
    assert truth.d_embeddings is not None
    changed = (d_embeddings.double() + 1e-2 * truth.d_embeddings).bfloat16()
    other = replace(got, d_embeddings=changed)
    found = attribute(problem, truth, other, flags, SMALL, INTERPRETER)
    residue = (changed - d_embeddings).double().norm() / truth.d_embeddings.norm()
    assert found["d_embeddings"].residue == pytest.approx(float(residue))
    assert found["d_embeddings"].explained is not None
    assert found["d_embeddings"].explained < 1
    assert found["d_classifier"].explained == 1


def test_an_error_of_zero_has_no_shares() -> None:
    """A vocabulary of one: loss, residual and gradients are 0, and so is every error."""
    problem = draw((5,), v=1, d=16, ignored=0).problem()
    got, _ = run(problem, Variant.of("cce"), SMALL)
    found = attribute(problem, double(problem), got, Variant.of("cce"), SMALL, INTERPRETER)
    assert found["loss"].error == 0
    assert not any(shares(found["loss"]).values())
    assert found["loss"].explained == 1
