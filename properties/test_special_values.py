"""Laws of NaN, infinities, zeros and what is out of range: they reach what they touch, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume

from .conditions import both, unfiltered, unsorted
from .law import Trial, law
from .strategies import specs


@law(
    "cce-no-sort",
    "cce-exact",
    needs=["schedule"],
    when=unsorted,
    draw=specs(families=("confident",), reduction="none", ignored=0, least=(2, 33, 33)),
)
def test_nan_in_a_row_stays_in_its_row(trial: Trial) -> None:
    """NaN in E_i: loss_i, lse_i and dE_i are NaN, all of dC is; other rows of loss and lse keep every bit.

    Source: a NaN that a maximum swallows (`tl.max`) and a filter that drops the tile with it.
    """
    case, row = trial.case, trial.pick(0, trial.spec.n - 1)
    spoiled = case.input.clone()
    spoiled[row, -1] = torch.nan
    one, other = trial.outcome, trial.run(replace(case, input=spoiled))
    rest = torch.arange(trial.spec.n, device=spoiled.device) != row
    for name in ("loss", "lse"):
        if name in one.outputs:
            assert bool(other[name][row].isnan()), f"{name} of the row is {float(other[name][row])}"
            trial.same(one[name][rest], other[name][rest], name)
    assert bool(other["d_embeddings"][row].isnan().all())
    assert bool(other["d_classifier"].isnan().all())


@law(
    "cce-no-sort",
    "cce-exact",
    "cce-kahan,order=none",
    when=unsorted,
    draw=specs(reduction="none", ignored=1, least=(3, 2, 2)),
)
def test_nan_in_an_ignored_row_goes_nowhere(trial: Trial) -> None:
    """NaN in a row that is ignored: every output is what it was.

    Source: 0 times NaN is NaN, in a product that counts the ignored row with weight 0.
    """
    case = trial.case
    spoiled = case.input.clone()
    spoiled[case.target == case.ignore_index] = torch.nan
    trial.same(trial.outcome, trial.run(replace(case, input=spoiled)))


@law("cce-no-sort", "cce-exact", "cce-stored", "cce", draw=specs(reduction="none", ignored=0, least=(1, 2, 2)))
def test_nan_in_a_class_spoils_every_row(trial: Trial) -> None:
    """NaN in C_v: every loss, and all of dE, is NaN."""
    spoiled = trial.case.linear_weight.clone()
    spoiled[trial.pick(0, trial.spec.v - 1), 0] = torch.nan
    outcome = trial.run(replace(trial.case, linear_weight=spoiled))
    assert bool(outcome["loss"].isnan().all())
    assert bool(outcome["d_embeddings"].isnan().all())


@law(
    "cce-no-sort",
    "cce-exact",
    needs=["bias"],
    draw=specs(reduction="none", bias="float32", softcap=None, least=(1, 3, 1)),
)
def test_a_bias_of_minus_infinity_masks_its_class(trial: Trial) -> None:
    """A class of bias -inf is as good as removed: the losses of the others within both budgets, its dC exactly 0."""
    case, v = trial.case, trial.spec.v
    assert case.linear_bias is not None
    bias = case.linear_bias.clone()
    bias[v - 1] = -torch.inf
    target = torch.where(case.target == v - 1, 0, case.target)
    masked = trial.judge(replace(case, linear_bias=bias, target=target))
    rest = slice(0, v - 1)
    removed = trial.judge(
        replace(case, linear_weight=case.linear_weight[rest], linear_bias=case.linear_bias[rest], target=target)
    )
    slack = masked.budget.bound.loss + removed.budget.bound.loss
    trial.bounded("loss", masked.outcome["loss"], removed.outcome["loss"], slack)
    assert not bool(masked.outcome["d_classifier"][v - 1].any())


@law(
    "cce-no-sort",
    "cce-exact",
    needs=["bias", "lse"],
    draw=specs(reduction="none", bias="float32", softcap=None, lse=True, ignored=0),
)
def test_nothing_but_masked_classes(trial: Trial) -> None:
    """All biases -inf: the lse is -inf as torch's, the gradients are NaN, and no plausible number appears."""
    bias = torch.full((trial.spec.v,), -torch.inf, device=trial.case.input.device)
    outcome = trial.run(replace(trial.case, linear_bias=bias))
    assert bool((outcome["lse"] == -torch.inf).all()), f"the lse is {float(outcome['lse'][0])} and not -inf"
    assert bool(outcome["d_embeddings"].isnan().all()), "dE holds plausible numbers"


@law(
    "cce-exact",
    "cce-no-filter",
    when=both(unfiltered, unsorted),
    draw=specs(
        families=("subnormal",), reduction="sum", dtypes=("bfloat16", "float16"), options=False, least=(1, 2, 1)
    ),
)
def test_subnormal_numbers_count(trial: Trial) -> None:
    """E of subnormal numbers is no E of zeros: dC is not 0 where the budget says that it is not.

    Source: interpreters and GPUs that flush subnormal numbers on loading.
    """
    verdict = trial.judge()
    truth, bound = verdict.truth.d_classifier, verdict.budget.bound.d_classifier
    assert truth is not None
    assert bound is not None
    must = truth.abs() > bound
    assert bool((verdict.outcome["d_classifier"][must] != 0).all())


@law("cce", "cce-exact", needs=["checks-targets"], draw=specs())
def test_targets_outside_the_vocabulary_are_errors(trial: Trial) -> None:
    """A target of V, or of -1, raises ValueError before anything is computed.

    Source: PyTorch #195829 (plausible numbers, or memory of others).
    """
    case = trial.case
    for wrong in (trial.spec.v, -1):
        target = case.target.clone()
        target[trial.pick(0, trial.spec.n - 1)] = wrong
        with pytest.raises(ValueError, match="out of range"):
            trial.run(replace(case, target=target))


@law("cce", "cce-exact", "cce-kahan", draw=specs(families=("offset", "confident", "dominant"), reduction="none"))
def test_finite_problems_have_finite_answers(trial: Trial) -> None:
    """Logits of some hundreds in size, none too large for fp32: no output is NaN or infinite.

    Source: SkyRL #2141 (all logits far below 0); quack's scaled exponentials overflow 89 nats below the maximum.
    """
    for name, output in trial.outcome.outputs.items():
        assert bool(output.isfinite().all()), f"{name} has {int((~output.isfinite()).sum())} that are not finite"


@law(
    "cce",
    "cce-exact",
    draw=specs(families=("gaussian",), reduction="none", softcap=None, bias=None, dtypes=("bfloat16", "float32")),
)
def test_logits_far_below_zero_are_logits(trial: Trial) -> None:
    """All logits near -1000: the same accuracy as anywhere.

    Source: SkyRL #2141 (a running maximum that starts at 0).
    """
    assume(trial.spec.d >= 2)
    case = trial.case
    e, c = case.input.clone(), case.linear_weight.clone()
    e[:, 0], c[:, 0] = 32.0, -32.0
    trial.judge(replace(case, input=e, linear_weight=c))
