"""Gradients repeat bit for bit, and a row's outputs depend on no other row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from ccelab.kernels import PRESETS, gradients, look_ahead
from ccelab.kernels.beside import Beside
from ccelab.properties.cases import DEVICE, DTYPES, SMALL, draw, peaked, run

REPEATS = 10 if DEVICE == "cuda" else 2  # a race shows on a GPU if anywhere

TAIL = "cce-no-sort,eps=2^-6,tail=rank1"
OTHERS = [*PRESETS, "cce,accumulate=hilo,target=indexed"] if DEVICE == "cuda" else ["cce", "cce-kahan", "cce-exact"]
VARIANTS = [*OTHERS, TAIL]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_call_repeats_bit_for_bit(variant: str) -> None:
    case = peaked(d=35, variant=variant, bias=torch.bfloat16, lse=True, reduction="none")
    first = run(case)
    for _ in range(REPEATS - 1):
        again = run(case)
        assert first.outputs.keys() == again.outputs.keys()
        assert all(torch.equal(output, again[name]) for name, output in first.outputs.items())
        assert first.stats.tiles_kept_e == again.stats.tiles_kept_e
        assert first.stats.tiles_kept_c == again.stats.tiles_kept_c


@pytest.mark.gpu
@pytest.mark.parametrize("variant", PRESETS)
def test_calls_on_two_streams_do_not_write_over_each_other(variant: str) -> None:
    """What a call asks for beside its stream is given back before the GPU has read it."""
    cases = [peaked(d=35, variant=variant, reduction="mean", seed=seed) for seed in (1, 2)]
    wanted = [run(case).outputs for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    found = []
    for _ in range(REPEATS):
        for case, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                found.append(run(case).outputs)
    torch.cuda.synchronize()
    for k, outputs in enumerate(found):
        assert all(torch.equal(output, wanted[k % 2][name]) for name, output in outputs.items())


@pytest.mark.gpu
@pytest.mark.parametrize("late", ["first", "second"])
@pytest.mark.parametrize("variant", ["cce", "cce-exact", "cce-stored", "cce-segment,eps=2^-6"])
def test_neither_queue_relies_on_the_other_being_in_time(
    variant: str, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two problems by turns, so that what a late launch would find is not what it has to."""
    cases = [peaked(200, 400, 200, variant=variant, reduction="mean", schedule=SMALL, seed=seed) for seed in (1, 2)]
    wanted = [run(case, counts=False).outputs for case in cases]
    launches, wait = Beside.launches, Beside.wait

    @contextmanager
    def launched_late(self: Beside, **options: bool) -> Iterator[None]:
        with launches(self, **options):
            if late == "second":
                torch.cuda._sleep(10**6)
            yield
        if late == "first":
            torch.cuda._sleep(10**6)

    def waited_late(self: Beside, **options: bool) -> None:
        wait(self, **options)
        if late == "first":
            torch.cuda._sleep(10**6)

    monkeypatch.setattr(Beside, "launches", launched_late)
    monkeypatch.setattr(Beside, "wait", waited_late)
    for _ in range(REPEATS):
        for case, want in zip(cases, wanted, strict=True):
            found = run(case, counts=False).outputs
            assert all(torch.equal(output, want[name]) for name, output in found.items())


@pytest.mark.parametrize("bias", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", ["cce-exact", "cce,eps=2^-5", "cce-no-sort,eps=2^-5", "cce-kahan-full-c"])
def test_any_number_of_programs_makes_the_residuals(
    variant: str, bias: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A problem of these tests has fewer tiles than a GPU has multiprocessors: none would go on to a second one."""
    case = peaked(53, 130, 40, variant=variant, bias=bias, reduction="mean", schedule=replace(SMALL, look_ahead=0))
    monkeypatch.setattr(look_ahead, "DENSE", 1)
    tiles = -(-53 // SMALL.backward.block_n) * -(-130 // SMALL.backward.block_v)
    found = []
    for workers in (tiles, 1, 3):
        monkeypatch.setattr(gradients, "WORKERS", workers)
        found.append(run(case, counts=False))
    assert tiles > 6
    for other in found[1:]:
        assert all(torch.equal(output, other[name]) for name, output in found[0].outputs.items())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_in_another_order_give_the_same_rows(dtype: torch.dtype) -> None:
    case = draw(v=40, d=40, dtype=dtype, variant="cce-exact", reduction="none", lse=True, wanted=(True, False, False))
    assert case.grad_loss is not None
    assert case.grad_lse is not None
    turn = torch.randperm(37, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    turned = replace(
        case,
        input=case.input[turn],
        target=case.target[turn],
        grad_loss=case.grad_loss[turn],
        grad_lse=case.grad_lse[turn],
    )
    one, other = run(case), run(turned)
    for name in ("loss", "lse", "d_embeddings"):
        assert torch.equal(one[name][turn], other[name]), name


def test_statistics_change_nothing() -> None:
    """The kernels compile differently with and without them."""
    from ccelab.kernels import linear_cross_entropy

    case = peaked(d=40, variant="cce", ignored=0)
    given = [x.clone().requires_grad_() for x in (case.input, case.linear_weight)]
    loss = linear_cross_entropy(given[0], given[1], case.target, variant="cce", schedule=case.schedule)
    gradients = torch.autograd.grad(loss, given, case.grad_loss)
    outcome = run(case)
    assert torch.equal(gradients[0], outcome["d_embeddings"])
    assert torch.equal(gradients[1], outcome["d_classifier"])
