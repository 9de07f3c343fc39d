"""Where the interpreter is not a GPU, and where no model here says what a GPU does."""

from __future__ import annotations

import torch
from torch import Tensor

from ccelab.kernels import default_schedule

from ..adder_check import AdderCheck
from ..emulation import HOPPER, INTERPRETER
from ..exhaustive import ExhaustiveTable, Function
from ..study import STUDIES
from .deviation import Deviation
from .triton_bf16 import cast

TINY = 2.0**-126


def _positive(rows: int, columns: int, seed: int) -> Tensor:
    """bf16 numbers in [1, 2), held in fp32."""
    generator = torch.Generator().manual_seed(seed)
    return (1 + torch.rand(rows, columns, generator=generator)).bfloat16().float()


def _adder() -> AdderCheck:
    return AdderCheck.read(STUDIES / "adder-cuda.json")


def _on_the_gpu(name: str) -> Function:
    table = ExhaustiveTable.read(STUDIES / "exhaustive-cuda.json")
    return next(function for function in table.functions if function.name == name)


def _number(pattern: str) -> Tensor:
    """The fp32 number (1,) of a pattern in hex, or the bf16 number of a shorter one."""
    bits = int(pattern, 16)
    return torch.tensor([bits - 2**32 if bits >= 2**31 else bits], dtype=torch.int32).view(torch.float32)


def triton_truncates_bf16() -> bool:
    """Numbers of which half lie nearer to the next bf16 number away from 0."""
    x = torch.linspace(1.0, 2.0, 1024)
    toward_zero = (x.view(torch.int32) >> 16 << 16).view(torch.float32).bfloat16()
    return torch.equal(cast(x), toward_zero) and not torch.equal(toward_zero, x.bfloat16())


def products_round_to_nearest() -> bool:
    """Dots of 1024 positive terms: rounded in the interpreter, below that or equal by the model that the GPU confirmed;
    and in the committed check the GPU's are not all rounded to nearest either."""
    a, b = _positive(64, 1024, 0), _positive(64, 1024, 1)
    nearest = (a.double() @ b.double().T).float()
    interpreted, modelled = (machine.dot(a, b.T, None, torch.bfloat16) for machine in (INTERPRETER, HOPPER))
    below = bool((modelled <= interpreted).all()) and not torch.equal(modelled, interpreted)
    confirmed = [row for row in _adder().rows if row.kind == "positive"]
    return torch.equal(interpreted, nearest) and below and all(row.unlike_nearest for row in confirmed)


def small_exponentials_are_kept() -> bool:
    """2^-130, and on the GPU a slope of the softcap that lies below 2^-124."""
    x = torch.tensor([-130.0])
    flushed = _on_the_gpu("slope of the softcap")
    on_the_gpu = float(_number(flushed.worst_got)) == 0 < float.fromhex(flushed.worst_truth)
    return float(HOPPER.exp2(x)) == 0 < float(INTERPRETER.exp2(x)) < TINY and on_the_gpu


def logarithms_are_numpys() -> bool:
    x = _positive(1, 4096, 0)[0] * 3
    return not torch.equal(INTERPRETER.log(x), HOPPER.log(x))


def columns_come_1024_at_a_time() -> bool:
    """At D = 576: the GPU's schedule has steps of 64."""
    schedule = default_schedule(torch.bfloat16, 4096, 576)
    return schedule.forward.block_d > 64 < schedule.backward.block_d


def the_gpus_exponential_has_no_model() -> bool:
    """At the worst input of the committed table."""
    worst = _on_the_gpu("exp")
    return float(HOPPER.exp(_number(worst.worst_input))) != float(_number(worst.worst_got))


def no_a100_was_asked() -> bool:
    checks = (AdderCheck.read(path) for path in STUDIES.glob("adder-*.json"))
    return not any("A100" in check.provenance.device for check in checks)


def tiny_dots_differ_from_the_model() -> bool:
    tiny = [row for row in _adder().rows if (row.dtype, row.kind) == ("bfloat16", "subnormal")]
    return any(count for row in tiny for count in row.unlike_model.values())


def fp32_products_are_torchs() -> bool:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((32, 64), (64, 32)))
    return torch.equal(HOPPER.dot(a, b, None, torch.float32), a @ b)


