"""A head from the text that names it on a command line."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from .cache import load
from .head import Head
from .lift import lift
from .real import WINDOW, real


def resolve(
    spec: str,
    *,
    tokens: int = 1024,
    vocabulary: int | None = None,
    hidden: int | None = None,
    text: Path | str | None = None,
    window: int = WINDOW,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> Head:
    """The first `tokens` rows of the head that `spec` names: ``real``, ``gaussian``, ``planted:NAME``, or a saved file.

    `vocabulary` (V) and `hidden` (D) shape the heads that are drawn. A real or saved head has its own V, and is lifted
    to a larger D. `text` and `window` are the real head's, `seed` that of the drawn ones and of a lift.
    """
    if text is not None and spec != "real":
        raise ValueError(f"a text is for the real head; {spec!r} has none")
    if spec == "real":
        return _shaped(real(tokens, text, window=window, dtype=dtype, device=device), vocabulary, hidden, seed)
    if Path(spec).is_file():
        return _shaped(load(spec).tokens(tokens).to(device, dtype), vocabulary, hidden, seed)
    kind, _, name = spec.partition(":")
    shape = {letter: size for letter, size in (("v", vocabulary), ("d", hidden)) if size is not None}
    draw = {"n": tokens, "seed": seed, "dtype": dtype, "device": device}
    if spec == "gaussian":
        return _drawn(kind)(**{"v": 49152, "d": 576, **shape}, **draw)
    if kind == "planted" and name:
        return _drawn(kind)(name, **shape, **draw)  # refuses an unknown name with the legal ones
    raise ValueError(f"no head {spec!r}: legal are real, gaussian, planted:NAME, or a file that `save` wrote")


def _drawn(kind: str) -> Callable[..., Head]:
    """The function `kind` of the module of that name: reading a saved head should not import them all."""
    function: Callable[..., Head] = getattr(import_module(f"{__package__}.{kind}"), kind)
    return function


def _shaped(head: Head, vocabulary: int | None, hidden: int | None, seed: int) -> Head:
    _, v, d = head.shape
    if vocabulary not in (None, v):
        raise ValueError(f"the head {head.name!r} has V = {v}; it cannot be made {vocabulary}")
    return head if hidden in (None, d) else lift(head, hidden, seed)
