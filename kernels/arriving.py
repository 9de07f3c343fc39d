"""`Arriving`: numbers on their way from the device to the host, which need not stand still for them."""

from __future__ import annotations

import torch
from torch import Tensor


class Arriving:
    """A copy of a tensor for the host. Launches after this one go on while it waits."""

    def __init__(self, x: Tensor) -> None:
        self._copy, self._done = x, None
        if x.device.type != "cpu":
            self._copy = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._copy.copy_(x, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()

    def wait(self) -> Tensor:
        """On the host."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
