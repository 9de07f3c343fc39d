"""What is kept together, on a head small enough to go through by hand, and what is left of the gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ccelab.precision.granularity_study import (
    COLUMNS,
    ENTRIES,
    KEPT,
    ROWS,
    SEGMENTS,
    WORDS,
    GranularityStudy,
    by_segment,
    by_word,
    granularity_study,
)
from ccelab.precision.names import GRADIENTS
from ccelab.reference.heads.resolve import resolve

ALL = -1100
"""2^-1100 is 0 in float64."""


@pytest.fixture(scope="module")
def study() -> GranularityStudy:
    head = resolve("planted:gemma-alpaca", tokens=ROWS + 22, vocabulary=8 * COLUMNS + 40, hidden=64)
    return granularity_study(head, powers=(-4, -8, ALL))


def test_words_are_those_of_any_row_of_a_block() -> None:
    live = torch.zeros(ROWS + 2, 5, dtype=torch.bool)
    live[3, 1] = live[ROWS, 4] = True
    kept = by_word(live, live.double(), 0.5)
    assert kept[:ROWS].sum(0).tolist() == [0, ROWS, 0, 0, 0]
    assert kept[ROWS:].sum(0).tolist() == [0, 0, 0, 0, 2]


def test_segments_hold_enough_probability_or_a_target() -> None:
    softmax = torch.full((1, 3 * COLUMNS), 1e-9, dtype=torch.float64)
    softmax[0, :COLUMNS] = 0.3 / COLUMNS
    live = torch.zeros_like(softmax, dtype=torch.bool)
    live[0, -1] = True  # a target
    kept = by_segment(live, softmax, 0.25)
    assert kept.view(3, COLUMNS).sum(1).tolist() == [COLUMNS, 0, COLUMNS]


def test_what_is_kept_together_is_more_and_loses_less(study: GranularityStudy) -> None:
    for power in (-4, -8):
        entries = study.find(ENTRIES, power)
        for name in (WORDS, SEGMENTS):
            together = study.find(name, power)
            assert entries.entries < together.entries
            assert all(together.dropped[output] < entries.dropped[output] for output in GRADIENTS)
        assert all(0 < entries.with_tail[output] < entries.dropped[output] for output in GRADIENTS)


def test_nothing_is_lost_where_all_is_kept(study: GranularityStudy) -> None:
    for name in KEPT:
        point = study.find(name, ALL)
        assert point.entries == study.head["vocabulary"]
        assert set(point.dropped.values()) == set(point.with_tail.values()) == {0.0}


def test_it_is_drawn_and_shown(study: GranularityStudy, shown: Callable[[GranularityStudy], tuple[str, str]]) -> None:
    printed, page = shown(study)
    assert "segments of a row" in printed
    assert "What is kept together" in page
