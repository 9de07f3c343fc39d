"""Laws of the call itself, for anybody's: layouts, sizes beyond ordinary blocks, backward twice, wrong targets."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume

from .cases import with_gaps
from .law import Trial, law
from .strategies import specs

ORDINARY = ("gaussian", "zipf")


@law("cce", "cce-exact", draw=specs(families=ORDINARY, least=(2, 2, 2)))
def test_strided_inputs_are_within_budget(trial: Trial) -> None:
    """E transposed in memory, C every second row of a larger matrix: the numbers are those of copies.

    Source: TransformerEngine #2402 (non-contiguous inputs).
    """
    case = trial.case
    trial.judge(replace(case, input=case.input.T.contiguous().T, linear_weight=with_gaps(case.linear_weight)))


@law("cce", "cce-exact", draw=specs(families=ORDINARY, reduction="none", upstream="signed", least=(2, 2, 1)))
def test_strided_upstream_gradients_are_within_budget(trial: Trial) -> None:
    """An upstream gradient that is every second element of a larger vector, or one number expanded.

    Source: TransformerEngine #2139 (a mis-strided upstream gradient), #2402.
    """
    case = trial.case
    assert case.grad_loss is not None
    trial.judge(replace(case, grad_loss=with_gaps(case.grad_loss, between=1e4)))
    trial.judge(replace(case, grad_loss=case.grad_loss[:1].expand(trial.spec.n)))


@law("cce", "cce-exact", draw=specs(families=ORDINARY, upstream="signed", lse=False))
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


@law("cce", "cce-exact", draw=specs(families=ORDINARY, reduction="none", softcap=None, ignored=0, least=(3, 2, 2)))
def test_a_wrong_target_gives_no_plausible_number(trial: Trial) -> None:
    """A target of V or of -1 is refused, or its loss is not finite.

    Source: PyTorch #195829; Liger and Apple return finite losses.
    """
    case = trial.case
    for wrong in (trial.spec.v, -1):
        target = case.target.clone()
        target[1] = wrong  # not at an edge of the batch: a neighbour's memory is the batch's own
        try:
            outcome = trial.run(replace(case, target=target, wanted=(False, False, False), grad_lse=None))
        except (ValueError, IndexError, RuntimeError):
            continue
        loss = float(outcome["loss"][1])
        assert not torch.tensor(loss).isfinite(), f"the loss at target {wrong} of {trial.spec.v} classes is {loss}"


@law(
    "cce", "cce-exact", draw=specs(families=ORDINARY, dtypes=("bfloat16", "float32"), n=130, v=272, d=520), examples=0.6
)
def test_problems_larger_than_anybodys_block_are_within_budget(trial: Trial) -> None:
    """N = 130, V = 272 and D = 520: more than a block of 128 rows, and more than two of 256 columns, for subjects that
    choose their own blocks; ours takes its default schedule.

    Source: apple/ml-cross-entropy #52 (the bias once per 256 columns of D in the target's logit).
    """
    trial.judge(replace(trial.case, schedule=trial.default_schedule))


@law("cce", "cce-exact", draw=specs(families=ORDINARY, dtypes=("float16",), n=2, v=33, reduction="mean", ignored=0))
def test_small_upstream_gradients_survive_fp16(trial: Trial) -> None:
    """An upstream gradient of 2^-12, as of a mean over 4096 tokens: within a budget that is relative to it.

    Source: Liger #512 (1/N applied before an fp16 cast underflows).
    """
    assume(trial.spec.softcap is None)
    small = torch.tensor(2.0**-12, device=trial.case.target.device)
    trial.judge(replace(trial.case, grad_loss=small, grad_lse=None))
