"""Laws of what must not matter: other tokens, who asks, layouts, types, shapes, flags of the other pass."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume

from .cases import Case, with_gaps
from .conditions import both, unfiltered, unsorted, without_filter
from .law import Trial, law
from .promises import EXACT
from .strategies import specs


def _rows(case: Case, rows: torch.Tensor | slice) -> Case:
    """The case of some of its rows, unreduced."""
    assert case.grad_loss is not None
    assert case.reduction == "none"
    return replace(
        case,
        input=case.input[rows],
        target=case.target[rows],
        grad_loss=case.grad_loss[rows],
        grad_lse=None if case.grad_lse is None else case.grad_lse[rows],
    )


@law(
    "cce-no-filter",
    "cce-kahan,order=none",
    "cce-exact",
    needs=EXACT,
    when=unsorted,
    draw=specs(reduction="none", least=(17, 2, 1)),
)
def test_tokens_do_not_see_each_other(trial: Trial) -> None:
    """Tokens in another order have their losses, lse and, unfiltered, dE in that order.

    Source: rows are independent; a tile of the filter is not.
    """
    case = trial.case
    order = torch.randperm(trial.spec.n, generator=torch.Generator().manual_seed(trial.spec.seed)).to(
        case.target.device
    )
    one, other = trial.outcome, trial.run(_rows(case, order))
    for name in ("loss", "lse", *(() if trial.variant.filter_e else ("d_embeddings",))):
        if name in one.outputs:
            trial.same(one[name][order], other[name], name)


@law("cce-no-filter", "cce-exact", needs=EXACT, when=unsorted, draw=specs(reduction="none", least=(2, 65, 1)))
def test_a_part_of_the_batch_is_as_it_was(trial: Trial) -> None:
    """The first rows alone have the losses, lse and, unfiltered, dE that they have in the batch."""
    rows = slice(0, max(1, trial.spec.n // 2))
    one, other = trial.outcome, trial.run(_rows(trial.case, rows))
    for name in ("loss", "lse", *(() if trial.variant.filter_e else ("d_embeddings",))):
        if name in one.outputs:
            trial.same(one[name][rows], other[name], name)


@law("cce-no-filter", "cce-exact", needs=EXACT, when=unsorted, draw=specs(reduction="none", ignored=5, least=(2, 1, 1)))
def test_ignored_is_removed(trial: Trial) -> None:
    """Rows that are ignored or removed: the others' losses, lse and, unfiltered, dE are the same.

    Source: definition of ignore_index.
    """
    case = trial.case
    kept = case.target != case.ignore_index
    assume(bool(kept.any()))
    one, other = trial.outcome, trial.run(_rows(case, kept))
    for name in ("loss", "lse", *(() if trial.variant.filter_e else ("d_embeddings",))):
        if name in one.outputs:
            trial.same(one[name][kept], other[name], name)


@law("cce", "cce-kahan", "cce-exact", needs=["bit-exact"], draw=specs())
def test_a_second_run_repeats_every_bit(trial: Trial) -> None:
    """The same call twice: the same bits in every output."""
    trial.same(trial.outcome, trial.run(trial.case))


@law("cce", "cce-exact", needs=EXACT, draw=specs())
def test_strides_do_not_matter(trial: Trial) -> None:
    """E and C transposed in memory, or every second row of a larger matrix: the same bits.

    Source: TE #2402 (non-contiguous inputs).
    """
    case = trial.case
    turned = replace(case, input=case.input.T.contiguous().T, linear_weight=case.linear_weight.T.contiguous().T)
    trial.same(trial.outcome, trial.run(turned))
    trial.same(trial.outcome, trial.run(replace(case, linear_weight=with_gaps(case.linear_weight))))


@law("cce", "cce-exact", needs=EXACT, draw=specs(families=("peaked",), softcap=None, least=(17, 65, 33)))
def test_gradients_do_not_depend_on_who_else_asks(trial: Trial) -> None:
    """dE alone, dC alone and dbias alone are those of the call that asks for all."""
    names = ("d_embeddings", "d_classifier", "d_bias")
    for place, name in enumerate(names):
        if name in trial.outcome.outputs:
            wanted = tuple(i == place for i in range(3))
            alone = trial.run(replace(trial.case, wanted=wanted))  # type: ignore[arg-type]
            trial.same(trial.outcome, alone, name, "reduced")


@law("cce", "cce-exact", needs=["bit-exact"], draw=specs(reduction="none", n=30))
def test_shapes_before_the_last_dimension_do_not_matter(trial: Trial) -> None:
    """(30, D) or (5, 2, 3, D): the same numbers in the shape of the targets."""
    case, shape = trial.case, (5, 2, 3)
    assert case.grad_loss is not None
    deep = replace(
        case,
        input=case.input.reshape(*shape, -1),
        target=case.target.reshape(shape),
        grad_loss=case.grad_loss.reshape(shape),
        grad_lse=None if case.grad_lse is None else case.grad_lse.reshape(shape),
    )
    trial.same(trial.outcome, trial.run(deep))


@law(
    "cce-no-filter",
    "cce-exact",
    needs=["bit-exact"],
    when=both(unfiltered, unsorted),
    draw=specs(reduction="none", lse=False, upstream="ones", least=(4, 1, 1)),
)
def test_a_shift_is_a_slice(trial: Trial) -> None:
    """shift = k pairs row t with target t + k: the losses of E[:-k] with x[k:], and nothing from the last rows."""
    case, k = trial.case, trial.pick(1, 3)
    shifted = trial.run(replace(case, shift=k, grad_loss=torch.ones(trial.spec.n - k, device=case.target.device)))
    sliced = trial.run(_rows(replace(case, target=case.target.roll(-k)), slice(0, trial.spec.n - k)))
    trial.same(shifted["loss"][:-k], sliced["loss"], "loss")
    trial.same(shifted["d_embeddings"][:-k], sliced["d_embeddings"], "dE")
    assert not bool(shifted["d_embeddings"][-k:].any())


@law("cce", "cce-exact", needs=["bit-exact"], draw=specs(ignored=1))
def test_targets_may_have_any_integer_type_and_mark(trial: Trial) -> None:
    """int32 or int64 targets, ignored by -100 or by V + 7: the same bits."""
    case, mark = trial.case, trial.spec.v + 7
    marked = torch.where(case.target == -100, mark, case.target)
    trial.same(trial.outcome, trial.run(replace(case, target=case.target.int())))
    trial.same(trial.outcome, trial.run(replace(case, target=marked, ignore_index=mark)))


@law("cce", "cce-exact", needs=["lse", "bit-exact"], draw=specs(reduction="none"))
def test_asking_for_the_lse_changes_no_loss(trial: Trial) -> None:
    """With and without return_lse: the same losses."""
    case = trial.case
    zero = torch.zeros(trial.spec.n, device=case.target.device)
    with_lse, without = trial.run(replace(case, grad_lse=zero)), trial.run(replace(case, grad_lse=None))
    trial.same(with_lse, without, "loss", "d_embeddings", "d_classifier", "d_bias")


@law(
    "cce",
    "cce-kahan",
    "cce-no-sort",
    "cce-exact,accumulate=hilo",
    needs=EXACT,
    draw=specs(reduction="none", lse=True, least=(1, 1, 33)),
)
def test_backward_flags_do_not_touch_the_forward_pass(trial: Trial) -> None:
    """Filters, order and sums belong to gradients: loss and lse are those of cce-exact with the same target."""
    plain = replace(without_filter(trial.variant), order="none", accumulate="fp32")
    trial.same(trial.outcome, trial.run(trial.made(plain)), "loss", "lse")


@law("cce-exact", "cce", needs=EXACT, draw=specs())
def test_the_target_flag_does_not_touch_gradients(trial: Trial) -> None:
    """Fused or by Algorithm 1, the target's logit enters the loss alone: lse and gradients are the same bits."""
    other = replace(trial.variant, target="indexed" if trial.variant.target == "fused" else "fused")
    names = ("lse", "d_embeddings", "d_classifier", "d_bias")
    trial.same(trial.outcome, trial.run(trial.made(other)), *names)


@law(
    "cce-no-filter",
    "cce-exact",
    needs=EXACT,
    when=unsorted,
    draw=specs(families=("duplicates",), reduction="none", upstream="ones", ignored=0, lse=False, least=(17, 2, 1)),
)
def test_equal_rows_have_equal_answers(trial: Trial) -> None:
    """Rows 0, 3, 6, ... are the same: with one target they have the same loss and, unfiltered, the same dE."""
    case = replace(trial.case, target=torch.zeros_like(trial.case.target))
    outcome = trial.run(case)
    for name in ("loss", *(() if trial.variant.filter_e else ("d_embeddings",))):
        for row in range(3, trial.spec.n, 3):
            trial.same(outcome[name][0], outcome[name][row], name)


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
