"""`Beside`: launches that need not wait for each other. As one ends, it leaves multiprocessors to the other.

The backward pass of cce-exact took 3.49 products so, and 3.68 one after the other (H200, N=8192, V=256000, D=2304).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Self

import torch


@lru_cache
def _queue_of(device: torch.device, stream: int, number: int, goes_first: bool) -> torch.cuda.Stream:
    """One for all calls on a stream: memory that is asked for on a queue is kept for it, 20 MiB at once. Calls on two
    streams must not share it, since what one has given back the other would write to while it is read. PyTorch has 32
    of a priority, of which a call's stream takes two: from the 17th stream that calls on, some do."""
    return torch.cuda.Stream(device, priority=-1 if goes_first else 0)


class Beside:
    """A second queue of a device; a CPU has none, and goes on in turn. Whoever leaves it waits, after an error too:
    what is given back must not be written to any more."""

    def __init__(self, device: torch.device, *, goes_first: bool = False, number: int = 0) -> None:
        """`goes_first`: as programs end, those of the second queue get their place, before more of the first. Queues of
        different `number` do not wait for each other."""
        self._device, self._goes_first, self._number = device, goes_first, number
        self._queue: torch.cuda.Stream | None = None

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            self._here = torch.cuda.current_stream(self._device)
            self._queue = _queue_of(self._device, self._here.cuda_stream, self._number, self._goes_first)
            self._begins, self._marked = torch.cuda.Event(), torch.cuda.Event()
            self._catch_up()
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    def _catch_up(self) -> None:
        if self._queue is not None:
            self._begins.record(self._here)
            self._queue.wait_event(self._begins)

    @contextmanager
    def launches(self, *, at_once: bool = False) -> Iterator[None]:
        """What is launched here waits for all before it, or, `at_once`, for no more than what these launches waited for
        last, or for what was before them all; what is launched after it does not wait for this."""
        if self._queue is None:
            yield
            return
        if not at_once:
            self._catch_up()
        torch.cuda.set_stream(self._queue)  # as torch.cuda.stream does, which asks more
        try:
            yield
        finally:
            torch.cuda.set_stream(self._here)

    def mark(self) -> None:
        """Where that queue is."""
        if self._queue is not None:
            self._marked.record(self._queue)

    def follow(self, other: Beside) -> None:
        """What is launched on this second queue from here on waits for the last mark of that one."""
        if self._queue is not None:
            self._queue.wait_event(other._marked)

    def wait(self, *, for_all: bool = True) -> None:
        """What is launched from here on waits for those launches, all or up to the last mark."""
        if self._queue is None:
            return
        if for_all:
            self.mark()
        self._here.wait_event(self._marked)
