"""The emulation with every stage on is the kernel; with stages off, alone or exact it does what these words say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from ccelab.kernels import PRESETS, Schedule, Tiles, Variant, backend
from ccelab.kernels.probe import own_function
from ccelab.precision.call import run
from ccelab.precision.emulation import (
    HOPPER,
    INTERPRETER,
    ORDER,
    Modes,
    all_but,
    all_off,
    all_on,
    emulate,
    exact,
    machine,
    only,
    stages_of,
    up_to,
)
from ccelab.precision.emulation import gradients as gradient_stages
from ccelab.precision.emulation.emulation import Emulation
from ccelab.precision.stages import STAGES
from ccelab.properties.cases import DEVICE, DTYPES, SMALL, Case, draw, peaked
from ccelab.reference import Problem, Solution, double

OUTPUTS = ("loss", "reduced", "lse", "d_embeddings", "d_classifier", "d_bias")
TILE_BY_TILE = ("cce,increment=tile", "cce-kahan,increment=tile", "cce-exact,increment=tile")
VARIANTS = (
    *PRESETS,
    *TILE_BY_TILE,
    "cce,accumulate=hilo",
    "cce,accumulate=fp32",
    "cce-no-filter,target=indexed",
    "cce,eps=2^-6",
    "cce-no-sort,eps=2^-6,tail=rank1",
    "cce-no-sort,eps=2^-6,tail=rank1,accumulate=fp32,increment=tile",
    "cce-kahan-full-c,order=none,eps=2^-6,tail=rank1",
    "cce-kahan-full-e,order=none,eps=2^-6,tail=rank1,accumulate=hilo",
)
INTERPRETED = not torch.cuda.is_available()


def case(name: str, dtype: torch.dtype, **options: Any) -> Case:
    """One of the cases that go through every option, by turns."""
    if name == "plain":
        return peaked(dtype=dtype, **options)
    if name == "capped":
        return draw(dtype=dtype, bias=torch.float32, softcap=5.0, lse=True, ignored=3, **options)
    if name == "per token":
        return peaked(20, dtype=dtype, bias=dtype, lse=True, reduction="none", **options)
    return draw((21,), v=50, d=35, dtype=dtype, reduction="sum", softcap=2.0, **options)


def differing(got: Solution, emulated: Solution) -> dict[str, int]:
    """How many elements of every output differ in their bits; NaN is NaN."""
    counts = {}
    for name in OUTPUTS:
        x, y = getattr(got, name), getattr(emulated, name)
        if x is None:
            continue
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        counts[name] = int(((x != y) & ~(x.isnan() & y.isnan())).sum())
    return {name: count for name, count in counts.items() if count}


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_with_every_stage_on_the_emulation_is_the_kernel_bit_for_bit(variant: str, dtype: torch.dtype) -> None:
    kinds = ("plain", "capped", "per token", "sum")
    # Every variant and dtype sees two of the four cases, all variants and dtypes together see each many times.
    turn = VARIANTS.index(variant) + DTYPES.index(dtype)
    for kind in (kinds[turn % 4], kinds[(turn + 1) % 4]):
        problem, flags = case(kind, dtype).problem(), Variant.of(variant)
        got, stats = run(problem, flags, SMALL)
        emulated = emulate(problem, flags, SMALL, INTERPRETER, all_on(), stats)
        assert not differing(got, emulated), kind


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
@pytest.mark.parametrize("splits", [1, 3, 50])
def test_it_follows_the_schedule(splits: int) -> None:
    """Other tiles give other bits, and the emulation gives the same ones."""
    problem, flags = case("capped", torch.bfloat16).problem(), Variant.of("cce-kahan")
    wide = Tiles(block_n=32, block_v=16, block_d=64)
    schedule = Schedule(forward=wide, backward=replace(wide, block_v=32), splits=splits)
    got, stats = run(problem, flags, schedule)
    assert not differing(got, emulate(problem, flags, schedule, INTERPRETER, all_on(), stats))
    assert differing(got, emulate(problem, flags, SMALL, INTERPRETER, all_on(), stats))


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", ["cce-kahan", "cce-exact", "cce-stored", "cce-segment"])
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 2.0**-140])
def test_tiny_upstream_gradients(scale: float, variant: str, dtype: torch.dtype) -> None:
    """The power of two that rows share, and results that are subnormal in fp16. In bf16 some of E is, too, at scales of
    its rows."""
    drawn = case("per token", dtype)
    assert drawn.grad_loss is not None
    steps = torch.linspace(0, 1, len(drawn.grad_loss))
    problem = replace(drawn, grad_loss=drawn.grad_loss * scale**steps, grad_lse=None).problem()
    got, stats = run(problem, Variant.of(variant), SMALL)
    assert not differing(got, emulate(problem, Variant.of(variant), SMALL, INTERPRETER, all_on(), stats))


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
def test_infinite_and_missing_numbers() -> None:
    """Ignored rows may hold NaN; a bias of -inf masks a class; a logit that overflows poisons its row."""
    drawn = case("capped", torch.bfloat16)
    assert drawn.linear_bias is not None
    drawn.input[1], drawn.linear_bias[5], drawn.input[7] = torch.nan, -torch.inf, 1e38
    problem = replace(drawn, softcap=None).problem()
    got, stats = run(problem, Variant.of("cce-no-sort"), SMALL)
    assert not differing(got, emulate(problem, Variant.of("cce-no-sort"), SMALL, INTERPRETER, all_on(), stats))
    assert bool(got.loss.isnan().any())


def small() -> tuple[Problem, Variant]:
    return case("capped", torch.bfloat16).problem(), Variant.of("cce-kahan,target=indexed,eps=2^-4")


def stored() -> tuple[Problem, Variant]:
    return case("per token", torch.bfloat16).problem(), Variant.of("cce-stored")


def errors(modes: Modes, problem: Problem, flags: Variant, truth: Solution) -> dict[str, float]:
    found = emulate(problem, flags, SMALL, INTERPRETER, modes)
    return {name: float((getattr(found, name).double() - getattr(truth, name)).norm()) for name in OUTPUTS}


def tiny(truth: Solution) -> dict[str, float]:
    """What float64 itself may lose."""
    return {name: 1e-13 * float(getattr(truth, name).norm() + 1) for name in OUTPUTS}


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
def test_off_and_exact_are_the_truth() -> None:
    problem, flags = small()
    truth = double(problem)
    limit = tiny(truth)
    for modes in (all_off(), exact(*ORDER), exact("token_loss", "join_splits", "reduce_losses", "cast_output")):
        found = errors(modes, problem, flags, truth)
        assert all(found[name] <= limit[name] for name in OUTPUTS), found


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
@pytest.mark.parametrize("stage", ORDER)
def test_a_stage_alone_errs_exactly_in_the_outputs_that_pass_it(stage: str) -> None:
    problem, flags = stored() if stage in ("store_exponentials", "restore_softmax") else small()
    truth = double(problem)
    limit, found = tiny(truth), errors(only(stage), problem, flags, truth)
    reached = {name for name in OUTPUTS if found[name] > limit[name]}
    # Upstream gradients of this case are fp32 numbers, and its loss is a mean that cancels nothing.
    # Nothing is given back where nothing is dropped.
    expected = {name for name in OUTPUTS if stage in stages_of(name)}
    if stage in ("load_upstream", "add_tail"):
        assert reached <= expected
    else:
        assert reached == expected


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
def test_without_its_worst_stage_the_error_is_smaller() -> None:
    problem, flags = small()
    truth = double(problem)
    whole = errors(all_on(), problem, flags, truth)
    assert errors(all_but("is_live"), problem, flags, truth)["d_classifier"] < whole["d_classifier"] / 4
    # A stage that is exact undoes what came before it, so that only what follows is left.
    after = errors(exact("cast_increment"), problem, flags, truth)["d_embeddings"]
    assert 0 < after < errors(all_but("is_live"), problem, flags, truth)["d_embeddings"] < whole["d_embeddings"]


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
@pytest.mark.parametrize(("variant", "v"), [("cce-segment,eps=2^-5", 75), ("cce-no-sort,tail=rank1,eps=2^-2", 300)])
def test_a_tail_rounds(variant: str, v: int) -> None:
    problem, flags = draw(v=v, dtype=torch.float32, bias=torch.float32).problem(), Variant.of(variant)
    truth = double(problem)
    rounded, exact_tail = (errors(modes, problem, flags, truth) for modes in (all_on(), all_but("add_tail")))
    for name in ("d_embeddings", "d_classifier"):
        assert 0 < abs(rounded[name] - exact_tail[name]) < 2.0**-20 * rounded[name] * problem.shape[1]


@pytest.mark.skipif(not INTERPRETED, reason="the machine is the interpreter's")
def test_one_altered_stage_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant of the emulation: increments that are not cast. Its other outputs stay as they are."""
    problem, flags = case("capped", torch.bfloat16).problem(), Variant.of("cce-no-filter")
    got, stats = run(problem, flags, SMALL)
    monkeypatch.setattr(gradient_stages, "cast_increment", lambda v, variant, dtype: v)
    altered = differing(got, emulate(problem, flags, SMALL, INTERPRETER, all_on(), stats))
    assert set(altered) == {"d_embeddings", "d_classifier"}


