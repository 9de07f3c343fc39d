# mypy: ignore-errors
"""Refuses targets that are no class, and counts those that are not ignored."""

import torch
import triton.language as tl

from . import capture
from .arriving import Arriving
from .backend import kernel
from .launch import vector

BLOCK = 8192
"""Targets that a program counts at once. There is one: joining the counts of several would be a launch more."""


@kernel
def count_targets_kernel(Target, Count, N, V, ignore_index, BLOCK: tl.constexpr):
    """(2,) int32: how many are no class, and how many are not ignored."""
    wrong, valid = tl.full((BLOCK,), 0, tl.int32), tl.full((BLOCK,), 0, tl.int32)
    for first in range(0, N, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        target = tl.load(Target.ptr + rows.to(tl.int64) * Target.stride_row, mask=rows < N, other=ignore_index)
        counts = target != ignore_index
        wrong += (counts & ((target < 0) | (target >= V))).to(tl.int32)
        valid += counts.to(tl.int32)
    tl.store(Count, tl.sum(wrong, 0))
    tl.store(Count + 1, tl.sum(valid, 0))


class TargetCheck:
    """Targets being checked. A wrong one is the row of nothing to every kernel, so that those need not wait.

    One kernel: as eleven small ones of torch's it was 27 us, half of what a product takes at N=512, V=49152, D=576
    (H200)."""

    def __init__(self, targets: torch.Tensor, vocabulary: int, ignore_index: int) -> None:
        self.targets, self.vocabulary, self.ignore_index = targets, vocabulary, ignore_index
        counts = torch.empty(2, dtype=torch.int32, device=targets.device)
        count_targets_kernel[(1,)](
            vector(targets), counts, len(targets), vocabulary, ignore_index, BLOCK=BLOCK, num_warps=8
        )
        self.count = counts[1]
        """() int32, of rows that are not ignored."""
        self._wrong = counts[:1]
        self._arriving = None if capture.is_captured(targets.device) else Arriving(self._wrong)

    def passed(self, loss: torch.Tensor) -> torch.Tensor:
        """`loss`, once the device has come this far; in a CUDA graph NaN times it, where a target is wrong.

        Raises:
            ValueError: a target is neither a row of the classifier nor `ignore_index`.
        """
        if self._arriving is None:
            return loss * torch.where(self._wrong[0] > 0, torch.nan, 1.0).to(loss.dtype)
        bad = int(self._arriving.wait())
        if bad:
            targets = self.targets
            wrong = (targets != self.ignore_index) & ((targets < 0) | (targets >= self.vocabulary))
            place = int(wrong.nonzero()[0])
            raise ValueError(
                f"{bad} target(s) out of range, the first is {int(targets[place])} at row {place}; "
                f"legal values: 0 to {self.vocabulary - 1}, or ignore_index={self.ignore_index}"
            )
        return loss
