"""Frames of what interpreted kernels call: no chunk of stack is asked for and given back in a loop."""

from __future__ import annotations

import resource

import pytest

from ccelab.kernels.stack import with_room

CALLS = 200


def _leaf() -> None:
    pass


# Larger than a frame of _faults, so that at some depth it is the first which does not fit.
_leaf.__code__ = _leaf.__code__.replace(co_stacksize=64)


def _faults(depth: int) -> int:
    """Pages that the system hands out while calls are made at that depth: a new chunk of stack is a new page."""
    if depth:
        return _faults(depth - 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        _leaf()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _worst() -> int:
    """Over depths that span more than one chunk of 16 KiB, in steps below a frame."""
    return max(_faults(depth) for depth in range(400))


def test_no_depth_of_calls_asks_for_a_chunk_each_time() -> None:
    assert with_room(_worst)() < CALLS // 4
    assert _worst() >= CALLS, "this Python needs no room"


def test_arguments_results_and_errors_pass_through() -> None:
    def halve(x: float, *, times: int = 1) -> float:
        """Halves."""
        return x / 2**times if times else 1 // times

    roomy = with_room(halve)
    assert roomy(8.0, times=2) == 2.0
    assert (roomy.__name__, roomy.__doc__) == ("halve", "Halves.")
    with pytest.raises(ZeroDivisionError):
        roomy(8.0, times=0)
