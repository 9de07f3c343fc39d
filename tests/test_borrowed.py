"""Residuals in the memory of dC: nothing is overwritten before it is read, and no bit of a gradient depends on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccelab.kernels import Variant
from ccelab.kernels.borrowed import ALIGNMENT, Borrowed, rounds
from ccelab.properties.cases import SMALL, peaked, run

ROWS, COLUMNS, MOST = 4, 8, 2


def places(tensor: torch.Tensor, of: torch.Tensor) -> range:
    first = (tensor.data_ptr() - of.data_ptr()) // of.element_size()
    return range(first, first + tensor.numel())


@pytest.mark.parametrize("seed", range(40))
def test_what_is_written_has_been_read(seed: int) -> None:
    generator = np.random.default_rng(seed)
    v, d = int(generator.integers(60, 3000)), int(generator.integers(8, 60))
    tiles = -(-v // COLUMNS)
    chunks = generator.poisson(generator.choice([0.1, 1.0, 3.0]), tiles)
    firsts = np.concatenate([[0], chunks.cumsum()])
    memory = torch.empty((v, d))
    borrowed = Borrowed.of(memory, firsts, ROWS, COLUMNS, MOST)
    if borrowed is None:
        return
    assert len(borrowed.residuals) == firsts[-1] * ROWS
    stored = places(borrowed.residuals, memory)
    assert stored.start >= 0
    assert stored.stop <= v * d
    chunk, tile = ROWS * COLUMNS, COLUMNS * d
    done = 0
    for first, end in borrowed.steps:
        assert first == done
        assert end > first
        assert end * tile <= stored.start + firsts[first] * chunk  # of its own tiles, and those that follow
        done = end
    assert borrowed.rest == done
    assert firsts[-1] - firsts[done] <= MOST
    room = places(borrowed.room, memory)
    assert room.start >= borrowed.steps[0][1] * tile
    assert room.stop <= stored.start


@pytest.mark.parametrize("seed", range(40))
def test_rounds_lie_behind_what_they_write(seed: int) -> None:
    generator = np.random.default_rng(seed)
    v, d = int(generator.integers(60, 3000)), int(generator.integers(8, 60))
    tiles = -(-v // COLUMNS)
    firsts = np.concatenate([[0], generator.poisson(generator.choice([0.1, 1.0, 3.0]), tiles).cumsum()])
    memory = torch.empty((v, d))
    done, sizes = 0, []
    for first, end, residuals in rounds(memory, firsts, ROWS, COLUMNS, MOST):
        assert first == done
        assert len(residuals) == (firsts[end] - firsts[first]) * ROWS
        stored = places(residuals, memory)
        assert stored.start >= end * COLUMNS * d
        assert stored.stop <= v * d
        sizes.append(firsts[end] - firsts[first])
        done = end
    assert all(size > MOST for size in sizes)
    rest = v * d - done * COLUMNS * d  # of memory: the next tile and its chunks, and MOST chunks before, need more
    ends = [end for end in range(done, tiles + 1) if firsts[end] - firsts[done] > MOST]
    if ends:
        needed = (ends[0] - done) * COLUMNS * d + (firsts[ends[0]] - firsts[done]) * ROWS * COLUMNS
        assert needed > rest - ALIGNMENT


def test_there_are_such_and_others() -> None:
    """Few rows are kept of most tiles of a trained head; where all are, what is kept takes more than dC."""
    few, all_of_them = np.arange(201), 40 * np.arange(201)
    assert Borrowed.of(torch.empty((1600, 32)), few, ROWS, COLUMNS, MOST) is not None
    assert Borrowed.of(torch.empty((1600, 32)), all_of_them, ROWS, COLUMNS, MOST) is None
    assert Borrowed.of(torch.empty((1600, 32)), 0 * few, ROWS, COLUMNS, MOST) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tail", ["rank1", "drop"])
def test_gradients_are_the_same_bits(monkeypatch: pytest.MonkeyPatch, tail: str, dtype: torch.dtype) -> None:
    case = peaked(40, 400, 200, dtype, variant=Variant.parse(f"cce-segment,eps=2^-6,tail={tail}"), schedule=SMALL)
    seen = []
    of = Borrowed.of

    def note(*arguments: object) -> Borrowed | None:
        seen.append(of(*arguments))  # type: ignore[arg-type]
        return seen[-1]

    monkeypatch.setattr(Borrowed, "of", note)
    borrowing = run(case)
    monkeypatch.setattr(Borrowed, "of", lambda *arguments: None)
    apart = run(case)
    assert seen[0] is not None
    assert len(seen[0].steps) > 1
    for name in ("d_embeddings", "d_classifier"):
        assert torch.equal(borrowing.outputs[name], apart.outputs[name])
