"""Figures measured on four real heads in bf16, on real text: what planted heads must reproduce.

SmolLM2-135M (V=49152, D=576) and Gemma 3 270M (V=262144, D=640), on Alpaca and on web text. Rank curve, live counts,
mass and 128x128 tiles come from N of 4096 to 8192 tokens; element and tile filters from N=1024 (SmolLM2), segment
filters from N=512 (SmolLM2) and N=256 (Gemma), with orders fitted to those same rows; live segments and 128x256 tiles
at full batch size from N=4096 (SmolLM2) and N=2048 (Gemma).
"""

from __future__ import annotations

from dataclasses import dataclass

from .statistics import ELEMENT, Grain, HeadStatistics

LOGIT = "mean-logit"
PROBABILITY = "mean-probability"


@dataclass(frozen=True)
class Figure:
    """One measured number: `quantity` of a head's first `tokens` rows under `eps`, for `grain` where it has one."""

    quantity: str
    value: float
    tokens: int
    eps: float = 2.0**-12
    grain: Grain | None = None

    def of(self, s: HeadStatistics) -> float:
        """The same number in statistics that were measured with this figure's eps and grain."""
        if self.quantity.startswith("rank "):
            return s.rank_probability[int(self.quantity[5:])]
        if self.grain is None:
            return float(getattr(s, self.quantity))
        if self.quantity == "live_share":
            return s.live_share[self.grain]
        return float(getattr(s.filter_error[self.grain], self.quantity))


@dataclass(frozen=True)
class Anchor:
    """A real head on one kind of text."""

    vocabulary: int
    hidden: int
    figures: tuple[Figure, ...]


def _softmax(
    tokens: int, ranks: tuple[float, float, float, float], live: tuple[float, float, float], mass: float
) -> tuple[Figure, ...]:
    p = tuple(Figure(f"rank {r}", value, tokens) for r, value in zip((1, 10, 50, 1000), ranks, strict=True))
    counts = zip(("live_mean", "live_median", "live_max"), live, strict=True)
    return (*p, *(Figure(quantity, value, tokens) for quantity, value in counts), Figure("mass", mass, tokens))


def _shares(tokens: int, rows: int, columns: int, eps: float, **shares: float) -> tuple[Figure, ...]:
    order = {"natural": "natural", "logit": LOGIT, "probability": PROBABILITY}
    return tuple(
        Figure("live_share", share, tokens, eps, Grain(rows, columns, order[k]))  # type: ignore[arg-type]
        for k, share in shares.items()
    )


def _errors(
    tokens: int, eps: float, grain: Grain, drop: tuple[float, float], tail: tuple[float, float] | None = None
) -> tuple[Figure, ...]:
    values = {"drop_de": drop[0], "drop_dc": drop[1]}
    if tail is not None:
        values |= {"tail_de": tail[0], "tail_dc": tail[1]}
    return tuple(Figure(quantity, value, tokens, eps, grain) for quantity, value in values.items())


_SEGMENT, _SORTED_SEGMENT = Grain(1, 256), Grain(1, 256, "mean-logit")
_TILE, _LOGIT_TILE = Grain(128, 128), Grain(128, 128, "mean-logit")
_PROBABILITY_TILE = Grain(128, 128, "mean-probability")

