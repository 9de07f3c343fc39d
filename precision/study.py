"""Studies too heavy for every report, committed as JSON: `python -m ccelab.precision.study [NAME ...]` renews them.

A sweep goes on with what its file holds, so that an interruption loses one point; delete the file to measure anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ccelab.kernels import PRESETS, Variant

from .axes import Axis
from .files import write_json
from .sweep import Settings, sweep

STUDIES = Path(__file__).parent / "studies"
SCHEMES = ("storage", "kahan", "hilo", "fp32")


def filtering(path: Path, device: str) -> None:
    """What eps costs, sorted and not, with sums in fp32 that add next to nothing of their own; and in bf16."""
    variants = tuple(f"{name},increment=tile" for name in ("cce,accumulate=fp32", "cce-no-sort,accumulate=fp32", "cce"))
    settings = Settings(
        head="planted:gemma-alpaca", variants=variants, tokens=256, vocabulary=8192, hidden=64, device=device
    )
    sweep(settings, [Axis.parse("eps=2^-8:2^-15")], path, progress=_say)


def tiles(path: Path, device: str) -> None:
    """What the number of increments costs each accumulator: one head, cut into ever smaller tiles."""
    settings = Settings(
        head="planted:smollm2-alpaca",
        variants=tuple(f"cce-no-filter,accumulate={scheme},increment=tile" for scheme in SCHEMES),
        tokens=128,
        vocabulary=8192,
        hidden=64,
        device=device,
    )
    sweep(settings, [Axis.parse("block=512:32")], path, progress=_say)


def adders(path: Path, device: str) -> None:
    """Error of a dot product against D on each model of an adder."""
    from .adder_study import adder_study
    from .emulation.adders import ADDERS, dot

    write_json(adder_study(dot, list(ADDERS)), path)


def adder(path: Path, device: str) -> None:
    """Whether this GPU adds as the model of its adder does."""
    import torch

    from .adder_check import adder_check

    write_json(adder_check(torch.device(device), progress=_say), path)


def real_filtering(path: Path, device: str) -> None:
    """What eps costs every preset that filters on the real head, which must be in the cache (or made, with
    transformers)."""
    filtering = tuple(name for name, preset in PRESETS.items() if preset.filter_e or preset.filter_c)
    settings = Settings(head="real", variants=filtering, tokens=2048, device=device)
    sweep(settings, [Axis.parse("eps=2^-8:2^-18")], path, progress=_say)


def extremes(path: Path, device: str) -> None:
    """A flat and a peaked head."""
    settings = Settings(head="gaussian", variants=tuple(PRESETS), tokens=1024, device=device)
    sweep(settings, [Axis.parse("scale=0.125,8")], path, progress=_say)


def schedules(path: Path, device: str) -> None:
    """What tiles and splits change in the answers of every preset: on a Gaussian head of the usual spread, where sums
    decide, and on one spread four times as widely, where small tiles have something for the filter to drop."""
    from ccelab.reference.heads.gaussian import gaussian

    from .schedule_study import schedule_study

    drawn = [gaussian(128, 2048, 64, spread=spread, device=device) for spread in (6.7, 27.0)]
    write_json(schedule_study(drawn, tile_by_tile(), progress=_say), path)


def tile_by_tile() -> list[Variant]:
    """The presets, with increments of single tiles: groups would hide most of what tiles do to sums. Where those are in
    fp32, nothing is to be seen either way."""
    return [v if v.accumulate == "fp32" else replace(v, increment="tile") for v in PRESETS.values()]


def granularity(path: Path, device: str) -> None:
    """What is lost by entries, by words of a block of rows, and by segments, at one threshold and at one error."""
    from ccelab.reference.heads.resolve import resolve

    from .granularity_study import granularity_study

    head = resolve("planted:gemma-alpaca", tokens=512, vocabulary=256000, hidden=256)
    write_json(granularity_study(head, progress=_say), path)


def every_input(path: Path, device: str) -> None:
    """The elementwise pieces on all numbers of bf16, on this device."""
    import torch

    from .exhaustive import exhaustive

    write_json(exhaustive(torch.device(device)), path)


def studies(device: str) -> dict[str, Callable[[], None]]:
    """Names of files in `STUDIES`, without their ending, and what writes them."""
    made: dict[str, Callable[[Path, str], None]] = {
        "filtering": filtering,
        "tiles": tiles,
        "adders": adders,
        f"exhaustive-{device}": every_input,
    }
    if device == "cpu":
        made["granularity"] = granularity  # in float64
        made["schedules"] = schedules  # in the interpreter, where the programs of a launch can be turned round
    else:
        made |= {"adder-cuda": adder, "filtering-cuda": real_filtering, "extremes-cuda": extremes}
    return {name: partial(make, STUDIES / f"{name}.json", device) for name, make in made.items()}


def _say(done: int, of: int, step: str) -> None:
    print(f"{done} of {of}: {step}", file=sys.stderr, flush=True)


def main(names: list[str]) -> None:
    """Makes the named studies, or all."""
    import torch

    known = studies("cuda" if torch.cuda.is_available() else "cpu")
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"unknown studies {', '.join(unknown)}; legal: {', '.join(known)}")
    for name in names or known:
        try:
            known[name]()
        except ValueError as error:
            print(f"{name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
