"""Bad input gets a clear error before anything is launched; of targets, `test_targets` has that."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ccelab.kernels import launch, linear_cross_entropy
from ccelab.kernels.backend import IS_INTERPRETED, require_device
from ccelab.properties.cases import DEVICE, SMALL

N, V, D = 6, 11, 8


class LaunchedError(AssertionError):
    """A kernel was reached."""


@pytest.fixture(autouse=True)
def _no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(call: object, record: object) -> None:
        raise LaunchedError

    monkeypatch.setattr(launch, "forward", forward)


def good(**changes: Any) -> dict[str, Any]:
    call: dict[str, Any] = {
        "input": torch.zeros(2, 3, D, dtype=torch.bfloat16, device=DEVICE),
        "linear_weight": torch.zeros(V, D, dtype=torch.bfloat16, device=DEVICE),
        "target": torch.zeros(2, 3, dtype=torch.int64, device=DEVICE),
        "schedule": SMALL,
    }
    return {**call, **changes}


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16, device: str = DEVICE) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def targets(*values: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE).reshape(2, 3)


def test_the_good_call_is_launched() -> None:
    for change in (
        {},
        {"target": targets(0, 10, -100, 3, 4, 5)},
        {"target": targets(0, 200, 3, 4, 5, 6), "ignore_index": 200},
        {"target": targets(0, 1, 2, 3, 4, 5, dtype=torch.uint8)},
        {"shift": 2},
        {"softcap": 1},
        {"linear_bias": zeros(V, dtype=torch.float32)},
    ):
        with pytest.raises(LaunchedError):
            linear_cross_entropy(**good(**change))


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"linear_weight": zeros(V, D, 1)}, r"linear_weight has shape \(11, 8, 1\), expected \(V, D\)"),
    ({"linear_weight": zeros(V)}, r"linear_weight has shape \(11,\), expected \(V, D\)"),
    ({"linear_weight": zeros(V, D + 1)}, r"input has shape \(2, 3, 8\), expected \(..., 9\)"),
    ({"input": zeros()}, r"input has shape \(\), expected"),
    ({"target": targets(*[0] * 6).reshape(3, 2)}, r"target has shape \(3, 2\), expected .* \(2, 3\)"),
    ({"target": targets(*[0] * 6)[..., None]}, r"target has shape \(2, 3, 1\), expected"),
    ({"linear_weight": zeros(0, D)}, "V and D must be at least 1"),
    ({"linear_weight": zeros(V, 0), "input": zeros(2, 3, 0)}, "V and D must be at least 1"),
    ({"linear_bias": zeros(V, 1)}, r"linear_bias has shape \(11, 1\), expected \(11,\)"),
    ({"linear_bias": zeros(1)}, r"linear_bias has shape \(1,\), expected \(11,\)"),
    ({"linear_weight": zeros(V, D, device="meta")}, "linear_weight is on meta"),
    ({"target": torch.zeros(2, 3, dtype=torch.int64, device="meta")}, "target is on meta"),
    ({"linear_bias": zeros(V, device="meta")}, "linear_bias is on meta"),
]

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"reduction": "avg"}, "reduction='avg' is unknown; legal values: none, mean, sum"),
    ({"reduction": None}, "reduction=None is unknown; legal values: none, mean, sum"),
    *[
        ({"softcap": cap}, "softcap=.* must be a positive, finite number")
        for cap in (0, 0.0, -1.0, math.nan, math.inf, -math.inf, 1e-40, 1e39)
    ],
    *[({"shift": shift}, f"shift={shift} is out of range; legal values: 0 to 2") for shift in (-1, 3, 100, 1.0, True)],
    ({"variant": "cut"}, "unknown variant 'cut'; legal presets: cce, "),
    ({"variant": "cce,colour=red"}, "unknown flag 'colour=red'.*legal flags: filter_e"),
    ({"variant": "cce,order=up"}, "order=up is unknown; legal values: none, mean_logit, mean_prob"),
]

TYPES: list[tuple[dict[str, Any], str]] = [
    ({"input": [[0.0] * D]}, "input is a list, expected a torch.Tensor"),
    ({"linear_weight": None}, "linear_weight is a NoneType, expected"),
    ({"target": 3}, "target is a int, expected"),
    ({"input": zeros(2, 3, D, dtype=torch.float32)}, "input is torch.float32 and linear_weight torch.bfloat16"),
    *[
        (
            {"input": zeros(2, 3, D, dtype=dtype), "linear_weight": zeros(V, D, dtype=dtype)},
            f"{dtype}.*same dtype out of torch.bfloat16, torch.float16, torch.float32",
        )
        for dtype in (torch.float64, torch.int32, torch.complex64)
    ],
    *[
        ({"target": torch.zeros(2, 3, dtype=dtype, device=DEVICE)}, f"target is {dtype}, expected class indices")
        for dtype in (torch.float32, torch.bool, torch.bfloat16)
    ],
    ({"linear_bias": zeros(V, dtype=torch.float16)}, "linear_bias is torch.float16, expected torch.bfloat16 or"),
    ({"linear_bias": zeros(V, dtype=torch.float64)}, "linear_bias is torch.float64, expected torch.bfloat16 or"),
    ({"ignore_index": 1.0}, "ignore_index=1.0 is not an int"),
    ({"ignore_index": True}, "ignore_index=True is not an int"),
    ({"ignore_index": None}, "ignore_index=None is not an int"),
    *[({name: None}, f"does not support {name}= yet") for name in ("weight", "label_smoothing", "options")],
    ({"lable_smoothing": 0.1}, "unexpected keyword 'lable_smoothing'"),
    ({"softcap": "30"}, "softcap|real number"),
    ({"variant": 3}, "variant"),
    ({"schedule": "fast"}, "schedule"),
]


@pytest.mark.parametrize(("change", "said"), SHAPES + OPTIONS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_value_is_a_value_error(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        linear_cross_entropy(**good(**change))


@pytest.mark.parametrize(("change", "said"), TYPES, ids=lambda x: x if isinstance(x, str) else "")
def test_a_wrong_type_is_a_type_error(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        linear_cross_entropy(**good(**change))


def test_shift_needs_a_sequence() -> None:
    call = good(input=zeros(D), target=torch.tensor(0, device=DEVICE), shift=1)
    with pytest.raises(ValueError, match="shift=1 is out of range"):
        linear_cross_entropy(**call)


def test_a_device_out_of_reach_says_how_to_reach_it() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        require_device(torch.device("meta"))
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        require_device(torch.device("cuda" if IS_INTERPRETED else "cpu"))
    everything: dict[str, Any] = {name: x.to("meta") for name, x in good().items() if isinstance(x, torch.Tensor)}
    with pytest.raises(RuntimeError, match="meta"):
        linear_cross_entropy(**everything)