ANCHORS = {
    "smollm2-alpaca": Anchor(
        49152,
        576,
        (
            *_softmax(4096, (0.625, 0.0064, 5.5e-4, 5.3e-6), (72, 41, 649), 0.976),
            Figure("live_mean", 30, 4096, 2.0**-10),
            Figure("live_mean", 172, 4096, 2.0**-14),
            Figure("live_mean", 386, 4096, 2.0**-16),
            *_shares(4096, 128, 128, 2.0**-12, natural=0.90, logit=0.76),
            *_shares(4096, 1, 256, 2.0**-12, natural=0.17, logit=0.13),
            *_shares(4096, 128, 256, 2.0**-12, natural=0.97, logit=0.85),
            *_shares(4096, 1, 256, 2.0**-14, natural=0.28, logit=0.21),
            *_shares(4096, 128, 256, 2.0**-14, natural=1.0, logit=0.94),
            *_errors(1024, 2.0**-10, ELEMENT, (4.9e-2, 1.8e-2), (1.7e-2, 9.5e-3)),
            *_errors(1024, 2.0**-12, ELEMENT, (2.9e-2, 7.2e-3), (8.2e-3, 3.7e-3)),
            *_errors(1024, 2.0**-14, ELEMENT, (1.6e-2, 2.8e-3), (3.9e-3, 1.4e-3)),
            *_errors(1024, 2.0**-16, ELEMENT, (8.3e-3, 1.1e-3), (1.7e-3, 4.8e-4)),
            *_shares(1024, 128, 128, 2.0**-10, probability=0.16),
            *_shares(1024, 128, 128, 2.0**-12, natural=0.89, logit=0.71, probability=0.29),
            *_shares(1024, 128, 128, 2.0**-14, logit=0.85, probability=0.47),
            *_errors(1024, 2.0**-10, _PROBABILITY_TILE, (2.0e-2, 1.8e-3)),
            *_errors(1024, 2.0**-12, _PROBABILITY_TILE, (8.2e-3, 5.7e-4)),
            *_errors(1024, 2.0**-14, _PROBABILITY_TILE, (2.7e-3, 1.6e-4)),
            *_errors(1024, 2.0**-12, _TILE, (1.3e-3, 3.4e-4)),
            *_errors(1024, 2.0**-12, _LOGIT_TILE, (2.0e-3, 3.4e-4)),
            *_errors(1024, 2.0**-14, _LOGIT_TILE, (3.4e-4, 6.7e-5)),
            *_shares(512, 1, 256, 2.0**-12, natural=0.17, logit=0.093),
            *_shares(512, 1, 256, 2.0**-14, logit=0.15),
            *_errors(512, 2.0**-12, _SEGMENT, (1.4e-2, 2.8e-3), (3.6e-3, 2.0e-3)),
            *_errors(512, 2.0**-12, _SORTED_SEGMENT, (1.1e-2, 1.5e-3), (2.6e-3, 1.2e-3)),
            *_errors(512, 2.0**-14, _SORTED_SEGMENT, (4.1e-3, 4.5e-4), (8.5e-4, 3.9e-4)),
        ),
    ),
    "smollm2-web": Anchor(
        49152,
        576,
        (
            *_softmax(4096, (0.364, 0.0118, 1.4e-3, 2.7e-5), (190, 164, 789), 0.921),
            *_shares(4096, 128, 128, 2.0**-12, natural=0.99, logit=0.91),
            *_errors(1024, 2.0**-12, ELEMENT, (5.5e-2, 1.9e-2), (1.1e-2, 5.6e-3)),
            *_errors(1024, 2.0**-14, ELEMENT, (3.2e-2, 8.0e-3), (4.7e-3, 2.1e-3)),
            *_errors(1024, 2.0**-16, ELEMENT, (1.6e-2, 3.1e-3), (2.0e-3, 7.3e-4)),
            *_shares(1024, 128, 128, 2.0**-12, probability=0.48),
            *_shares(1024, 128, 128, 2.0**-14, probability=0.68),
            *_errors(1024, 2.0**-12, _PROBABILITY_TILE, (5.5e-3, 6.1e-4)),
            *_errors(1024, 2.0**-14, _PROBABILITY_TILE, (1.5e-3, 1.5e-4)),
        ),
    ),
    "gemma-alpaca": Anchor(
        262144,
        640,
        (
            *_softmax(4096, (0.625, 0.0067, 5.5e-4, 4.1e-6), (68, 37, 719), 0.980),
            *_shares(4096, 128, 128, 2.0**-12, natural=0.35, logit=0.24),
            *_shares(2048, 1, 256, 2.0**-12, natural=0.034, logit=0.023),
            *_shares(2048, 128, 256, 2.0**-12, natural=0.48, logit=0.31),
            *_shares(2048, 1, 256, 2.0**-14, natural=0.062, logit=0.040),
            *_shares(2048, 128, 256, 2.0**-14, natural=0.66, logit=0.43),
            *_shares(256, 1, 256, 2.0**-12, natural=0.040, logit=0.021),
            *_shares(256, 1, 256, 2.0**-14, natural=0.072, logit=0.036),
            *_shares(256, 1, 64, 2.0**-14, natural=0.026),
            *_errors(256, 2.0**-12, _SEGMENT, (1.4e-2, 2.7e-3), (6.5e-3, 1.7e-3)),
            *_errors(256, 2.0**-12, _SORTED_SEGMENT, (1.1e-2, 1.3e-3), (5.1e-3, 1.1e-3)),
            *_errors(256, 2.0**-14, _SEGMENT, (5.3e-3, 8.7e-4), (2.3e-3, 5.5e-4)),
            *_errors(256, 2.0**-14, _SORTED_SEGMENT, (4.2e-3, 3.8e-4), (1.9e-3, 3.2e-4)),
            *_errors(256, 2.0**-14, Grain(1, 64), (8.7e-3, 1.2e-3), (3.6e-3, 7.5e-4)),
        ),
    ),
    "gemma-web": Anchor(
        262144,
        640,
        (
            *_softmax(4096, (0.411, 0.0118, 1.2e-3, 1.4e-5), (143, 120, 795), 0.950),
            *_shares(4096, 128, 128, 2.0**-12, natural=0.49, logit=0.31),
        ),
    ),
}
