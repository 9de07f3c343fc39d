"""The pytest side of ccelab, registered as an entry point: loaded in every pytest run where ccelab is installed.

Hence nothing here imports torch, Triton or what imports them at module level, and nothing changes how the tests
of other projects run: options are added only to runs that concern ccelab, since other projects have a ``--device`` of
their own. Hypothesis profiles are registered only; ``--hypothesis-profile NAME`` chooses one.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .adapters import NAMED

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
    "exhaustive": {"max_examples": 500, "deadline": None},
}

OPTIONS: dict[str, dict[str, object]] = {
    "--variant": {
        "action": "append",
        "metavar": "NAME",
        "help": "judge this variant: a preset, a flag string, all (presets) or every (all combinations); repeatable",
    },
    "--subject": {
        "default": "ours",
        "metavar": "NAME",
        "help": f"who is judged: ours, {', '.join(NAMED)}, or package.module:function",
    },
    "--without": {
        "action": "append",
        "metavar": "PROMISE",
        "help": "judge as if the subject did not promise this, so that one defect does not hide the next; repeatable",
    },
    "--device": {"choices": ("auto", "cpu", "cuda"), "default": "auto", "help": "auto takes a GPU where there is one"},
    "--dtype": {
        "action": "append",
        "choices": ("bfloat16", "float16", "float32"),
        "help": "judge in this dtype alone; repeatable",
    },
    "--replay": {
        "metavar": "FILE",
        "type": Path,
        "help": "judge the one example that a failure saved, or those in a law report",
    },
    "--law-report": {"metavar": "FILE", "type": Path, "help": "write the summary of the laws as JSON"},
}
FAILURES = Path(".ccelab/failures")
CONTROLLER = "CCELAB_CONTROLLER"  # the process that started the workers of a run of ours


def concerns_ccelab() -> bool:
    """Whether this run is one of ccelab's: by its arguments, or because it starts in its checkout."""
    if "PYTEST_XDIST_WORKER" in os.environ and os.environ.get(CONTROLLER) == str(os.getppid()):
        return True  # a worker of xdist, which has no arguments
    words = sys.argv[1:]
    return (
        any("ccelab" in word for word in words)
        or any(word.partition("=")[0] in ("--variant", "--subject") for word in words)
        or (Path("properties/law.py").is_file() and Path("kernels/variant.py").is_file())
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    if concerns_ccelab():
        os.environ[CONTROLLER] = str(os.getpid())
        group = parser.getgroup("ccelab", "laws of the linear cross-entropy")
        for name, how in OPTIONS.items():
            group.addoption(name, **how)


def option(config: pytest.Config, name: str) -> object:
    """The value of one of `OPTIONS`. Workers of xdist get values without the options themselves."""
    return getattr(config.option, name.lstrip("-").replace("-", "_"), OPTIONS[name].get("default"))


def is_given(config: pytest.Config, name: str) -> bool:
    """Whether the command line has one of `OPTIONS`."""
    return option(config, name) != OPTIONS[name].get("default")


@pytest.hookimpl(tryfirst=True)  # before hypothesis' own pytest_configure looks the profile up
def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")
    if importlib.util.find_spec("hypothesis") is not None:
        register_profiles()
    if concerns_ccelab():
        profile = config.getoption("--hypothesis-profile", None)
        if profile is not None and profile not in (*PROFILES, "default", "ci"):
            raise pytest.UsageError(f"no hypothesis profile {profile!r}: legal are {', '.join(PROFILES)}")
        # Prepending a test's folder to the path would let our `kernels` shadow Hugging Face's.
        config.option.importmode = "importlib"
    if dtypes := option(config, "--dtype"):
        os.environ["CCELAB_DTYPES"] = ",".join(dtypes)  # type: ignore[arg-type]  # for the workers of xdist too
    if option(config, "--device") == "cpu":  # before anything imports torch or Triton
        os.environ.update(CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1")
    if option(config, "--device") == "cuda" and (reason := why_no_gpu()):
        raise pytest.UsageError(f"--device cuda: {reason}")
    path = option(config, "--law-report")
    chosen = [name for name in ("--variant", "--subject", "--without", "--replay") if is_given(config, name)]
    if (path or chosen) and not hasattr(config, "workerinput"):  # a worker of xdist sees a part of it
        from .law_report import LawReport
        from .suite import described

        try:  # now, and not once for every file of laws
            judged = described(config)
        except (OSError, ValueError) as error:
            raise pytest.UsageError(str(error)) from None
        if isinstance(path, Path):
            config.pluginmanager.register(LawReport(path, judged))


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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    law = getattr(metafunc.function, "law", None)
    if law is not None:
        from .suite import benches

        try:
            parameters = benches(law, metafunc.config, FAILURES)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        metafunc.parametrize("bench", parameters)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A law on the one example that is asked for."""
    callspec = getattr(pyfuncitem, "callspec", None)
    bench: Any = callspec and callspec.params.get("bench")
    if bench is None or bench.replay is None:
        return None
    pyfuncitem.function.law.replay(bench, bench.replay)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a law's bench saw travels with the test's report, also from a worker of xdist."""
    bench = getattr(item, "callspec", None) and item.callspec.params.get("bench")  # type: ignore[attr-defined]
    try:
        yield
        if bench is not None:
            item.function.law.check_kinds(bench)  # type: ignore[attr-defined]
    finally:
        if bench is not None:
            item.user_properties.append(
                (
                    "seen",
                    {
                        "examples": bench.examples,
                        "refused": bench.refused,
                        "closest": bench.closest,
                        "tiles": bench.tiles,
                        "failure": bench.failure,
                    },
                )
            )
            end_where_the_gpu_is_lost(item.nodeid)


def end_where_the_gpu_is_lost(test: str) -> None:
    """After a fault in a kernel CUDA refuses every call of the process: the laws after it would be found broken, too.

    A worker of xdist ends, and another takes its place.

    Raises:
        pytest.Exit: there are no workers.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        reason = f"{test} has cost this process its GPU: {error}"
        if "PYTEST_XDIST_WORKER" in os.environ:
            print(reason, file=sys.__stderr__, flush=True)
            os._exit(1)
        pytest.exit(f"{reason}\nThe other laws can be tried with --deselect {test}", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        law = getattr(getattr(item, "function", None), "law", None)
        if law is not None:
            bench = item.callspec.params["bench"]  # type: ignore[attr-defined]
            item.user_properties.append(("law", {"name": law.name, "variant": str(bench.variant)}))


def pytest_report_header(config: pytest.Config) -> list[str]:
    if not concerns_ccelab():
        return []
    from .suite import header

    return header(config)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [r for state in ("passed", "failed", "skipped") for r in terminalreporter.stats.get(state, [])]
    if not any(dict(report.user_properties).get("law") for report in reports):
        return
    from .suite import summary, tally

    rows = tally(reports)
    terminalreporter.section("laws")
    for line in summary(rows):
        terminalreporter.write_line(line)