def test_on_a_tensor_core_the_error_is_another() -> None:
    """No GPU needed: the model runs anywhere. Products differ, casts dominate all the same."""
    problem, flags = case("plain", torch.bfloat16).problem(), Variant.of("cce-kahan")
    truth, here = double(problem), machine("hopper")
    assert here is HOPPER
    found = emulate(problem, flags, SMALL, here, all_on())
    other = emulate(problem, flags, SMALL, machine("ampere"), all_on())
    assert differing(found, other)
    for x in (found, other):
        assert x.d_embeddings is not None
        assert truth.d_embeddings is not None
        error = (x.d_embeddings.double() - truth.d_embeddings).norm() / truth.d_embeddings.norm()
        assert 1e-3 < float(error) < 1e-2


def test_unknown_names_and_what_kernels_do_not_have_are_refused() -> None:
    problem, flags = small()
    with pytest.raises(ValueError, match="unknown stage 'dot'"):
        only("dot")
    with pytest.raises(ValueError, match="unknown stage 'cast'"):
        Modes.of({"cast": "on"})
    with pytest.raises(ValueError, match="no machine 'volta'"):
        machine("volta")
    with pytest.raises(ValueError, match="smoothing"):
        Emulation(replace(problem, smoothing=0.1), flags, SMALL, HOPPER)
    with pytest.raises(ValueError, match="fp_fusion"):
        Emulation(problem, flags, replace(SMALL, fp_fusion=True), HOPPER)


