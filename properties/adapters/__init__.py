"""Subjects with a name: torch's own ways to a linear cross-entropy, and those of other projects.

Nothing is imported here, not even torch, so that the plugin can name them. A peer is imported when it is called: each
is optional, and `subject.load` says how to install one that is missing. `NAMED` is also an entry point of the group
`ccelab.subjects` (pyproject.toml), by which `ccelab bench` knows these names without importing this package.
"""

from __future__ import annotations

_PLACES = {
    "torch": "torch_own:eager",
    "torch-compile": "torch_own:compiled",
    "torch-native": "torch_own:native",
    "torch-chunked": "torch_own:chunked",
    "torch-eight-chunks": "torch_own:eight_chunks",
    "apple": "apple:cce",
    "apple-kahan-full-c": "apple:kahan_full_c",
    "apple-exact": "apple:exact",
    "liger": "liger:fused",
    "quack": "quack:module",
}

NAMED = {name: f"{__name__}.{place}" for name, place in _PLACES.items()}
"""Names of subjects, and where each is: ``package.module:function``."""
