"""Laws of gradients and reductions: what sums to nothing, what bounds what, and what comes from upstream."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume

from ccelab.reference import double

from .cases import with_gaps
from .conditions import unfiltered, unfiltered_in_c, unfiltered_in_e
from .law import Trial, law
from .strategies import ORDINARY, specs


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


@law("cce", "cce-exact", needs=["bit-exact"], draw=specs(reduction="sum", upstream="ones"))
def test_a_sum_is_unreduced_losses_with_ones(trial: Trial) -> None:
    """The gradients of the summed loss are those of the per-token losses with ones from upstream.

    Source: Liger #968 (only the first upstream gradient was used).
    """
    case = trial.case
    ones = torch.ones(trial.spec.n, device=case.target.device)
    other = trial.run(replace(case, reduction="none", grad_loss=ones))
    trial.same(trial.outcome, other, "d_embeddings", "d_classifier", "d_bias", "lse")


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


@law("cce", "cce-exact", draw=specs(reduction="none", upstream="signed", lse=True, least=(33, 1, 1)), examples=2)
def test_signed_upstream_gradients(trial: Trial) -> None:
    """Upstream gradients of either sign, of loss and lse together, in several increments of dC: within budget.

    Source: Liger #968, TransformerEngine #2139 (upstream gradients ignored, or read with a wrong stride).
    """
    trial.judge()


@law("cce", "cce-no-filter", "cce-kahan", "cce-exact", draw=specs(upstream="zero", lse=False))
def test_no_upstream_gradient_gives_none(trial: Trial) -> None:
    """An upstream gradient of 0 gives gradients that are exactly 0.

    Source: Liger #968 (upstream gradients ignored).
    """
    for name in ("d_embeddings", "d_classifier", "d_bias"):
        assert name not in trial.outcome.outputs or not bool(trial.outcome[name].any()), f"{name} is not 0"


@law("cce", "cce-exact", draw=specs(families=ORDINARY, reduction="none", upstream="signed", least=(2, 2, 1)))
def test_strided_upstream_gradients_are_within_budget(trial: Trial) -> None:
    """An upstream gradient that is every second element of a larger vector, or one number expanded.

    Source: TransformerEngine #2139 (a mis-strided upstream gradient), #2402.
    """
    case = trial.case
    assert case.grad_loss is not None
    trial.judge(replace(case, grad_loss=with_gaps(case.grad_loss, between=1e4)))
    trial.judge(replace(case, grad_loss=case.grad_loss[:1].expand(trial.spec.n)))


@law("cce", "cce-exact", draw=specs(families=ORDINARY, dtypes=("float16",), n=2, v=33, reduction="mean", ignored=0))
def test_small_upstream_gradients_survive_fp16(trial: Trial) -> None:
    """An upstream gradient of 2^-12, as of a mean over 4096 tokens: within a budget that is relative to it.

    Source: Liger #512 (1/N applied before an fp16 cast underflows).
    """
    assume(trial.spec.softcap is None)
    small = torch.tensor(2.0**-12, device=trial.case.target.device)
    trial.judge(replace(trial.case, grad_loss=small, grad_lse=None))


@law("cce", "cce-exact", "cce-stored", draw=specs(families=ORDINARY, upstream="signed", lse=False))
def test_a_second_backward_pass_is_the_first_one_again(trial: Trial) -> None:
    """backward() twice through one graph: gradients within budget both times, or an error that says no.

    Source: losses that form gradients in the forward pass and scale them in place, so that a second pass scales twice
    (Liger, quack).
    """
    case = trial.case
    assert case.grad_loss is not None
    three = replace(case, grad_loss=3 * case.grad_loss)
    leaves = [x.detach().requires_grad_() for x in (case.input, case.linear_weight)]
    loss = trial.call(three, *leaves)
    try:
        for _ in range(2):
            found = torch.autograd.grad(loss, leaves, three.grad_loss, retain_graph=True)
    except RuntimeError:
        return
    outcome = trial.run(three)
    for name, gradient in zip(("d_embeddings", "d_classifier"), found, strict=True):
        outcome.outputs[name] = gradient
    trial.judge(three, outcome)


@law("cce", "cce-exact", draw=specs(families=ORDINARY, upstream="ones", lse=False))
def test_a_mean_over_nothing_is_no_accident(trial: Trial) -> None:
    """Nothing but ignored rows, whatever the reduction: losses and gradients are 0, or NaN as torch's mean is.

    Source: quack (0 times inf); apple/ml-cross-entropy 25.6.4 (a division by zero in backward).
    """
    case = replace(trial.case, target=torch.full_like(trial.case.target, trial.case.ignore_index))
    try:
        outcome = trial.run(case)
    except ArithmeticError as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    for name, output in outcome.outputs.items():
        wrong = ~((output == 0) | output.isnan())
        assert not bool(wrong.any()), f"{name} is {float(output[wrong][0])}"
