"""The rows of the paper's Table 1, in its order: which of our variants, or whose subject, each is.

Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", ICLR 2025: memory and time of the loss and its
gradient for a batch of 8192 tokens of Alpaca on Gemma 2 (2B), V = 256000, D = 2304, in bf16 on an A100.
"""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shape

HEAD = "planted:gemma-alpaca"
SHAPE = Shape(8192, 256000, 2304)


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """A row by the paper's name, and what is run for it."""

    label: str
    variant: str | None = None
    subject: str | None = None


ROWS = (
    PaperRow(label="Cut Cross-Entropy (CCE)", variant="cce"),
    PaperRow(label="Liger Kernels", subject="liger"),
    PaperRow(label="Torch Tune (8 chunks)", subject="torch-eight-chunks"),
    PaperRow(label="torch.compile", subject="torch-compile"),
    PaperRow(label="Baseline", subject="torch"),
    PaperRow(label="CCE (No Vocab Sorting)", variant="cce-no-sort"),
    PaperRow(label="CCE (No Grad. Filter)", variant="cce-no-filter"),
    PaperRow(label="CCE-Kahan", variant="cce-kahan"),
    PaperRow(label="CCE-Kahan-FullC", variant="cce-kahan-full-c"),
    PaperRow(label="CCE-Kahan-FullE", variant="cce-kahan-full-e"),
)
