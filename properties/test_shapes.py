"""Laws of shapes: edges of tiles, more than two tiles everywhere, and padding that nobody can see."""

from __future__ import annotations

from dataclasses import replace

import torch

from ccelab.kernels import ProductTiles, Schedule, Tiles

from .cases import SMALL
from .law import Trial, law
from .promises import EXACT
from .strategies import ORDINARY, specs

OTHERS = tuple(
    Schedule(
        forward=Tiles(block_n=n, block_v=v, block_d=d),
        backward=Tiles(block_n=v, block_v=d, block_d=n),
        product=ProductTiles(rows=16 * splits if splits in (1, 2, 4) else 16, columns=d, depth=n),
        splits=splits,
        group=splits if splits > 1 else None,
        descriptors=splits % 2 == 1,
    )
    for n, v, d, splits in ((16, 64, 32, 1), (32, 16, 64, 4), (64, 32, 16, 5), (64, 64, 64, 2))
)
"""Few, since each compiles its own kernels."""
BEYOND = (2 * SMALL.forward.block_n + 1, 2 * SMALL.forward.block_v + 1, 2 * SMALL.backward.block_d + 1)


@law("cce", "cce-exact", "cce-stored", "cce-kahan", draw=specs(families=ORDINARY, least=BEYOND), examples=2)
def test_more_than_two_tiles_everywhere(trial: Trial) -> None:
    """More than two tiles in each of N, V and D at once: every output within its budget.

    Source: apple/ml-cross-entropy #52 (bias added once per block of D, unseen while D was one block).
    """
    trial.judge()


@law("cce", "cce-exact", draw=specs(families=ORDINARY, n=1))
def test_one_token(trial: Trial) -> None:
    """N = 1 within budget, at any V and D."""
    trial.judge()


@law("cce", "cce-exact", draw=specs(families=ORDINARY, d=1))
def test_one_column(trial: Trial) -> None:
    """D = 1 within budget: every logit is one product, exact or rounded once."""
    trial.judge()


@law("cce", "cce-exact", "cce-exact,target=indexed", draw=specs(families=ORDINARY, softcap=1.0, least=(1, 2, 1)))
def test_padding_of_the_vocabulary_is_invisible(trial: Trial) -> None:
    """V of any remainder, with a softcap that would turn masked columns into ordinary classes: within budget.

    Source: verl #2656 (padding entered the lse); a softcap after the mask.
    """
    trial.judge()


@law("cce", "cce-exact", "cce-stored", needs=["schedule"], draw=specs(families=ORDINARY, least=(17, 65, 17)))
def test_any_schedule_is_within_its_own_budget(trial: Trial) -> None:
    """Other tiles, splits and loads: another order of additions, within the budget that belongs to it."""
    trial.judge(replace(trial.case, schedule=OTHERS[trial.pick(0, len(OTHERS) - 1)]))


@law(
    "cce-segment",
    "cce-segment,eps=2^-6",
    "cce",
    "cce-kahan",
    "cce-exact",
    needs=EXACT,
    draw=specs(families=ORDINARY, least=BEYOND),
)
def test_how_much_is_held_at_once_changes_nothing(trial: Trial) -> None:
    """Residuals of one tile or of all, for two: the same bits. Sums that wait in memory wait as they are."""
    group = (1, 3, None)[trial.pick(0, 2)]
    other = replace(trial.case, schedule=replace(SMALL, group=group))
    trial.same(trial.outcome, trial.run(other))


@law("cce-exact", "cce-stored", "cce", needs=EXACT, draw=specs(families=ORDINARY, d=3 * SMALL.forward.block_d))
def test_both_ways_to_load_are_one_arithmetic(trial: Trial) -> None:
    """Tensor descriptors or pointers: the same bits. Rows of 48 columns are aligned as descriptors need it."""
    other = replace(trial.case, schedule=replace(SMALL, descriptors=False))
    trial.same(trial.outcome, trial.run(other))


@law("cce", "cce-exact", draw=specs(families=ORDINARY, reduction="none", ignored=0, least=(2, 17, 1)))
def test_targets_at_the_edges_of_tiles(trial: Trial) -> None:
    """Targets in the first and the last column of every tile: within budget.

    Source: off by one in the tile that holds the target.
    """
    v, block = trial.spec.v, SMALL.forward.block_v
    edges = sorted({min(x, v - 1) for k in range(0, v, block) for x in (k, k + block - 1, k + block // 2)})
    target = torch.tensor(edges, device=trial.case.target.device)[torch.arange(trial.spec.n) % len(edges)]
    trial.judge(replace(trial.case, target=target))