def test_there_is_a_mode_for_every_stage_of_the_kernels() -> None:
    assert set(ORDER) == set(backend.STAGES)
    assert tuple(STAGES) == ORDER


def test_the_probes_are_the_functions_of_the_machine_at_hand() -> None:
    x = torch.linspace(-20, 0, 3001).to(DEVICE)
    if INTERPRETED:
        assert torch.equal(own_function("exp2", x), INTERPRETER.exp2(x))
        assert torch.equal(own_function("log", -x), INTERPRETER.log(-x))
    for name, found, want in (
        ("exp2", HOPPER.exp2(x), torch.exp2(x.double())),
        ("log", HOPPER.log(-x[:-1]), torch.log(-x[:-1].double())),
    ):
        own = own_function(name, x if name == "exp2" else -x[:-1])
        size = want.abs().clamp(min=2.0**-100) * 2.0**-22
        assert bool(((own.double() - want).abs() <= size).all()), name
        assert bool(((found.double() - want).abs() <= size).all()), name
    with pytest.raises(ValueError, match="no function 'sin'"):
        own_function("sin", x)


def test_modes_from_mappings_and_functions() -> None:
    assert Modes.of({"softmax": "on"}) == only("softmax")
    assert Modes.of(lambda stage: "on") == all_on() == up_to(ORDER[-1])
    assert all_but("softmax")["softmax"] == "off"
    assert exact("softmax")["softmax"] == "exact"
