"""The pytest side of ccelab, registered as an entry point: loaded in every pytest run where ccelab is installed.

Hence nothing here imports torch, Triton or ccelab's own packages at module level, and nothing changes how the tests
of other projects run. Hypothesis profiles are registered only; ``--hypothesis-profile NAME`` chooses one.
"""

from __future__ import annotations

import importlib.util

import pytest

MARKERS = {
    "gpu": "needs a CUDA device; skipped where there is none",
    "slow": "takes more than about ten seconds; deselect with -m 'not slow'",
    "browser": "opens a written report in a headless browser; skipped where there is none",
}

# `quick` draws the same examples every time: a gate must not depend on the day. No profile has a deadline, since the
# first example of a shape may compile, and Triton's interpreter is slow by design.
PROFILES: dict[str, dict[str, object]] = {
    "quick": {"max_examples": 25, "deadline": None, "derandomize": True},
    "standard": {"max_examples": 200, "deadline": None},
    "exhaustive": {"max_examples": 5000, "deadline": None},
}


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own pytest_configure looks the profile up
def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if importlib.util.find_spec("hypothesis") is not None:
        register_profiles()


def register_profiles() -> None:
    from hypothesis import HealthCheck, settings

    slow_draws = [HealthCheck.too_slow, HealthCheck.data_too_large]
    for name, values in PROFILES.items():
        settings.register_profile(name, suppress_health_check=slow_draws, **values)  # type: ignore[arg-type]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (reason := why_no_gpu()):
        pytest.skip(reason)


def why_no_gpu() -> str | None:
    """None where a CUDA device can be used, otherwise the reason why not."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"needs a CUDA device, and torch {torch.__version__} is built without CUDA"
    return f"needs a CUDA device, and torch {torch.__version__} (CUDA {torch.version.cuda}) finds none"
