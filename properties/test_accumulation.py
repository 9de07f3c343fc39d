"""Laws of gradient sums: how errors grow with the number of tiles, and that each scheme is what its name says."""

from __future__ import annotations

from dataclasses import replace

import torch

from ccelab.kernels import Schedule, Tiles, Variant
from ccelab.precision import single_stages as stages
from ccelab.reference import double

from .cases import DEVICE
from .conditions import Applies
from .law import Trial, law
from .spec import DTYPE
from .strategies import specs

NEEDS = ["accumulator", "schedule"]
HALVES = ("bfloat16", "float16")


def scheme(*names: str) -> Applies:
    return lambda variant: None if variant.accumulate in names else f"its sums are {variant.accumulate}"


def increments(trial: Trial, count: int, width: int = 64) -> torch.Tensor:
    """(count, width) positive fp32 increments near 1: sums of one sign, where a short sum stagnates."""
    g = torch.Generator().manual_seed(trial.spec.seed)
    return (1 + torch.rand((count, width), generator=g)).to(DEVICE)


def error_after(trial: Trial, count: int) -> float:
    """Relative error of the scheme's sum of `count` increments, the worst of several."""
    v = increments(trial, count)
    s, _ = stages.accumulate(v, trial.variant.accumulate, DTYPE[trial.spec.dtype])
    return float(((s.double() - v.double().sum(0)).abs() / v.double().sum(0)).max())


@law(
    "cce-no-filter",
    "cce-exact,accumulate=kahan",
    "cce-exact,accumulate=hilo",
    "cce-exact",
    needs=NEEDS,
    draw=specs(options=False, dtypes=HALVES),
)
def test_one_tile_is_one_rounding(trial: Trial) -> None:
    """A sum of one increment is the increment rounded, whatever the scheme; with fp32 sums the increment itself."""
    v = increments(trial, 1)
    s, _ = stages.accumulate(v, trial.variant.accumulate, dtype := DTYPE[trial.spec.dtype])
    trial.same(s, v[0] if trial.variant.accumulate == "fp32" else v[0].to(dtype).float(), "sum")


@law(
    "cce-exact,accumulate=kahan",
    "cce-exact,accumulate=hilo",
    "cce-exact",
    needs=NEEDS,
    when=scheme("kahan", "hilo", "fp32"),
    draw=specs(options=False, dtypes=("bfloat16",)),
)
def test_compensated_sums_do_not_grow_with_the_number_of_tiles(trial: Trial) -> None:
    """Over 4 to 512 increments of one sign the error stays within two roundings of the result: 2 u_b, plus u_b^2 T.

    Source: Knuth; Higham, section 4.3. Upstream's "Kahan" became fp32 buffers and nobody noticed.
    """
    u = torch.finfo(torch.bfloat16).eps / 2
    for count in (4, 64, 512):
        limit = 2 * u + count * u * u
        error = error_after(trial, count)
        assert error <= limit, f"{count} increments: {error:.3e} > {limit:.3e}"


@law("cce-no-filter", needs=NEEDS, when=scheme("storage"), draw=specs(options=False, dtypes=("bfloat16",)))
def test_storage_sums_do_grow(trial: Trial) -> None:
    """512 increments near 1.5 summed in bf16 stagnate: the error exceeds 10 roundings, or the sum is no bf16 sum.

    A law that fails where somebody quietly sums in fp32 under the name of the paper's default. Source:
    Liger #1391, apple/ml-cross-entropy #14 (sums over chunks or tiles in bf16).
    """
    u = torch.finfo(torch.bfloat16).eps / 2
    assert error_after(trial, 512) > 10 * u


@law("cce-exact,accumulate=kahan", needs=NEEDS, when=scheme("kahan"), draw=specs(options=False, dtypes=HALVES))
def test_kahan_beats_storage(trial: Trial) -> None:
    """At 256 increments of one sign Kahan's error is at most a quarter of the plain sum's.

    Source: guards against "Kahan" that is not.
    """
    v, dtype = increments(trial, 256), DTYPE[trial.spec.dtype]
    want = v.double().sum(0)
    kahan, plain = (
        float((stages.accumulate(v, name, dtype)[0].double() - want).abs().max()) for name in ("kahan", "storage")
    )
    assert kahan <= plain / 4, f"Kahan {kahan:.3e}, storage {plain:.3e}"


@law(
    "cce-exact,accumulate=kahan",
    "cce-exact,accumulate=hilo",
    needs=NEEDS,
    when=scheme("kahan", "hilo"),
    draw=specs(options=False, dtypes=HALVES),
)
def test_sum_and_companion_hold_what_fits(trial: Trial) -> None:
    """Increments on a grid of 2^-6 in [-1, 1]: sum + companion is their sum exactly, as it spans at most 16 bits.

    Source: the two-sum is error-free.
    """
    g = torch.Generator().manual_seed(trial.spec.seed)
    v = (torch.randint(-64, 65, (48, 64), generator=g).float() / 64).to(DEVICE)
    s, c = stages.accumulate(v, trial.variant.accumulate, DTYPE[trial.spec.dtype])
    trial.same(s.double() + c.double(), v.double().sum(0), "sum + companion")


@law(
    "cce-exact,accumulate=kahan",
    "cce-exact,accumulate=hilo",
    "cce-exact",
    needs=NEEDS,
    when=scheme("kahan", "hilo", "fp32"),
    draw=specs(options=False, families=("coherent",), dtypes=("bfloat16",), n=16, v=321, d=16, reduction="sum"),
    examples=0.6,
)
def test_smaller_tiles_cost_accurate_sums_little(trial: Trial) -> None:
    """Tiles of 16, 32 or 64 classes: dE within 1.5 times the error of the widest, for sums that carry their low part.

    Source: Liger #1391 (errors that grow with the number of chunks).
    """
    truth = double(trial.case.problem()).d_embeddings
    assert truth is not None
    errors = []
    for block in (64, 32, 16):
        tiles = Tiles(block_n=16, block_v=block, block_d=16)
        schedule = Schedule(forward=tiles, backward=tiles, group=1)  # sums pass through memory after every tile
        got = trial.run(replace(trial.case, schedule=schedule))["d_embeddings"].double()
        errors.append(float((got - truth).norm() / truth.norm()))
    assert max(errors) <= 1.5 * errors[0], f"errors {errors}"


@law(
    "cce-no-filter",
    "cce-exact",
    "cce-exact,accumulate=kahan",
    needs=NEEDS,
    draw=specs(options=False, dtypes=("float32",)),
)
def test_fp32_storage_is_fp32(trial: Trial) -> None:
    """For fp32 inputs `storage` and `fp32` are one scheme: the same gradients."""
    one, other = (
        trial.run(trial.made(Variant(filter_e=False, filter_c=False, order="none", accumulate=name)))  # type: ignore[arg-type]
        for name in ("storage", "fp32")
    )
    trial.same(one, other)
