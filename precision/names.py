"""The outputs in words, in the order in which they are shown."""

from __future__ import annotations

GRADIENTS = {"d_embeddings": "dE", "d_classifier": "dC"}
OUTPUTS = {"loss": "loss", "lse": "lse", **GRADIENTS, "d_bias": "dbias"}
