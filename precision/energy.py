"""What a call takes of a GPU's energy, by the counter of its driver.

At its power limit a GPU is as fast as energy allows: a kernel that waits less then runs at a lower clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_S, MEASURED_S = 0.3, 1.0
"""The clock has settled after the first. The counter moves about ten times a second: power is what it gains between two
of its moves, and a count of calls to go with it would be off by a tenth."""

PATIENCE_S = 10.0

BATCH_MS = 25.0
"""Calls between two looks at the counter, which take a host some 5 ms: the GPU has the next ones to do meanwhile. When
it waited instead, a product seemed to take 20 ms for 14, at 644 W for 700 (H200)."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Of one call among many, one right after the other."""

    joules: float
    ms: float

    @property
    def watts(self) -> float:
        return 1000 * self.joules / self.ms


class Meter:
    """The counter of one GPU."""

    def __init__(self, device: torch.device) -> None:
        """Raises ValueError where there is none; the message says what to do."""
        try:
            import pynvml
        except ModuleNotFoundError:
            raise ValueError("--energy reads NVIDIA's counter: pip install nvidia-ml-py") from None
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
            self.joules()
        except pynvml.NVMLError as error:
            raise ValueError(f"--energy: this GPU has no counter that can be read ({error})") from None

    def joules(self) -> float:
        """Since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1000

    def limit_watts(self) -> float:
        """What the GPU may draw."""
        return float(self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._gpu)) / 1000

    def measure(self, work: Callable[[], object]) -> Energy:
        """Of `work`, which has been called before."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start, calls = time.monotonic(), 0
        while time.monotonic() < start + WARM_S:
            work()
            torch.cuda.synchronize()
            calls += 1
        batch = max(1, int(BATCH_MS / 1000 * calls / (time.monotonic() - start)))
        moves, calls, seen, last_of_batch = list[tuple[float, float]](), 0, self.joules(), torch.cuda.Event()
        began.record()
        start = time.monotonic()
        while len(moves) < 2 or moves[-1][0] < moves[0][0] + MEASURED_S:
            if time.monotonic() > start + PATIENCE_S:
                raise RuntimeError(f"the counter of energy has not moved for {PATIENCE_S:.0f} s")
            for _ in range(batch):
                work()
            calls += batch
            last_of_batch.synchronize()  # of the batch before
            last_of_batch.record()
            if (now := self.joules()) != seen:
                seen = now
                moves.append((time.monotonic(), now))
        ended.record()
        torch.cuda.synchronize()
        (first, least), (last, most) = moves[0], moves[-1]
        ms = began.elapsed_time(ended) / calls
        return Energy(joules=(most - least) / (last - first) * ms / 1000, ms=ms)
