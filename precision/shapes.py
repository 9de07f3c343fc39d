"""Shapes of heads: as a person writes one, and a grid of those that models have."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """N tokens, V vocabulary, D hidden; None is what the head has by itself."""

    tokens: int
    vocabulary: int | None = None
    hidden: int | None = None

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``N,V,D``.

        Raises:
            ValueError: it is not three positive whole numbers.
        """
        parts = text.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
            raise ValueError(f"{text!r} is no shape; legal is N,V,D, such as 8192,256000,2304")
        return cls(*map(int, parts))


MODELS = {
    "GPT-2": (50257, 768),
    "SmolLM2-135M": (49152, 576),
    "Phi 3.5 mini": (32064, 3072),
    "Llama 3.2 1B": (128256, 2048),
    "Mistral NeMo": (131072, 5120),
    "Qwen 2.5 7B": (152064, 3584),
    "Gemma 2 2B": (256000, 2304),
    "Llama 3.1 70B": (128256, 8192),
}
"""V and D of heads as their configurations have them: GPT-2's V is odd, so that no row of logits is aligned."""

GRID = (
    *(Shape(n, v, d) for v, d in MODELS.values() for n in (512, 4095, 8192)),
    Shape(65536, *MODELS["SmolLM2-135M"]),
)
"""Every head at few tokens, at many, and at one less than a multiple of any tile; one head at very many."""
