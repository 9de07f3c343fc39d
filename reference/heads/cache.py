"""Heads on disk: E, C, x and where they came from in one safetensors file; torch and safetensors read it back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .blocks import pack, unpack
from .head import Head

FORMAT = "ccelab-head-1"


def cache_folder() -> Path:
    """$CCELAB_CACHE, or ccelab/ in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("CCELAB_CACHE"):
        return Path(own)
    # The XDG specification says to ignore a relative path.
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ccelab"


def save(head: Head, path: Path | str) -> None:
    """Writes `head` so that `load` gives the same bits back; an interrupted write leaves nothing under `path`.

    A classifier that consists of 8-bit blocks (any Q8_0 head, also after rounding to bf16 or fp16) is stored as such: a
    SmolLM2 head in bf16 takes 30.1 MB and 1.2 kB per token. Any other is stored as it is.
    """
    tensors = {"embeddings": head.embeddings, "targets": head.targets}
    blocks = pack(head.classifier)
    if blocks is None:
        tensors["classifier"] = head.classifier
    else:
        tensors["classifier.codes"], tensors["classifier.scales"] = blocks
    metadata = {
        "format": FORMAT,
        "name": head.name,
        "dtype": str(head.classifier.dtype).removeprefix("torch."),
        "provenance": json.dumps(dict(head.provenance)),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, unfinished, metadata)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path | str, *, device: torch.device | str = "cpu") -> Head:
    """The head that `save` wrote to `path`, in the dtype that it had."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no head file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a head that ccelab saved: its format is {metadata.get('format')}, not {FORMAT}"
        )
    dtype: torch.dtype = getattr(torch, metadata["dtype"])
    if "classifier" not in tensors:
        tensors["classifier"] = unpack(tensors["classifier.codes"], tensors["classifier.scales"], dtype)
    return Head(
        embeddings=tensors["embeddings"],
        classifier=tensors["classifier"],
        targets=tensors["targets"],
        name=metadata["name"],
        provenance=json.loads(metadata["provenance"]),
    ).to(device)
