"""Laws of the call itself, for anybody's: layouts, sizes beyond ordinary blocks, backward twice, wrong targets."""

from __future__ import annotations

from dataclasses import replace

import torch

from .cases import with_gaps
from .law import Trial, law
from .strategies import ORDINARY, specs


@law("cce", "cce-exact", draw=specs(families=ORDINARY, least=(2, 2, 2)))
def test_strided_inputs_are_within_budget(trial: Trial) -> None:
    """E transposed in memory, C every second row of a larger matrix: the numbers are those of copies.

    Source: TransformerEngine #2402 (non-contiguous inputs).
    """
    case = trial.case
    trial.judge(replace(case, input=case.input.T.contiguous().T, linear_weight=with_gaps(case.linear_weight)))


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
            loss = float(outcome["loss"][1])  # where a GPU's errors arrive
        except (ValueError, IndexError, RuntimeError):
            continue
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


@law(
    "cce",
    "cce-exact",
    draw=specs(families=("dominant",), dtypes=("bfloat16",), options=False, n=136, v=384, d=192),
    examples=0.6,
)
def test_a_target_far_below_the_maximum_is_within_budget(trial: Trial) -> None:
    """One class of every row is about 200 nats above its target: the loss is 200, the target's gradient is -1.

    V is a multiple of 128, as quack's scaled exponentials ask for. Source: quack 0.6.5 stores exp(lse - k) in bf16,
    with k of the target's tile.
    """
    far = replace(trial.case, input=4 * trial.case.input, schedule=trial.default_schedule)
    trial.judge(far)
