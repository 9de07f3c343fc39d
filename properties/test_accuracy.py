"""Laws of accuracy: every output against the oracle, and what follows from the definition without it.

Tolerances are budgets (`precision.budget`): bounds per element, computed from the input. Where two answers are
compared, each may use up its own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ccelab.reference.double import Stream

from .conditions import storing
from .law import Trial, law
from .strategies import specs

ALL_SUMS = ("cce", "cce-no-sort", "cce-kahan", "cce-exact,accumulate=hilo", "cce-exact")


@law(
    *ALL_SUMS,
    "cce,increment=tile",
    "cce-kahan,increment=tile",
    "cce-exact,target=indexed",
    "cce-stored",
    "cce-segment,eps=2^-6",
    "cce-segment,eps=2^-6,tail=drop",
    "cce-no-sort,eps=2^-6,tail=rank1",
    examples=2,
)
def test_every_output_is_within_its_budget(trial: Trial) -> None:
    """|got - truth| <= budget for loss, lse, dE, dC and dbias, whatever the family and the options.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, ch. 3-4.
    """
    trial.judge()


@law(
    "cce-stored",
    when=storing,
    draw=specs(
        families=("peaked", "real", "confident"), dtypes=("bfloat16", "float16"), softcap=None, least=(17, 33, 17)
    ),
)
def test_small_exponentials_are_stored_too(trial: Trial) -> None:
    """In 16 bits, exponentials far below the largest of their row count as well: every output within budget.

    Source: fp16 has no normal numbers below 2^-14, and a row's largest exponential is 1.
    """
    trial.judge()


@law("cce", "cce-exact", "cce-stored", draw=specs(families=("confident",), dtypes=("bfloat16", "float16", "float32")))
def test_confident_tokens_lose_nothing(trial: Trial) -> None:
    """A target of nearly all the probability: errors are absolute, at the size of E and C, never of the tiny gradient.

    Source: Liger #1268 (the true class read, changed and written back in bf16: 100 % off at p = 0.999).
    """
    trial.judge()


@law("cce", "cce-exact", draw=specs(families=("offset",)))
def test_a_common_offset_costs_what_its_products_cost(trial: Trial) -> None:
    """Logits that share a large offset: within the budget, whose terms follow the products and not |lse| twice over.

    Source: PyTorch #195829 (wrong loss at a large common offset), MLX #4188.
    """
    trial.judge()


@law("cce-no-sort", "cce-exact", draw=specs(families=("flat", "gaussian", "zipf"), lse=True))
def test_lse_lies_between_the_largest_logit_and_log_v_above(trial: Trial) -> None:
    """max z <= lse <= max z + ln V, up to the budget of the lse.

    Source: definition of the log-sum-exp.
    """
    verdict = trial.judge()
    stream = Stream(trial.case.problem())
    top = stream.logits(torch.arange(trial.spec.v, device=stream.embeddings.device)).amax(1)
    lse, slack = verdict.outcome["lse"].double(), verdict.budget.bound.lse
    valid = stream.valid[:, 0]
    zero = torch.zeros_like(lse)
    trial.bounded("shortfall of lse", torch.where(valid, (top - lse).clamp(min=0), 0.0), zero, slack)
    above = torch.where(valid, (lse - top - math.log(trial.spec.v)).clamp(min=0), 0.0)
    trial.bounded("excess of lse", above, zero, slack)


@law("cce", "cce-exact", "cce-exact,target=indexed", draw=specs(reduction="none", families=("confident", "gaussian")))
def test_a_loss_is_not_negative(trial: Trial) -> None:
    """loss >= 0: exactly so with a fused target, up to its budget with Algorithm 1's.

    Source: apple/ml-cross-entropy #52 (negative losses); PyTorch #195829.
    """
    verdict = trial.judge()
    loss = verdict.outcome["loss"].double()
    if "fused-target" in trial.bench.subject.promises and trial.variant.target == "fused":
        assert bool((loss >= 0).all()), f"the least loss is {float(loss.min())!r}"
    else:
        trial.bounded("negative part", (-loss).clamp(min=0), torch.zeros_like(loss), verdict.budget.bound.loss)


@law("cce", "cce-exact", needs=["lse"], draw=specs(reduction="none", lse=True, least=(15, 65, 1)), examples=0.6)
def test_another_target_moves_the_loss_by_the_logits(trial: Trial) -> None:
    """Targets t and t': the lse is the same, the losses differ by z_t - z_t'. Slack: both budgets.

    Source: definition; apple/ml-cross-entropy #52 (bias added once per block to the target's logit).
    """
    case = trial.case
    other = replace(
        case, target=torch.where(case.target == case.ignore_index, case.target, (case.target + 1) % trial.spec.v)
    )
    one, two = trial.judge(), trial.judge(other)
    trial.same(one.outcome["lse"], two.outcome["lse"], "lse")
    got = two.outcome["loss"].double() - one.outcome["loss"].double()
    slack = one.budget.bound.loss + two.budget.bound.loss + 2.0**-45 * (one.truth.lse.abs() + 1)
    trial.bounded("difference of losses", got, two.truth.loss - one.truth.loss, slack)


@law("cce-no-sort", "cce-exact", needs=["lse"], draw=specs(reduction="none", lse=True, bias=None, least=(1, 33, 1)))
def test_a_split_vocabulary_adds_up(trial: Trial) -> None:
    """lse = logaddexp(lse of some classes, lse of the others). Slack: the three budgets.

    Source: associativity of the log-sum-exp (vocabulary-parallel heads).
    """
    case, half = trial.case, max(1, trial.spec.v // 2)
    whole = trial.judge()
    parts = []
    for columns in (slice(0, half), slice(half, None)):
        weight = case.linear_weight[columns]
        target = torch.where(case.target == case.ignore_index, case.target, 0)
        parts.append(trial.judge(replace(case, linear_weight=weight, target=target)))
    joined = torch.logaddexp(*(part.outcome["lse"].double() for part in parts))
    valid = case.target != case.ignore_index
    slack = sum((part.budget.bound.lse for part in (whole, *parts)), torch.zeros_like(joined)) + 2.0**-45
    joined = torch.where(valid, joined, 0.0)
    trial.bounded("lse", whole.outcome["lse"], joined, slack * (1 + whole.truth.lse.abs() * 2.0**-45))


@law("cce-exact", needs=["lse", "bias"], draw=specs(reduction="none", lse=True, bias="float32", softcap=None))
def test_the_lse_moves_no_more_than_the_logits(trial: Trial) -> None:
    """|lse(z) - lse(z')| <= max |z - z'|. Slack: both budgets.

    Source: the gradient of the lse is a probability distribution.
    """
    case = trial.case
    assert case.linear_bias is not None
    g = torch.Generator().manual_seed(trial.spec.seed + 1)
    moved = case.linear_bias + torch.randn(trial.spec.v, generator=g).to(case.linear_bias.device) / 8
    one, two = trial.judge(), trial.judge(replace(case, linear_bias=moved))
    step = (moved.double() - case.linear_bias.double()).abs().max()
    change = (one.outcome["lse"].double() - two.outcome["lse"].double()).abs()
    excess = (change - step).clamp(min=0)
    trial.bounded("lse", excess, torch.zeros_like(excess), one.budget.bound.lse + two.budget.bound.lse)


@law("cce-exact", "cce", draw=specs(reduction="none", families=("gaussian", "confident"), v=2, bias=None, softcap=None))
def test_two_classes_are_a_softplus(trial: Trial) -> None:
    """V = 2: loss = log(1 + exp(z_other - z_target)). Slack: the budget of the loss.

    Source: closed form.
    """
    case = trial.case
    verdict = trial.judge()
    logits = case.input.double() @ case.linear_weight.double().T
    valid = case.target != case.ignore_index
    target = torch.where(valid, case.target, 0)[:, None]
    gap = (logits.gather(1, 1 - target) - logits.gather(1, target))[:, 0]
    want = torch.where(valid, torch.nn.functional.softplus(gap, threshold=700.0), 0.0)
    slack = verdict.budget.bound.loss + 2.0**-40 * (want + logits.abs().amax(1))
    trial.bounded("loss", verdict.outcome["loss"], want, slack)


@law("cce-exact", "cce", draw=specs(options=False, reduction="none"))
def test_no_embedding_is_a_uniform_guess(trial: Trial) -> None:
    """E = 0: the loss is ln V, dE = mean(C) - C_t, and dC is exactly 0. Slack: the budgets.

    Source: closed form.
    """
    case = replace(trial.case, input=torch.zeros_like(trial.case.input))
    verdict = trial.judge(case)
    want = torch.full((trial.spec.n,), math.log(trial.spec.v), dtype=torch.float64, device=case.input.device)
    trial.bounded("loss", verdict.outcome["loss"], want, verdict.budget.bound.loss + 2.0**-50 * want)
    assert not bool(verdict.outcome["d_classifier"].any()), "dC is not 0"


@law("cce-exact", "cce", needs=["fused-target"], draw=specs(reduction="none", v=1))
def test_one_class_is_certain(trial: Trial) -> None:
    """V = 1: every loss is exactly 0, and gradients within their budgets.

    Source: softmax over one class.
    """
    verdict = trial.judge()
    if trial.variant.target == "fused":
        assert not bool(verdict.outcome["loss"].any())


@law("cce-exact", "cce-no-sort", needs=["softcap"], draw=specs(reduction="none", lse=True, softcap=1.0, bias=None))
def test_a_softcap_bounds_the_logits(trial: Trial) -> None:
    """With softcap s: ln V - s <= lse <= ln V + s, whatever the logits. Slack: the budget.

    Source: |s tanh| <= s; apple/ml-cross-entropy #48 (softcap not applied), and padding capped to -s.
    """
    verdict = trial.judge()
    valid = trial.case.target != trial.case.ignore_index
    away = (verdict.outcome["lse"].double() - math.log(trial.spec.v)).abs()
    excess = torch.where(valid, (away - 1.0).clamp(min=0), 0.0)
    trial.bounded("lse", excess, torch.zeros_like(excess), verdict.budget.bound.lse + 2.0**-50)


@law("cce-exact", needs=["softcap"], draw=specs(families=("gaussian", "zipf"), reduction="none", softcap=2.0**20))
def test_a_wide_softcap_changes_little(trial: Trial) -> None:
    """s tanh(z / s) - z = O(z^3 / s^2): with s = 2^20 the loss is the uncapped one. Slack: both budgets and that term.

    Source: the Taylor series of tanh.
    """
    capped, plain = trial.judge(), trial.judge(replace(trial.case, softcap=None))
    largest = (
        Stream(trial.case.problem()).raw(torch.arange(trial.spec.v, device=trial.case.target.device)).abs().amax(1)
    )
    slack = capped.budget.bound.loss + plain.budget.bound.loss + largest**3 * 2.0**-39
    trial.bounded("loss", capped.outcome["loss"], plain.outcome["loss"], slack)
