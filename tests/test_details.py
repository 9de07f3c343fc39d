"""The figures' numbers against small tensors whose answer can be counted."""

from __future__ import annotations

import math

import pytest
import torch

from ccelab.precision.attribution import Attribution, StageError
from ccelab.precision.background import background
from ccelab.precision.condition import POINTS, condition_sample
from ccelab.precision.dead_rows import dead_rows, frequency_rank
from ccelab.precision.heat_map import CELLS, LEAST, heat_map
from ccelab.precision.measure import worst_elements
from ccelab.precision.stage_table import stage_tables
from ccelab.precision.survival import survival
from ccelab.properties.cases import draw
from ccelab.reference import double


def test_the_curve_of_known_ratios() -> None:
    want, bound = torch.zeros(4).double(), torch.ones(4).double()
    curve = survival(torch.tensor([0.0, 0.25, 0.5, 2.0]), want, bound)
    shares = dict(zip(curve.log2_ratio, curve.share, strict=True))
    assert (shares[-16], shares[-2], shares[-1.75], shares[-1], shares[0], shares[1], shares[2]) == (
        0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "tile", "high"), [(256, 128, 4), (8192, 128, 128), (16384, 128, 256), (100, 16, 2)])
def test_a_cell_is_found_where_its_error_is(rows: int, tile: int, high: int) -> None:
    want, got = torch.zeros(rows, 130).double(), torch.zeros(rows, 130)
    got[rows - 1, 129] = 0.5
    found = heat_map(got, want, torch.ones_like(want), tile)
    assert (found.rows_per_cell, found.columns_per_cell) == (high, 3)
    assert len(found.cells) <= CELLS
    assert found.by_tiles == (high % tile == 0)
    assert found.cells[-1][-1] == -1
    assert sum(cell > LEAST for row in found.cells for cell in row) == 1


def test_a_map_follows_the_order_of_the_kernel() -> None:
    want, got = torch.zeros(256, 4).double(), torch.zeros(256, 4)
    got[7] = 1.0
    order = torch.cat([torch.tensor([7]), torch.arange(7), torch.arange(8, 256)])
    assert heat_map(got, want, torch.ones_like(want), 16, order).cells[0][0] == 0


def test_the_largest_are_among_the_points() -> None:
    generator = torch.Generator().manual_seed(0)
    want = torch.randn((200, 50), generator=generator).double()
    got, absolute = want.float() * 1.001, 3 * want.abs().float()
    got[17, 3], absolute[30, 4] = 9 * want[17, 3], 1e6 * want[30, 4].abs()
    sample = condition_sample(got, want, absolute)
    assert len(sample.error) <= POINTS
    assert sample.elements == 10000
    assert max(sample.error) == pytest.approx(8, rel=1e-3)
    assert max(sample.condition) == pytest.approx(1e6, rel=1e-3)
    assert min(sample.condition) == pytest.approx(3, rel=1e-3)


def test_conditions_are_those_of_the_sums() -> None:
    problem = draw((20,), 60, 16).problem()
    truth, found = double(problem), background(problem)
    for name, size in found.absolute.items():
        want = getattr(truth, name)
        assert bool((size.double() * (1 + 1e-6) >= want.abs()).all()), name
    assert int(found.occurrences.sum()) == int(problem.valid.sum())
    assert float(found.expected.sum()) == pytest.approx(float(problem.valid.sum()))


def test_dead_rows_by_rank() -> None:
    problem = draw((20,), 60, 16).problem()
    truth, behind = double(problem), background(problem)
    assert truth.d_classifier is not None
    got = truth.d_classifier.to(problem.embeddings.dtype)
    rank = frequency_rank(behind)
    assert bool((behind.occurrences[rank].diff() <= 0).all())
    assert dead_rows(got, truth.d_classifier, behind).dead == 0
    rarest = rank[-2:]
    got[rarest] = 0
    found = dead_rows(got, truth.d_classifier, behind)
    assert (found.dead, found.buckets[-1].dead) == (2, 2)
    assert not found.buckets[-1].targets
    assert sum(bucket.rows for bucket in found.buckets) == found.rows == 60
    share = truth.d_classifier[rarest].norm() / truth.d_classifier.norm()
    assert found.lost == pytest.approx(float(share))


def test_the_worst_elements_come_in_order() -> None:
    want, bound = torch.zeros(3, 4).double(), torch.ones(3, 4).double()
    got = torch.zeros(3, 4)
    got[2, 1], got[0, 3] = 0.75, math.inf  # what is not finite is counted elsewhere
    got[1, 0] = -0.5
    first, second, *_ = worst_elements(got, want, bound)
    assert (first.place, first.over_budget, first.bound, first.got_hex) == ([2, 1], 0.75, 1.0, "0x3f400000")
    assert (second.place, second.over_budget) == ([1, 0], 0.5)
    assert first.bound_hex == "0x1.0000000000000p+0"


def test_stages_are_merged_in_the_order_of_execution() -> None:
    norms = {"d_embeddings": {"dot_logits": 4.0, "cast_residual": 2.0}}
    stages = [
        StageError(stage="cast_residual", error=0.1, share=0.6),
        StageError(stage="cast_output", error=0.05, share=0.3),
    ]
    found = Attribution(machine="hopper", stages=stages, error=0.1, explained=0.9, residue=0.01)
    tables = stage_tables(norms, {"d_embeddings": found}, {"d_embeddings": torch.tensor([2.0]), "loss": torch.ones(1)})
    table = tables.pop("d_embeddings")
    assert not tables
    assert [(row.stage, row.predicted, row.measured) for row in table.rows] == [
        ("dot_logits", 2.0, None),
        ("cast_residual", 1.0, 0.1),
        ("cast_output", None, 0.05),
    ]
    assert (table.machine, table.explained, table.residue) == ("hopper", 0.9, 0.01)
    assert stage_tables({}, {}, {"loss": torch.ones(1)}) == {}
