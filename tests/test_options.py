"""Every preset, dtype and option within budget, over ragged shapes: on a GPU or in the interpreter, the same tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from ccelab.kernels import PRESETS, Schedule, Tiles, linear_cross_entropy
from ccelab.precision.floors import floors
from ccelab.precision.measure import measure
from ccelab.properties.cases import (
    DEVICE,
    DTYPES,
    SMALL,
    Case,
    assert_within_budget,
    draw,
    judge,
    peaked,
    run,
)

OTHERS = (
    "cce-exact,accumulate=hilo",
    "cce,accumulate=hilo,target=indexed",
    "cce-exact,accumulate=kahan",
    "cce-no-sort,accumulate=fp32,target=indexed",
)
TAILS = ("cce-no-sort,tail=rank1", "cce-kahan-full-e,order=none,accumulate=fp32,tail=rank1")
AXES: dict[str, tuple[Any, ...]] = {
    "variant": (*PRESETS, *OTHERS, *TAILS),
    "dtype": DTYPES,
    "bias": (None, "same", torch.float32),
    "softcap": (None, 30.0, 0.75),
    "reduction": ("none", "mean", "sum"),
    "lse": (False, True),
    "shift": (0, 1, 3),
    "ignored": (0, 2, 40),
    "leading": ((35,), (3, 12), (2, 1, 17)),
    "layout": ("contiguous", "columns", "strided", "reversed", "expanded"),
    "upstream": ("ones", "signed", "zero", "expanded", "strided"),
    "targets": (torch.int64, torch.int32),
}


def pairwise(axes: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Few rows in which any two values of different axes meet: greedy, from an uncovered pair."""
    names = list(axes)
    open_pairs = {
        ((a, i), (b, j))
        for a, b in combinations(range(len(names)), 2)
        for i, j in product(range(len(axes[names[a]])), range(len(axes[names[b]])))
    }
    while open_pairs:
        row = dict(min(open_pairs))
        for a in range(len(names)):
            if a not in row:
                gains = [
                    sum(tuple(sorted([(a, i), pair])) in open_pairs for pair in row.items())
                    for i in range(len(axes[names[a]]))
                ]
                row[a] = gains.index(max(gains))
        open_pairs -= set(combinations(sorted(row.items()), 2))
        yield {name: axes[name][row[a]] for a, name in enumerate(names)}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, other strides (`expanded` repeats the first row)."""
    if layout == "columns":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "reversed":  # rows of a larger matrix, from its last columns
        wide = torch.full((*x.shape[:-1], 128), torch.nan, dtype=x.dtype, device=x.device)
        wide[..., -x.shape[-1] :] = x
        return wide[..., -x.shape[-1] :]
    return x[..., :1, :].expand(x.shape) if layout == "expanded" else x


def upstream(kind: str, given: Tensor) -> Tensor | None:
    if kind == "zero":
        return torch.zeros_like(given)
    if kind == "expanded":
        return given.reshape(-1)[0].expand(given.shape)
    if kind == "strided" and given.ndim:
        return given.repeat_interleave(2, -1)[..., ::2]
    return None if kind == "ones" else given


def case_of(row: dict[str, Any], v: int = 67, d: int = 35) -> Case:
    given = dict(row)
    layout, kind, targets = (given.pop(name) for name in ("layout", "upstream", "targets"))
    given["bias"] = given["dtype"] if given["bias"] == "same" else given["bias"]
    case = draw(given.pop("leading"), v, d, given.pop("dtype"), **given)
    assert case.grad_loss is not None
    return replace(
        case,
        input=laid_out(case.input, layout),
        linear_weight=laid_out(case.linear_weight, layout) if layout != "expanded" else case.linear_weight,
        linear_bias=None if case.linear_bias is None else laid_out(case.linear_bias[None], layout)[0],
        grad_loss=upstream(kind, case.grad_loss),
        grad_lse=None if case.grad_lse is None else upstream("signed" if kind == "ones" else kind, case.grad_lse),
        target=case.target.to(targets),
    )


ROWS = list(pairwise(AXES))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())).replace("torch.", ""))
def test_options_in_pairs(row: dict[str, Any]) -> None:
    assert_within_budget(case_of(row))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", [*PRESETS, *OTHERS[:2], *TAILS])
def test_presets_filter_and_stay_within_budget(variant: str, dtype: torch.dtype) -> None:
    """Peaked rows: every filter has both something to keep and something to skip, and does as the budget foresees."""
    case = peaked(dtype=dtype, variant=variant)
    verdict = assert_within_budget(case)
    stats, flags = verdict.outcome.stats, PRESETS[variant.partition(",")[0]]
    n, v, _ = case.problem().shape
    of_e, of_c = (3 * v, n * 5) if flags.granularity == "segment" else (3 * 5, 3 * 5)
    for kept, skipped, filtered, of_all in (
        (stats.tiles_kept_e, stats.tiles_skipped_e, flags.filter_e and "exact" not in variant, of_e),
        (stats.tiles_kept_c, stats.tiles_skipped_c, flags.filter_c and "exact" not in variant, of_c),
    ):
        assert kept
        assert kept + (skipped or 0) == of_all
        assert bool(skipped) == filtered
    if flags.filter_e:
        mass = stats.filtered_mass_e
        assert mass is not None
        assert bool((mass >= 0).all())
        assert bool((mass[case.target == case.ignore_index] == 0).all())


@pytest.mark.parametrize("eps", ["0", "2^-6", "0.25", "1", "4"])
def test_eps_decides_how_much_is_kept(eps: str) -> None:
    case = peaked(variant=f"cce-no-sort,eps={eps}", lse=True)
    verdict = assert_within_budget(case)
    stats = verdict.outcome.stats
    assert stats.tiles_kept_e == stats.tiles_kept_c  # both filters ask the same question of the same tiles
    if eps == "4":
        assert stats.tiles_kept_e == 0


def test_an_infinite_eps_keeps_nothing() -> None:
    """Not even for the sake of ignored rows, whose threshold would be 0 times infinity."""
    stats = assert_within_budget(draw((20,), 40, 20, variant="cce-no-sort,eps=inf")).outcome.stats
    assert stats.tiles_kept_e == stats.tiles_kept_c == 0


@pytest.mark.parametrize(("n", "v", "d"), [(1, 33, 40), (33, 1, 40), (33, 40, 1), (1, 1, 1), (17, 2, 17), (64, 96, 64)])
@pytest.mark.parametrize("variant", ["cce", "cce-exact,target=indexed"])
def test_ones_and_whole_tiles(variant: str, n: int, v: int, d: int) -> None:
    assert_within_budget(draw((n,), v, d, variant=variant, ignored=0, lse=True, bias=torch.float32))


def test_a_single_token_needs_no_dimension() -> None:
    case = draw((1,), 40, 20, ignored=0)
    flat = run(case)
    scalar = run(replace(case, input=case.input[0], target=case.target[0]))
    assert all(torch.equal(flat[name].reshape(-1), scalar[name].reshape(-1)) for name in flat.outputs)


@pytest.mark.parametrize("variant", PRESETS)
def test_all_rows_ignored(variant: str) -> None:
    for reduction in ("none", "mean", "sum"):
        case = draw((20,), 40, 20, ignored=20, reduction=reduction, lse=True, variant=variant, bias=torch.bfloat16)
        case.target.fill_(case.ignore_index)
        for output in assert_within_budget(case).outcome.outputs.values():
            assert torch.equal(output, torch.zeros_like(output))


@pytest.mark.parametrize("ignore_index", [3, 0, -1, 2**31 - 1, -(2**40)])
@pytest.mark.parametrize("targets", [torch.int64, torch.int32])
def test_any_ignore_index(ignore_index: int, targets: torch.dtype) -> None:
    """Also one that is a class, and one that the targets' dtype cannot hold (then nothing is ignored)."""
    fits = torch.iinfo(targets).min <= ignore_index <= torch.iinfo(targets).max
    case = draw((20,), 40, 20, ignore_index=ignore_index if fits else 0, ignored=2 if fits else 0, variant="cce")
    assert_within_budget(replace(case, target=case.target.to(targets), ignore_index=ignore_index))


