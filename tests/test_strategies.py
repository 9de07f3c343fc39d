"""The strategies reach the hard cases: what a family is for, the edges of tiles, every option."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings

from ccelab.kernels import Variant
from ccelab.properties.cases import SMALL
from ccelab.properties.families import FAMILIES
from ccelab.properties.law import Bench, law
from ccelab.properties.spec import Spec
from ccelab.properties.strategies import specs
from ccelab.properties.subject import load
from ccelab.reference import double

N, V, D = 33, 65, 32


def drawn(family: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """E, C, targets and probabilities, in float64 after the cast to bf16."""
    g = torch.Generator().manual_seed(seed)
    e, c, target = FAMILIES[family](g, N, V, D, torch.bfloat16)
    e, c = e.bfloat16().double(), c.bfloat16().double()
    return e, c, target, (e @ c.T).softmax(1)


def share(x: torch.Tensor) -> float:
    return float(x.double().mean())


REACHED = {
    "gaussian": lambda e, c, t, p: 1 < float((e @ c.T).std()) < 3,
    "flat": lambda e, c, t, p: float(p.max()) < 1.2 / V,
    "peaked": lambda e, c, t, p: share(p.topk(2).values.sum(1) > 0.9) > 0.2 and share(p < 2.0**-12) > 0.8,
    "confident": lambda e, c, t, p: share(p.gather(1, t[:, None]) > 0.999) > 0.9,
    "dominant": lambda e, c, t, p: share(p[:, V // 2] > 0.9) > 0.9 and share(t == V // 2) < 0.2,
    "cancelling": lambda e, c, t, p: float((e.abs() @ c.abs().T).mean() / (e @ c.T).abs().mean()) > 8,
    "coherent": lambda e, c, t, p: bool((e > 0).all() and (c > 0).all()),
    "zipf": lambda e, c, t, p: float(p[:, 0].mean()) > 4 * float(p[:, V // 2].mean()) and share(t < 8) > 0.5,
    "near_threshold": lambda e, c, t, p: share((p > 2.0**-13) & (p < 2.0**-11)) > 0.9,
    "offset": lambda e, c, t, p: float((e @ c.T).mean(1).abs().min()) > 50,
    "duplicates": lambda e, c, t, p: len(e.unique(dim=0)) == 3 and len(c.unique(dim=0)) == 5,
    "powers": lambda e, c, t, p: bool((torch.frexp(c.abs()).mantissa == 0.5).all()),
    "integers": lambda e, c, t, p: bool((e == e.round()).all() and (e.abs() <= 2).all()),
    "subnormal": lambda e, c, t, p: share(e.abs() < torch.finfo(torch.bfloat16).smallest_normal) > 0.9,
    "real": lambda e, c, t, p: 0.1 < share(p > 2.0**-12) < 0.6 and 0.2 < share(p.max(1).values) < 0.8,
}


def test_every_family_says_what_it_reaches() -> None:
    assert REACHED.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_family_reaches_what_it_is_for(family: str, seed: int) -> None:
    assert REACHED[family](*drawn(family, seed))


def test_draws_reach_the_edges_of_tiles_and_every_option() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=300, database=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate])
    @given(spec=specs())
    def draw(spec: Spec) -> None:
        n, v, d = SMALL.forward.block_n, SMALL.forward.block_v, SMALL.backward.block_d
        cases = {
            "one": 1 in (spec.n, spec.v, spec.d),
            "ragged": bool(spec.n % n and spec.v % v and spec.d % d),
            "whole": not (spec.n % n or spec.v % 16 or spec.d % 16),
            "one more than a tile": spec.n % n == 1 or spec.v % v == 1 or spec.d % d == 1,
            "one less than a tile": spec.n % n == n - 1 or spec.v % v == v - 1 or spec.d % d == d - 1,
            "more than two tiles everywhere": spec.n > 2 * n and spec.v > 2 * v and spec.d > 2 * d,
            "everything at once": bool(spec.bias and spec.softcap and spec.lse and spec.ignored),
            "nothing but ignored rows": spec.ignored >= spec.n and spec.n == 1,
        }
        options = {f"{name}={getattr(spec, name)}" for name in ("dtype", "bias", "softcap", "reduction", "upstream")}
        seen.update([name for name, holds in cases.items() if holds])
        seen.update(options)

    draw()
    rare = {name: count for name, count in seen.items() if count < 3}
    assert not rare
    assert len(seen) == 8 + 3 + 3 + 3 + 3 + 2, sorted(seen)


@law("cce-no-sort", draw=specs(families=("flat",), options=False, n=2, v=2, d=2), both_kinds=True)
def hollow(trial: object) -> None:
    """A law about filtering that looks at flat rows alone."""


def test_a_law_about_filtering_must_see_both_kinds_of_tiles(tmp_path: Path) -> None:
    bench = Bench(load("ours"), Variant.parse("cce-no-sort"), tmp_path)
    hollow(bench=bench)
    with pytest.raises(AssertionError, match="tiles were"):
        hollow.law.check_kinds(bench)


def test_the_oracle_accepts_what_is_drawn() -> None:
    """Every family, in every dtype, is a problem with finite answers."""
    for family in FAMILIES:
        for dtype in ("bfloat16", "float16", "float32"):
            truth = double(Spec(n=5, v=9, d=3, family=family, dtype=dtype).case().problem())
            assert bool(truth.loss.isfinite().all()), (family, dtype)
