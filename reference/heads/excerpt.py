"""Some tokens and words of a large head as a small one with the same logits, and one of the real head to draw from.

`python -m ccelab.reference.heads.excerpt HEAD.safetensors` renews `FILE` from a saved real head.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .cache import load, save
from .head import Head

FILE = Path(__file__).with_name("excerpt.safetensors")
TOKENS = 64
CLASSES = 256


def excerpt(head: Head, tokens: Tensor, classes: Tensor) -> Head:
    """The head of the rows `tokens` over the words `classes`, in as few dimensions as there are rows, in float64.

    Logits are factored by their singular values, columns in falling order of them: the first d columns are the best
    logits of rank d (Eckart and Young, 1936). A target that is not among `classes` is an error.
    """
    place = torch.full((head.shape[1],), -1)
    place[classes] = torch.arange(len(classes))
    targets = place[head.targets[tokens]]
    if (targets < 0).any():
        raise ValueError("classes must hold every target of the tokens")
    logits = head.embeddings[tokens].double() @ head.classifier[classes].double().T
    left, sizes, right = torch.linalg.svd(logits, full_matrices=False)
    return replace(
        head,
        embeddings=left * sizes.sqrt(),
        classifier=(right.T * sizes.sqrt()).contiguous(),
        targets=targets,
        name=f"excerpt of {head.name}",
        provenance={**head.provenance, "first token": int(tokens[0]), "hidden": head.shape[2]},
    )


def contested(head: Head, tokens: Tensor, count: int) -> Tensor:
    """Words in the order of the vocabulary: the tokens' targets, what is likely for them, a third of any rank."""
    p = (head.embeddings[tokens].double() @ head.classifier.double().T).softmax(1).sum(0)
    p[head.targets[tokens]] = torch.inf
    order = p.argsort(descending=True)
    likely = order[: count - count // 3]
    rest = order[count - count // 3 :]
    return torch.cat([likely, rest[:: -(-len(rest) // (count // 3))]]).sort().values


@functools.cache
def real_excerpt() -> Head:
    """`TOKENS` consecutive tokens of the real head over `CLASSES` words, in float64 (stored in fp16)."""
    return load(FILE).to(dtype=torch.float64)


if __name__ == "__main__":
    source = load(sys.argv[1])
    rows = torch.arange(1000, 1000 + TOKENS)
    save(excerpt(source, rows, contested(source, rows, CLASSES)).to(dtype=torch.float16), FILE)
