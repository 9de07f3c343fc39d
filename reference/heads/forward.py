"""One forward pass of a GGUF model over a text: ``python -m ccelab.reference.heads.forward``, as `real` runs it.

A process of its own, because transformers reads HF_HUB_OFFLINE and imports Triton when it is imported itself, and
Triton then decides for the whole process whether it interprets. Standard input is the text.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from .cache import save
from .head import Head


def forward(model: Path, text: str, tokens: int, window: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """E (N, D) and C (V, D) in fp32, and x (N,): each window of `window` tokens is a sequence of its own.

    N is `tokens` rounded up to whole windows, or to what the text holds.

    Row t of E is the output of the final norm at token t, and its target is token t + 1 of the text; the last row of a
    window has the first token of the next as its target. The text has no special tokens and no chat template.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # read once, on import
    import gguf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers 5.23 parses the file three times over and makes the table of tensor names once per submodule: 10 s.
    for slow in ("GGUFReader", "get_tensor_name_map"):
        setattr(gguf, slow, functools.cache(getattr(gguf, slow)))

    here = {"gguf_file": model.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(model.parent, **here)
    windows = -(-tokens // window)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][: windows * window + 1])
    if len(ids) <= tokens:
        sys.exit(f"{tokens} tokens asked, but the text has only {max(len(ids) - 1, 0)} with a next token")
    network = AutoModelForCausalLM.from_pretrained(model.parent, dtype=torch.float32, **here).eval()
    with torch.inference_mode():
        rows = [network.model(part[None]).last_hidden_state[0] for part in torch.split(ids[:-1], window)]
    return torch.cat(rows), network.lm_head.weight.detach(), ids[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--provenance", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    text = sys.stdin.buffer.read().decode()
    embeddings, classifier, targets = forward(given.model, text, given.tokens, given.window)
    made_with = {package: version(package) for package in ("torch", "transformers", "gguf")}
    compute = f"fp32 forward on the CPU, {torch.get_num_threads()} threads, {platform.machine()}"
    provenance = {**given.provenance, "compute": compute, **made_with}
    head = Head(embeddings=embeddings, classifier=classifier, targets=targets, name=given.name, provenance=provenance)
    save(head, given.out)


if __name__ == "__main__":
    main()
