"""The kernels compile for GPUs that this machine need not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMPILE_ONLY = Path(__file__).parent / "compile_only.py"
CASES = "options,plain,pointers,fp32"
KERNELS = {
    *("logsumexp_kernel", "combine_kernel", "residual_kernel", "embeddings_kernel", "classifier_kernel"),
    *("finish_embeddings_kernel", "block_scale_kernel"),
}
AHEAD = {
    *("live_rows_kernel", "count_kernel", "bounds_kernel", "compact_kernel", "chunks_kernel"),
    *("row_residuals_kernel", "mark_words_kernel"),
}
TAIL = {"tail_share_kernel", "pull_kernel"}
ORDER = {"likeness_kernel", "place_kernel"}
SEGMENTS = {*AHEAD, *TAIL, *ORDER, "row_segments_kernel", "column_residuals_kernel", "column_segments_kernel"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "variants"),
    [
        (80, ["cce"]),  # no tensor descriptors
        (
            90,
            [
                *("cce-no-filter,accumulate=kahan,target=indexed", "cce-exact", "cce-segment", "cce-stored"),
                "cce-no-sort,tail=rank1",
            ],
        ),
    ],
)
def test_kernels_compile(arch: int, variants: list[str], tmp_path: Path) -> None:
    lines = [line.split() for line in compile_only(tmp_path, arch, CASES, *variants).splitlines()]
    assert len(lines) == 4 * len(variants)
    for variant, case, *kernels in lines:
        indexed = {"indexed_dot_kernel"} if "indexed" in variant else set()
        sorting = {"mean_rows_kernel", "mean_logit_kernel"} if variant in ("cce", "cce-kahan") else set()
        bias = {"bias_kernel"} if case in ("options", "pointers") else set()
        backward = KERNELS
        if variant == "cce-segment":
            of_bias = {"residual_kernel"} if bias else set()
            backward = {"logsumexp_kernel", "combine_kernel", "block_scale_kernel", *SEGMENTS, *of_bias}
        if variant == "cce-stored" and case == "plain":  # no cap, and no fp32
            backward = {*KERNELS - {"residual_kernel"}, "stored_residual_kernel"}
        ahead = AHEAD if variant == "cce" and not bias else set()  # what counts, or has a bias, computes every tile
        if variant == "cce-no-sort,tail=rank1":
            ahead = {*AHEAD, *TAIL, "lost_rows_kernel"}
        uneven = {"scaled_rows_kernel"} if case == "options" and variant != "cce-segment" else set()  # bf16
        lists = {"kept_kernel"} if variant in ("cce", "cce-no-sort,tail=rank1") else set()
        assert set(kernels) == backward | indexed | sorting | bias | ahead | lists | uneven, (variant, case)


@pytest.mark.parametrize("case", ["plain", "options"])
def test_the_forward_pass_keeps_the_tensor_core_busy(case: str, tmp_path: Path) -> None:
    """An `if` among a flattened loop's exponentials makes ptxas wait for every product, which cost 0.14 of one; a
    softcap's divisions, which are calls, cost 1.7 products."""
    log = compile_only(tmp_path, 90, case, "cce-no-sort", TRITON_DUMP_PTXAS_LOG="1", TRITON_ALWAYS_COMPILE="1")
    notes = log[log.index("'logsumexp_kernel'") :]
    notes = notes[: notes.index("Used ")]
    assert " 0 bytes spill stores" in notes
    assert "serialized" not in notes, notes


def compile_only(cache: Path, arch: int, *arguments: str, **environment: str) -> str:
    """What compile_only.py prints, in a process of its own, since one that interprets cannot compile."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, str(COMPILE_ONLY), str(arch), *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
