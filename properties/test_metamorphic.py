"""Laws without an oracle and without a tolerance: equal problems give equal bits, under one schedule."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import assume

from .conditions import both, by_tile, filtered_somewhere, in_order, without_filter
from .law import Trial, law
from .promises import EXACT
from .strategies import specs

# Far from overflow and from subnormal numbers, where scaling would round.
SAFE = ("gaussian", "peaked", "zipf", "duplicates", "powers", "integers", "coherent", "confident")
SKIPPING = ("peaked", "confident", "near_threshold")  # some tiles are kept and some are not
WIDE = ("bfloat16", "float32")  # fp16 has too few exponents for scaling to stay exact


def scaled(x: torch.Tensor, k: int) -> torch.Tensor:
    return torch.ldexp(x, torch.tensor(k, device=x.device))


@law(
    "cce",
    "cce-no-filter",
    "cce-kahan",
    "cce-exact,accumulate=hilo",
    "cce-exact",
    needs=EXACT,
    draw=specs(families=SAFE, dtypes=WIDE),
)
def test_powers_of_two_move_between_e_and_c(trial: Trial) -> None:
    """(E 2^k, C 2^-k) has the loss and lse of (E, C), dE 2^-k and dC 2^k: rounding commutes with powers of two."""
    k = trial.pick(-8, 8)
    case = trial.case
    other = trial.run(replace(case, input=scaled(case.input, k), linear_weight=scaled(case.linear_weight, -k)))
    one = trial.outcome
    trial.same(one, other, "reduced", "loss", "lse", "d_bias")
    assume(not _tiny(one["d_embeddings"]) and not _tiny(one["d_classifier"]))
    trial.same(scaled(one["d_embeddings"], -k), other["d_embeddings"], "dE")
    trial.same(scaled(one["d_classifier"], k), other["d_classifier"], "dC")


def _tiny(x: torch.Tensor) -> bool:
    """Whether entries are so small that a power of two might make them subnormal."""
    return bool(((x != 0) & (x.abs() < torch.finfo(x.dtype).smallest_normal * 2.0**60)).any())


@law(
    "cce",
    "cce-kahan",
    "cce-exact,accumulate=hilo",
    "cce-exact",
    needs=EXACT,
    draw=specs(families=SAFE, dtypes=WIDE, lse=False, least=(2, 17, 2)),
)
def test_upstream_powers_of_two_scale_gradients(trial: Trial) -> None:
    """An upstream gradient times 2^k gives gradients times 2^k: the filter and the casts see the row's own scale.

    Source: Liger #512 (1/N applied before an fp16 cast); Apple's filter, which is blind to the upstream gradient.
    """
    case, k = trial.case, 10 - 20 * trial.pick(0, 1)
    assert case.grad_loss is not None
    one, other = trial.outcome, trial.run(replace(case, grad_loss=scaled(case.grad_loss, k)))
    for name in ("d_embeddings", "d_classifier", "d_bias"):
        if name in one.outputs:
            assume(not _tiny(one[name]))
            trial.same(scaled(one[name], k), other[name], name)


@law("cce", "cce-no-filter", "cce-kahan", "cce-exact", needs=EXACT, draw=specs())
def test_signs_of_e_and_c_cancel(trial: Trial) -> None:
    """(-E, -C) has the same loss and lse, and -dE, -dC: rounding to nearest and truncation are both odd."""
    case = trial.case
    one, other = trial.outcome, trial.run(replace(case, input=-case.input, linear_weight=-case.linear_weight))
    trial.same(one, other, "reduced", "loss", "lse", "d_bias")
    trial.same(-one["d_embeddings"], other["d_embeddings"], "dE")
    trial.same(-one["d_classifier"], other["d_classifier"], "dC")


@law("cce", "cce-kahan", "cce-exact", needs=EXACT, draw=specs())
def test_columns_of_zeros_change_nothing(trial: Trial) -> None:
    """Zero columns appended to E and C leave every output as it was, and get gradients that are exactly 0.

    The sums over D are those of the same blocks while the zeros stay within the last block of the columns.
    """
    case = trial.case
    more = -trial.spec.d % case.schedule.forward.block_d
    assume(more > 0 and trial.spec.d % case.schedule.backward.block_d + more <= case.schedule.backward.block_d)
    pad = (0, more)
    wide = replace(
        case,
        input=torch.nn.functional.pad(case.input, pad),
        linear_weight=torch.nn.functional.pad(case.linear_weight, pad),
    )
    one, other = trial.outcome, trial.run(wide)
    trial.same(one, other, "reduced", "loss", "lse", "d_bias")
    for name in ("d_embeddings", "d_classifier"):
        trial.same(one[name], other[name][:, : trial.spec.d], name)
        assert not bool(other[name][:, trial.spec.d :].any()), f"{name} of a zero column is not 0"


@law("cce", "cce-exact", needs=["ignored-is-zero"], draw=specs(reduction="none", ignored=5, upstream="signed"))
def test_ignored_rows_are_zero(trial: Trial) -> None:
    """Loss, lse and dE of ignored rows are exactly 0, whatever comes from upstream."""
    ignored = trial.case.target == trial.case.ignore_index
    for name in ("loss", "lse", "d_embeddings"):
        if name in trial.outcome.outputs:
            assert not bool(trial.outcome[name][ignored].any()), f"{name} of an ignored row is not 0"


@law("cce", "cce-kahan", "cce-exact", needs=["ignored-is-zero"], draw=specs())
def test_all_ignored_is_nothing(trial: Trial) -> None:
    """Nothing but ignored rows: losses, their mean and every gradient are exactly 0.

    Source: quack (0 times inf is NaN); torch documents NaN.
    """
    case = replace(trial.case, target=torch.full_like(trial.case.target, -100))
    for name, output in trial.run(case).outputs.items():
        assert not bool(output.any()), f"{name} is {output.flatten()[0]}"


@law(
    "cce",
    "cce-kahan",
    needs=["filter", *EXACT],
    when=both(filtered_somewhere, by_tile),
    draw=specs(families=("near_threshold", "peaked"), n=33, ignored=5, least=(2, 33, 2)),
    both_kinds=True,
)
def test_eps_of_zero_filters_nothing(trial: Trial) -> None:
    """eps = 0 drops only what is exactly 0: gradients are those of the variant without filters.

    Exactly 0 are here the tiles of the last block of rows, of which all are ignored.
    """
    none = replace(trial.variant, eps=0.0)
    off = without_filter(trial.variant)
    one, other = trial.run(trial.made(none)), trial.run(trial.made(off))
    trial.same(one, other, "d_embeddings", "d_classifier", "d_bias")


@law(
    "cce-no-filter,order=mean_logit",
    "cce",
    needs=EXACT,
    when=in_order,
    draw=specs(families=("gaussian", "zipf", "peaked")),
)
def test_a_vocabulary_in_order_stays_so(trial: Trial) -> None:
    """Classes given in the order that sorting finds: sorted or not, the same bits, and the order found is as given."""
    case = trial.case
    order = trial.outcome.stats.order
    assert order is not None
    order = order.long()
    valid = case.target != case.ignore_index
    place = order.argsort()
    moved = replace(
        case,
        linear_weight=case.linear_weight[order],
        linear_bias=None if case.linear_bias is None else case.linear_bias[order],
        target=torch.where(valid, place[torch.where(valid, case.target, 0)], case.target),
    )
    one = trial.run(moved)
    found = one.stats.order
    assert found is not None
    assume(bool((found == torch.arange(len(found), device=found.device)).all()))  # ties of computed means may turn
    trial.same(one, trial.run(replace(moved, variant=replace(trial.variant, order="none"))))


@law(
    "cce-kahan-full-c",
    "cce,filter_c=no",
    "cce-kahan-full-c,order=none,eps=2^-6,tail=rank1",
    needs=["filter", *EXACT],
    draw=specs(families=SKIPPING, softcap=None, least=(17, 65, 33)),
    when=lambda v: None if v.filter_e and not v.filter_c else "it is no full-C variant",
    both_kinds=True,
)
def test_full_c_is_unfiltered_in_dc(trial: Trial) -> None:
    """A full-C variant's dC is bit for bit that of the variant with both filters off. So is dbias."""
    off = without_filter(trial.variant)
    trial.same(trial.outcome, trial.run(trial.made(off)), "d_classifier", "d_bias")


