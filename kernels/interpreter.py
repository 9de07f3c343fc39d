"""Chooses, when `ccelab.kernels` is imported, whether this process interprets kernels: it does where there is no GPU.

Triton reads TRITON_INTERPRET when its own library is first imported, so that the choice must come before any import of
triton. A process that interprets cannot compile, nor the other way round.
"""

from __future__ import annotations

import os
import sys

import torch


def choose() -> None:
    """Sets TRITON_INTERPRET=1 where there is no GPU, unless it is set already or triton is imported already."""
    if "triton" not in sys.modules and not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
