"""What a call takes of a GPU's energy, by the counter of its driver.

At its power limit a GPU is as fast as energy allows: a kernel that waits less then runs at a lower clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_S, MEASURED_S = 0.3, 1.0
"""The clock has settled after the first; the counter moves several times a tenth of a second."""

BATCH_MS = 50.0
"""Calls between two looks at the time: a GPU that waits for a host cools down."""


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

        def repeat(seconds: float, batch: int) -> int:
            calls, end = 0, time.monotonic() + seconds
            while time.monotonic() < end:
                for _ in range(batch):
                    work()
                torch.cuda.synchronize()
                calls += batch
            return calls

        began.record()
        calls = repeat(WARM_S, 1)
        ended.record()
        torch.cuda.synchronize()
        batch = max(1, int(BATCH_MS * calls / began.elapsed_time(ended)))
        before = self.joules()
        began.record()
        calls = repeat(MEASURED_S, batch)
        ended.record()
        torch.cuda.synchronize()
        return Energy(joules=(self.joules() - before) / calls, ms=began.elapsed_time(ended) / calls)
