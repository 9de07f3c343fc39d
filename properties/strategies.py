"""hypothesis strategies for `Spec`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import strategies as st

from .cases import SMALL
from .families import FAMILIES
from .spec import DTYPE, Spec

EVERY = tuple(FAMILIES)
ORDINARY = ("gaussian", "zipf", "peaked", "real")


def _edges(*blocks: int) -> list[int]:
    """Sizes around the edges of tiles, small ones first: 1, a tile less one, exact, and one more; more than two."""
    sizes = {1, 2}
    for block in blocks:
        sizes |= {block - 1, block, block + 1, 2 * block - 1, 2 * block + 1, 3 * block + 5}
    return sorted(sizes)


ROWS = _edges(SMALL.forward.block_n)
CLASSES = _edges(SMALL.backward.block_v, SMALL.forward.block_v)
COLUMNS = _edges(SMALL.forward.block_d, SMALL.backward.block_d)


def specs(
    *,
    families: Sequence[str] = EVERY,
    dtypes: Sequence[str] = tuple(DTYPE),
    options: bool = True,
    least: tuple[int, int, int] = (1, 1, 1),
    **fixed: object,
) -> st.SearchStrategy[Spec]:
    """Specs of the given families and dtypes, of at least `least` = (N, V, D); without `options` a plain mean loss.

    `fixed` fields are what they say. $CCELAB_DTYPES, which --dtype sets, leaves fewer dtypes; with none left the
    strategy is empty.
    """
    chosen = os.environ.get("CCELAB_DTYPES")
    dtypes = [dtype for dtype in dtypes if chosen is None or dtype in chosen.split(",")]
    if not dtypes:
        return st.nothing()

    def sizes(edges: Sequence[int], at_least: int) -> st.SearchStrategy[int]:
        return st.sampled_from([size for size in edges if size >= at_least])

    fields: dict[str, st.SearchStrategy[object]] = {
        "n": sizes(ROWS, least[0]),
        "v": sizes(CLASSES, least[1]),
        "d": sizes(COLUMNS, least[2]),
        "dtype": st.sampled_from(dtypes),
        "family": st.sampled_from(list(families)),
        "seed": st.integers(0, 2**16 - 1),
    }
    if options:
        fields |= {
            "bias": st.sampled_from([None, "storage", "float32"]),
            "softcap": st.sampled_from([None, 30.0, 1.0]),
            "reduction": st.sampled_from(["mean", "sum", "none"]),
            "lse": st.booleans(),
            "ignored": st.sampled_from([0, 1, 5]),
            "upstream": st.sampled_from(["ones", "signed"]),
        }
    return st.builds(Spec, **{**fields, **{name: st.just(value) for name, value in fixed.items()}})
