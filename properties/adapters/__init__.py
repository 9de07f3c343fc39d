"""Subjects with a name: torch's own ways to a linear cross-entropy, and those of other projects.

Nothing is imported here, not even torch, so that the plugin can name them. A peer is imported when it is called: each
is optional, and `subject.load` says how to install one that is missing.
"""

from __future__ import annotations

NAMED = {
    "torch": "torch_own:eager",
    "torch-compile": "torch_own:compiled",
    "torch-native": "torch_own:native",
    "torch-chunked": "torch_own:chunked",
    "apple": "apple:cce",
    "apple-kahan-full-c": "apple:kahan_full_c",
    "apple-exact": "apple:exact",
    "liger": "liger:fused",
    "quack": "quack:module",
}