MODELS = (
    Deviation(
        name="bf16 in Triton's interpreter",
        truth="A cast from fp32 to bf16 rounds to nearest, ties to even.",
        ours="Triton's interpreter drops the lower 16 bits, and its sums of bf16 numbers are sums of their patterns.",
        reason="No kernel here uses it: casts, sums and products of bf16 go through kernels/emulation.py. Once "
        "Triton's own are right, that file can go.",
        source="kernels/emulation.py; triton-lang/triton #4972 and #11584",
        check=triton_truncates_bf16,
    ),
    Deviation(
        name="Products in the interpreter",
        truth="A tensor core aligns 16 products and the accumulator to the largest exponent, drops the bits below, and "
        "truncates the sum: of positive terms it is low.",
        ours="The interpreter's product of a block is exact but for one rounding to nearest.",
        reason="So no machine's BLAS decides a bit. Errors of logits measured in the interpreter are smaller than a "
        "GPU's, and have no bias.",
        source="kernels/emulation.py; precision/studies/adder-cuda.json",
        check=products_round_to_nearest,
    ),
    Deviation(
        name="Exponentials below 2^-126 in the interpreter",
        truth="ex2.approx.ftz gives 0 for them, and so do the slope of a saturated softcap and a small softmax.",
        ours="The interpreter keeps them as subnormal numbers.",
        reason="They are numpy's. Budgets allow for 0 (EXP_UNDERFLOW).",
        source="kernels/rounding.py, exp; precision/studies/exhaustive-cuda.json, slope of the softcap",
        check=small_exponentials_are_kept,
    ),
    Deviation(
        name="Logarithms in the interpreter",
        truth="A GPU takes libdevice's polynomial in fused multiply-adds.",
        ours="numpy's logarithm, which differs in the last bit of some.",
        reason="The interpreter has no libdevice. The models of GPUs take the polynomial, operation by operation.",
        source="precision/emulation/tensor_core.py, gpu_log",
        check=logarithms_are_numpys,
    ),
    Deviation(
        name="Steps over D in the interpreter",
        truth="The default schedule of 16-bit inputs multiplies 64 columns of E and C at a time.",
        ours="In the interpreter up to 1024, so that partial sums over D are joined elsewhere.",
        reason="Its time goes by operations: 30 s instead of 49 s for N=64, V=49152, D=576. The filter sees the same "
        "tiles.",
        source="kernels/schedule.py, default_schedule",
        check=columns_come_1024_at_a_time,
    ),
    Deviation(
        name="ex2.approx",
        truth="The GPU's exponential is within 2 ulp of 2^x, in bits that no source gives.",
        ours="The models of GPUs put the correctly rounded 2^x there.",
        reason="Nobody has published its table. On the GPU at hand it can be asked (with_own_functions), and then is "
        "measured, not modelled.",
        source="precision/emulation/tensor_core.py; precision/studies/exhaustive-cuda.json, exp",
        check=the_gpus_exponential_has_no_model,
    ),
    Deviation(
        name="The A100's adder",
        truth="What the tensor cores of an A100 give, bit for bit.",
        ours="A published model of its adder (8 products at once, 24 bits) that was compared with no A100 here.",
        reason="None was at hand. python -m ccelab.precision.study adder-cuda makes the comparison.",
        source="precision/emulation/adders.py; Khattak and Mikaitis, arXiv 2512.07004",
        check=no_a100_was_asked,
    ),
    Deviation(
        name="Dots below 2^-126 on an H100",
        truth="What the tensor cores of an H100 give where bf16 operands, products or sums lie below 2^-126.",
        ours="In the committed comparison the model differs in some of them; of all other dots in none.",
        reason="The model was mended since, and the comparison not made again.",
        source="precision/EVIDENCE.md, note 3; precision/studies/adder-cuda.json",
        check=tiny_dots_differ_from_the_model,
    ),
    Deviation(
        name="Order of fp32 products on a GPU",
        truth="fp32 operands are multiplied by fused multiply-adds, in an order that the compiler chooses.",
        ours="The models take torch's fp32 product: the same precision in another order.",
        reason="No tensor core multiplies fp32 here (input_precision is ieee), and the order was not read from the "
        "compiled code.",
        source="precision/emulation/tensor_core.py",
        check=fp32_products_are_torchs,
    ),
)
