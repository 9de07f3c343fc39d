"""Laws of accuracy: every output against the oracle, and what follows from the definition without it.

Tolerances are budgets (`precision.budget`): bounds per element, computed from the input. Where two answers are
compared, each may use up its own.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import assume

from ccelab.reference import double
from ccelab.reference.double import Stream

from .conditions import unfiltered, unfiltered_in_c, unfiltered_in_e
from .law import Trial, law
from .strategies import specs

ALL_SUMS = ("cce", "cce-no-sort", "cce-kahan", "cce-exact,accumulate=hilo", "cce-exact")


@law(*ALL_SUMS, "cce-exact,target=indexed", examples=2)
def test_every_output_is_within_its_budget(trial: Trial) -> None:
    """|got - truth| <= budget for loss, lse, dE, dC and dbias, whatever the family and the options.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, ch. 3-4.
    """
    trial.judge()


@law("cce", "cce-exact", draw=specs(families=("confident",), dtypes=("bfloat16", "float16", "float32")))
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


@law("cce-no-filter", "cce-exact", when=unfiltered, draw=specs(options=False, reduction="sum", least=(1, 2, 1)))
def test_de_is_no_larger_than_the_residual_allows(trial: Trial) -> None:
    """|dE_id| <= 2 (1 - p_t) max_v |C_vd|, since sum_v |softmax - onehot| = 2 (1 - p_t). Slack: the budget of dE.

    Source: the residual's row sum.
    """
    verdict = trial.judge()
    truth = verdict.truth
    rest = -torch.expm1(-truth.loss)
    largest = trial.case.linear_weight.double().abs().amax(0)
    limit = 2 * rest[:, None] * largest * (1 + 2.0**-40)
    excess = (verdict.outcome["d_embeddings"].double().abs() - limit).clamp(min=0)
    trial.bounded("excess of dE", excess, torch.zeros_like(excess), verdict.budget.bound.d_embeddings)


@law("cce-no-filter", "cce-exact", when=unfiltered, draw=specs(options=False, reduction="sum", least=(2, 2, 1)))
def test_dc_is_no_larger_than_the_residuals_allow(trial: Trial) -> None:
    """sum_v |dC_vd| <= 2 sum_i (1 - p_i) |E_id|. Slack: the budgets of dC's column.

    Source: the residual's row sum.
    """
    verdict = trial.judge()
    rest = -torch.expm1(-verdict.truth.loss)
    limit = 2 * (rest[:, None] * trial.case.input.double().abs()).sum(0) * (1 + 2.0**-40)
    excess = (verdict.outcome["d_classifier"].double().abs().sum(0) - limit).clamp(min=0)
    trial.bounded("excess of dC", excess, torch.zeros_like(excess), verdict.budget.bound.d_classifier.sum(0))


@law(
    "cce-no-filter",
    "cce-kahan-full-e",
    "cce-exact",
    when=unfiltered_in_e,
    draw=specs(options=False, least=(1, 1, 2)),
)
def test_a_constant_column_of_c_gets_no_gradient_in_e(trial: Trial) -> None:
    """If C[:, 0] is one number for all classes, dE[:, 0] is 0: the residual's rows sum to 0. Slack: the budget of dE.

    Source: conservation; marin #8217 (forward and backward logits at different precision break it).
    """
    weight = trial.case.linear_weight.clone()
    weight[:, 0] = 2.0
    verdict = trial.judge(replace(trial.case, linear_weight=weight))
    column = verdict.outcome["d_embeddings"][:, 0]
    trial.bounded("dE[:, 0]", column, torch.zeros_like(column), verdict.budget.bound.d_embeddings[:, 0])


@law("cce-no-filter", "cce-kahan-full-c", "cce-exact", when=unfiltered_in_c, draw=specs(options=False))
def test_dc_sums_to_nothing_over_the_vocabulary(trial: Trial) -> None:
    """sum_v dC_v = 0, since each row of the residual sums to 0. Slack: the budgets of the column.

    Source: conservation (softmax rows sum to 1).
    """
    verdict = trial.judge()
    total = verdict.outcome["d_classifier"].double().sum(0)
    trial.bounded("sum of dC", total, torch.zeros_like(total), verdict.budget.bound.d_classifier.sum(0))


@law(
    "cce-no-sort",
    "cce-exact",
    needs=["bias", "lse"],
    draw=specs(bias="float32", reduction="sum", softcap=None, lse=True, upstream="signed", least=(17, 1, 1)),
)
def test_dbias_sums_to_the_lse_gradients(trial: Trial) -> None:
    """sum_v dbias_v = sum_i dlse_i over rows that are not ignored, uncapped: the loss's part of each row sums to 0.

    Source: conservation; apple/ml-cross-entropy (an early return dropped dbias of filtered tiles).
    """
    verdict = trial.judge()
    case = trial.case
    valid = case.target != case.ignore_index
    total, want = verdict.outcome["d_bias"].double().sum(), torch.where(valid, case.grad_lse, 0.0).double().sum()
    trial.bounded("sum of dbias", total, want, verdict.budget.bound.d_bias.sum())


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


@law("cce-exact", "cce-no-sort", draw=specs(options=False, reduction="sum", least=(2, 1, 1)))
def test_batches_add_up(trial: Trial) -> None:
    """dC and the summed loss of a batch are the sums of those of its halves. Slack: the three budgets.

    Source: linearity; torch's chunked loss in bf16 (11.7 % off at 256 chunks) and Liger #1391.
    """
    case, half = trial.case, trial.spec.n // 2
    whole = trial.judge()
    parts = [
        trial.judge(replace(case, input=case.input[rows], target=case.target[rows]))
        for rows in (slice(0, half), slice(half, None))
    ]
    for name in ("reduced", "d_classifier"):
        total = sum(part.outcome[name].double() for part in parts)
        slack = sum(getattr(part.budget.bound, name) for part in (whole, *parts))
        assert isinstance(total, torch.Tensor)
        assert isinstance(slack, torch.Tensor)
        shape = getattr(whole.truth, name).shape
        trial.bounded(
            name,
            whole.outcome[name].reshape(shape),
            total.reshape(shape),
            slack + 2.0**-45 * total.reshape(shape).abs(),
        )


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


@law("cce", "cce-exact", draw=specs(reduction="none", ignored=1, least=(2, 1, 1)))
def test_reductions_agree_with_the_losses(trial: Trial) -> None:
    """sum and mean are the float64 sum of the per-token losses, rounded once; the mean divides by what is not ignored.

    Source: definition; Automodel #3803 (a mean 128 times too large), TE #2476 (ignored tokens in the denominator).
    """
    case = trial.case
    losses = trial.outcome["loss"].double()
    count = max(int((case.target != case.ignore_index).sum()), 1)
    for reduction, want in (("sum", losses.sum()), ("mean", losses.sum() / count)):
        reduced = trial.run(replace(case, reduction=reduction, grad_loss=None, wanted=(False, False, False)))["reduced"]
        scale = losses.abs().sum() / (count if reduction == "mean" else 1)
        # Who promises no bits may sum in fp32 and in any order.
        roundings = 1 + trial.spec.n * (2.0**-20 if "bit-exact" in trial.bench.subject.promises else 1)
        trial.bounded(reduction, reduced[0], want, 2.0**-24 * scale * roundings)


@law("cce-exact", "cce-no-sort", draw=specs(options=False, reduction="sum", least=(1, 2, 1)))
def test_the_order_of_classes_does_not_matter(trial: Trial) -> None:
    """Classes in another order: loss, dE, and dC in that order, up to both budgets.

    Source: symmetry of the sum.
    """
    case = trial.case
    g = torch.Generator().manual_seed(trial.spec.seed)
    order = torch.randperm(trial.spec.v, generator=g).to(case.target.device)
    moved = replace(case, linear_weight=case.linear_weight[order], target=order.argsort()[case.target])
    one, two = trial.judge(), trial.judge(moved)
    a, b = one.budget.bound, two.budget.bound
    trial.bounded("loss", two.outcome["reduced"][0], one.outcome["reduced"][0], a.reduced + b.reduced)
    trial.bounded("dE", two.outcome["d_embeddings"], one.outcome["d_embeddings"], a.d_embeddings + b.d_embeddings)
    slack = a.d_classifier[order] + b.d_classifier
    trial.bounded("dC", two.outcome["d_classifier"], one.outcome["d_classifier"][order], slack)


@law("cce-exact", "cce", draw=specs(reduction="sum", families=("gaussian", "peaked")))
def test_de_points_where_the_loss_rises(trial: Trial) -> None:
    """<dE, truth> > 0: a step against dE lowers the loss, so that signs cannot be wrong. Needs no tolerance.

    Source: the loss's derivative along dE.
    """
    assume(trial.spec.upstream == "ones" and not trial.spec.lse and trial.spec.softcap is None)
    gradient = trial.outcome["d_embeddings"].double()
    problem = trial.case.problem()
    truth = double(problem)
    assert truth.d_embeddings is not None
    assume(float(truth.d_embeddings.norm()) > 1e-3)
    assume(not trial.is_filtered or bool(gradient.any()))
    slope = float((gradient * truth.d_embeddings).sum())
    assert slope > 0, f"<dE, truth> = {slope:.3e}: not a direction of ascent"