@pytest.mark.parametrize("targets", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_narrow_targets_shift_like_wide_ones(targets: torch.dtype) -> None:
    case = draw((2, 10), 40, 20, shift=2, ignored=0, variant="cce-no-sort", reduction="none", lse=True)
    wide, narrow = run(case), run(replace(case, target=case.target.to(targets)))
    assert all(torch.equal(wide[name], narrow[name]) for name in wide.outputs)


@pytest.mark.parametrize("wanted", list(product((False, True), repeat=3)), ids=str)
def test_gradients_only_where_asked_for(wanted: tuple[bool, bool, bool]) -> None:
    """What is not asked for changes nothing in the rest, and no statistics claim it."""
    case = draw((20,), 40, 20, bias=torch.bfloat16, lse=True, variant="cce-kahan", wanted=wanted)
    outcome = assert_within_budget(case).outcome
    names = ("d_embeddings", "d_classifier", "d_bias")
    assert [name in outcome.outputs for name in names] == list(wanted)
    assert (outcome.stats.tiles_kept_e is not None) == wanted[0]
    assert (outcome.stats.tiles_kept_c is not None) == wanted[1]


def test_autocast_casts_once() -> None:
    """fp32 leaves under autocast: the call is the one on inputs in the autocast dtype, the gradients are fp32."""
    case = draw(d=40, v=40, dtype=torch.float32, bias=torch.float32, variant="cce-exact")
    assert case.linear_bias is not None
    with torch.autocast(DEVICE, torch.bfloat16):
        outcome = run(case)
    cast = replace(
        case,
        input=case.input.bfloat16(),
        linear_weight=case.linear_weight.bfloat16(),
        linear_bias=case.linear_bias.bfloat16(),
    )
    assert_within_budget(case, outcome, problem=cast.problem())
    for name, output in run(cast).outputs.items():
        assert torch.equal(outcome[name], output.float())


def test_only_the_lse_is_used() -> None:
    case = draw((20,), 40, 20, lse=True, reduction="none", upstream=False)
    given = case.input.clone().requires_grad_()
    _, lse = linear_cross_entropy(given, case.linear_weight, case.target, return_lse=True, schedule=SMALL)
    (gradient,) = torch.autograd.grad(lse, given, case.grad_lse)
    zero = replace(case, grad_loss=torch.zeros(20, device=DEVICE), wanted=(True, False, False))
    assert torch.equal(gradient, run(zero)["d_embeddings"])


@dataclass(frozen=True)
class Scheme:
    """How far above two roundings an accumulator may end, by the promise of the project."""

    variant: str
    over_floor: float


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("cce-exact", 1.1),
        Scheme("cce-exact,accumulate=hilo", 1.2),
        Scheme("cce-exact,accumulate=kahan", 2.0),
    ],
    ids=str,
)
def test_unfiltered_gradients_near_the_two_rounding_floor(scheme: Scheme) -> None:
    schedule = Schedule(
        forward=Tiles(block_n=64, block_v=64, block_d=64), backward=Tiles(block_n=32, block_v=32, block_d=64)
    )
    case = draw((160,), 320, 64, variant=scheme.variant, schedule=schedule, upstream=False)
    verdict = judge(case)
    assert verdict.within, verdict.ratios
    for name, floor in floors(case.problem(), verdict.truth).items():
        error = measure(name, verdict.outcome[name], getattr(verdict.truth, name)).normwise
        assert math.isfinite(error)
        assert error <= scheme.over_floor * floor.two_roundings, name
