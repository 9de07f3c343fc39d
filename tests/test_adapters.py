"""Adapters of peers, without the peers: what they ask for, what they pass on, and what they say where none is there."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ccelab.kernels import Variant
from ccelab.properties.adapters import NAMED, interpreted
from ccelab.properties.cases import Case, run
from ccelab.properties.promises import PROMISES, Unsupported
from ccelab.properties.subject import Subject, accepted, load, version

PEERS = {"cut_cross_entropy": "apple", "liger_kernel": "liger", "quack": "quack"}


class Fake:
    """Stands for a peer: remembers what it was given, and answers with a loss that has gradients."""

    def __init__(self) -> None:
        self.name = ""
        self.args: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}

    def __call__(self, name: str, *args: Any, **options: Any) -> Any:
        self.name, self.args, self.options = name, args, options
        given = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor) and x.requires_grad]
        loss = sum(x.float().sum() for x in given)
        return (loss, args[2] + loss) if options.get("return_lse") else loss


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """All peers, replaced."""
    heard = Fake()
    monkeypatch.setattr("ccelab.properties.adapters.interpreted.IS_INTERPRETED", False)  # nothing is computed
    functions = {
        "cut_cross_entropy": ("linear_cross_entropy",),
        "liger_kernel": (),
        "liger_kernel.transformers": (),
        "liger_kernel.transformers.functional": ("liger_fused_linear_cross_entropy",),
        "quack": (),
        "quack.linear_cross_entropy": ("chunked_linear_cross_entropy", "linear_cross_entropy_func"),
    }
    for name, held in functions.items():
        module: Any = ModuleType(name)
        module.__path__ = []
        for function in held:
            setattr(module, function, lambda *args, _name=function, **options: heard(_name, *args, **options))
        monkeypatch.setitem(sys.modules, name, module)
    return heard


def case(n: int = 16, v: int = 24, d: int = 8, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Case:
    g = torch.Generator().manual_seed(0)
    return Case(
        input=torch.randn(n, d, generator=g).to(dtype),
        linear_weight=torch.randn(v, d, generator=g).to(dtype),
        target=torch.randint(0, v, (n,), generator=g),
        **options,
    )


def call(name: str, of: Case) -> Subject:
    subject = load(name)
    run(of, accepted(subject))
    return subject


@pytest.mark.parametrize("package", PEERS)
def test_a_missing_package_is_named_with_the_way_to_get_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.setattr("ccelab.precision.subjects.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"needs {package}, which is not installed: pip install"):
        load(PEERS[package])


@pytest.mark.parametrize("name", NAMED)
def test_promises_and_budgets_are_known(name: str, fake: Fake) -> None:
    subject = load(name)
    assert subject.promises
    assert subject.promises <= PROMISES.keys()
    assert subject.budget is not None


def test_names_cost_no_import() -> None:
    code = "import sys, ccelab.properties.adapters; assert not {'torch', 'triton', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "impl", "budget"),
    [
        ("apple", "cce", "cce"),
        ("apple-kahan-full-c", "cce_kahan_full_c", "cce-kahan-full-c"),
        ("apple-exact", "cce_exact", "cce-exact"),
    ],
)
def test_apple_gets_every_option(name: str, impl: str, budget: str, fake: Fake) -> None:
    bias = torch.randn(24)
    given = case(linear_bias=bias, reduction="sum", ignore_index=3, softcap=5.0, shift=2, grad_lse=torch.ones(16))
    subject = call(name, given)
    assert subject.budget == Variant.of(budget)
    assert [x.data_ptr() for x in fake.args] == [x.data_ptr() for x in (given.input, given.linear_weight, given.target)]
    assert fake.options.pop("bias").data_ptr() == bias.data_ptr()
    assert fake.options == {
        "ignore_index": 3,
        "softcap": 5.0,
        "reduction": "sum",
        "shift": 2,
        "return_lse": True,
        "impl": impl,
    }


def test_apple_without_its_gpu_is_unsupported(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("Cut Cross Entropy requires an ampere GPU or newer.")

    monkeypatch.setattr(sys.modules["cut_cross_entropy"], "linear_cross_entropy", refuse)
    with pytest.raises(Unsupported, match="Ampere"):
        call("apple", case())


def test_liger_gets_what_it_takes(fake: Fake) -> None:
    bias = torch.randn(24).bfloat16()
    given = case(linear_bias=bias, reduction="none", ignore_index=3, softcap=5.0)
    call("liger", given)
    assert fake.args[2] is given.target
    assert fake.options.pop("bias").data_ptr() == bias.data_ptr()
    assert fake.options == {"ignore_index": 3, "reduction": "none", "softcap": 5.0}


@pytest.mark.parametrize("name", ["liger", "quack"])
def test_a_bias_of_another_dtype_is_unsupported(name: str, fake: Fake) -> None:
    with pytest.raises(Unsupported, match="dtype"):
        call(name, case(linear_bias=torch.randn(24)))


@pytest.mark.parametrize("option", [{"shift": 1}, {"grad_lse": torch.ones(16)}])
def test_an_option_that_liger_lacks_is_not_dropped(option: dict[str, Any], fake: Fake) -> None:
    with pytest.raises(TypeError, match="unexpected keyword"):
        call("liger", case(**option))


@pytest.mark.parametrize(
    ("options", "function"),
    [
        ({}, "chunked_linear_cross_entropy"),
        ({"reduction": "none"}, "linear_cross_entropy_func"),
        ({"n": 15}, "linear_cross_entropy_func"),
        ({"d": 7}, "linear_cross_entropy_func"),
        ({"linear_bias": torch.zeros(24).bfloat16()}, "linear_cross_entropy_func"),
    ],
    ids=str,
)
def test_quack_takes_the_way_that_its_module_takes(options: dict[str, Any], function: str, fake: Fake) -> None:
    call("quack", case(**options, ignore_index=3))
    assert fake.name == function
    assert fake.options["ignore_index"] == 3
    assert fake.options["reduction"] == options.get("reduction", "mean")


def test_quack_refuses_ragged_rows_of_logits(fake: Fake) -> None:
    with pytest.raises(Unsupported, match="16 bytes"):
        call("quack", case(v=23))


@pytest.mark.parametrize(("name", "found"), [("ours", metadata.version("ccelab")), ("torch", torch.__version__)])
def test_a_version_is_that_of_the_package(name: str, found: str) -> None:
    assert version(load(name)) == found


def test_a_version_is_read_without_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cut_cross_entropy").mkdir()
    (tmp_path / "cut_cross_entropy" / "__init__.py").write_text('raise ImportError\n__version__ = "25.9.3"\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert version(load("apple")) == "25.9.3"


@pytest.mark.parametrize("name", ["apple", "liger"])
def test_bf16_is_unsupported_in_the_interpreter(name: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccelab.properties.adapters.interpreted.IS_INTERPRETED", True)
    with pytest.raises(Unsupported, match="bf16"):
        call(name, case())


def test_a_buffer_of_a_peer_has_room_behind_it_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccelab.properties.adapters.interpreted.IS_INTERPRETED", True)
    with interpreted.as_on_a_gpu(), interpreted.eager():
        made = torch.zeros(2).new_full((3,), 7.0)
        assert torch.compile(len) is len
        assert torch.cuda.is_bf16_supported()
    assert made.tolist() == [7.0] * 3
    assert made.untyped_storage().nbytes() == 4 * (3 + interpreted.GUARD)
    assert torch.zeros(2).new_full((3,), 7.0).untyped_storage().nbytes() == 4 * 3


@pytest.mark.parametrize(
    ("without", "says"), [("bias", "torch does not promise bias"), ("biases", "no promise biases; known are")]
)
def test_a_subject_is_judged_without_a_promise(without: str, says: str) -> None:
    command = [sys.executable, "-m", "pytest", "--pyargs", "ccelab.properties", "-k", "minus_infinity_masks"]
    command += ["--subject", "torch", "--without", without, "--dtype", "float32", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert says in done.stdout + done.stderr


REFUSES = """
from ccelab.properties.adapters.torch_own import eager
from ccelab.properties.promises import Unsupported, promising

@promising("float32")
def always(*args, **options):
    raise Unsupported("it takes nothing")

@promising("float32")
def large(input, linear_weight, target, *, reduction="mean", ignore_index=-100):
    if len(target) > 16:
        raise Unsupported("it takes 16 rows")
    return eager(input, linear_weight, target, reduction=reduction, ignore_index=ignore_index)
"""


@pytest.mark.parametrize(
    ("name", "select", "says"),
    [
        ("always", "one_column", "not applicable 1 times"),
        ("large", "batches_add_up", "1 passed"),
        ("large", "signed_upstream", "not applicable 1 times: refuses:large does not promise"),
    ],
)
def test_what_a_subject_refuses_counts_for_nothing(name: str, select: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "refuses.py").write_text(REFUSES)
    command = [sys.executable, "-m", "pytest", "--pyargs", "ccelab.properties", "-k", select, "--dtype", "float32"]
    command += ["--subject", f"refuses:{name}", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert says in done.stdout