@law(
    "cce-kahan-full-e",
    "cce,filter_e=no",
    "cce-kahan-full-e,order=none,eps=2^-6,tail=rank1",
    needs=["filter", *EXACT],
    draw=specs(families=SKIPPING, softcap=None, least=(17, 65, 33)),
    when=lambda v: None if v.filter_c and not v.filter_e else "it is no full-E variant",
    both_kinds=True,
)
def test_full_e_is_unfiltered_in_de(trial: Trial) -> None:
    """A full-E variant's dE is bit for bit that of the variant with both filters off."""
    off = without_filter(trial.variant)
    trial.same(trial.outcome, trial.run(trial.made(off)), "d_embeddings")


@law(
    "cce-exact",
    "cce",
    needs=EXACT,
    draw=specs(families=("integers",), bias=None, softcap=None, v=1, reduction="none", lse=True, dtypes=WIDE),
)
def test_integer_logits_are_exact(trial: Trial) -> None:
    """Entries in -2..2 and one class: the lse is the logit itself, an integer, without any rounding."""
    case = trial.case
    want = (case.input.double() @ case.linear_weight.double().T)[:, 0]
    want = torch.where(case.target == case.ignore_index, 0.0, want)
    trial.same(trial.outcome["lse"].double(), want, "lse")


@law("cce", "cce-exact", needs=EXACT, draw=specs(families=("gaussian", "integers")))
def test_negative_zeros_are_zeros(trial: Trial) -> None:
    """0 and -0 in E and C: the same numbers."""
    case = trial.case
    even = torch.arange(trial.spec.d, device=case.target.device) % 2 == 0
    one, other = (
        trial.run(
            replace(
                case,
                input=torch.where(even, zero, case.input),
                linear_weight=torch.where(even, zero, case.linear_weight),
            )
        )
        for zero in (torch.zeros_like(case.input[:1, :1]), -torch.zeros_like(case.input[:1, :1]))
    )
    trial.same(one, other)
