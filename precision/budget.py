"""`budget`: how far a variant's outputs may be from the truth on a problem, per output element.

A-priori bounds for the arithmetic of the kernels, evaluated on the exact values of the oracle. Rigorous to the order
they are written in: no constant is fitted. Two terms need more than a norm. Storage accumulation follows the exact
partial sums, since ``(T - 1) u sum |v|`` would pass a zero gradient. The filter's term is the dropped sum itself, by
the oracle's own decisions, plus the tiles too close to eps to call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccelab.kernels import Schedule, Statistics, Tiles, Variant, accumulate
from ccelab.reference import Problem, Solution, formula
from ccelab.reference.double import ResidualChunk, Stream
from ccelab.reference.formula import FLOAT64, Rows

from .accumulation import Accumulation
from .formats import Format, U
from .logit_error import LARGEST_FP32, SOFTCAP_ROUNDINGS, logit_error, product_roundings, steepest_cap

DOUBLE_U = 2.0**-53
HEADROOM: float = accumulate.HEADROOM.value  # dE is summed at this over the scale of its row
FP32_TINY = 2.0**-149
EXP_UNDERFLOW = 2.0**-126  # a result under the normal range may be flushed


@dataclass(frozen=True, eq=False, kw_only=True)
class Budget:
    """The bound of every output element, and what the filters must have done."""

    bound: Solution
    tiles_live_e: tuple[int, int]  # at least, at most this many tiles of dE are kept
    tiles_live_c: tuple[int, int]

    def miscounted(self, stats: Statistics) -> str | None:
        """What is wrong with the numbers of tiles that a call kept, or None; what was not counted is not wrong."""
        for name, kept, (least, most) in (
            ("dE", stats.tiles_kept_e, self.tiles_live_e),
            ("dC", stats.tiles_kept_c, self.tiles_live_c),
        ):
            if kept is not None and not least <= kept <= most:
                return f"{kept} tiles of {name} were kept; {least} to {most} are live"
        return None


def exp_roundings(x: Tensor) -> Tensor:
    """Unit roundoffs of relative error of exp(-x), x >= 0: the GPU multiplies by log2(e) and calls ex2.approx.

    2 + 1.173 |x| ulp (CUDA C++ Programming Guide, __expf); numpy's exp in the interpreter stays within 2.
    """
    return 4 + 2 * 1.173 * x


@dataclass(frozen=True, eq=False)
class ForwardError:
    """Per row, (N, 1): bounds that the backward pass needs too."""

    lse_from_logits: Tensor  # of lse and of the loss, through perturbed logits
    log_sum: Tensor  # of the computed log sum, given the computed logits
    target_logit: Tensor  # of the logit at the target


def budget(problem: Problem, variant: Variant, schedule: Schedule, *, order: Tensor | None = None) -> Budget:
    """Bounds for `variant` under `schedule`.

    `order` (V,) is the vocabulary order that the kernel took (`Statistics.order`); None is the oracle's own. The
    problem's rows are numbered as the kernel numbers them: which rows share a tile matters to the filter.
    """
    if variant.order == "mean_logit" and order is None:
        order = mean_logit_order(problem)
    if variant.order == "none":
        order = None
    fmt = Format.of(problem.embeddings.dtype)
    stream = Stream(problem, _chunk(problem, schedule))
    rows = stream.rows()
    forward = stream.forward(rows)
    error = _forward_error(stream, rows, variant, schedule, fmt)
    lse, m = forward.lse[:, None], forward.max_logit[:, None]
    log_s = lse - m
    lse_bound = error.lse_from_logits + error.log_sum + U * (lse.abs() + error.log_sum)
    gap = (m - forward.target_logit[:, None]).abs()
    loss_bound = error.lse_from_logits + error.target_logit + error.log_sum + U * forward.loss[:, None].abs()
    loss_bound = loss_bound + U * (gap if variant.target == "fused" else lse.abs())
    loss_bound = torch.where(stream.valid, loss_bound * (1 + 4 * U), 0.0)[:, 0]
    reduced = _reduced_bound(stream, forward.loss, loss_bound)
    gradients = _GradientBudget(stream, rows, variant, schedule, fmt, error, log_s)
    gradients.run(order)
    return Budget(
        bound=Solution(
            loss=loss_bound,
            reduced=reduced,
            lse=torch.where(stream.valid, lse_bound * (1 + 4 * U), 0.0)[:, 0],
            d_embeddings=gradients.e.result() + gradients.dropped_e.abs(),
            d_classifier=gradients.d_classifier,
            d_bias=gradients.d_bias,
        ),
        tiles_live_e=gradients.live_e,
        tiles_live_c=gradients.live_c,
    )


def mean_logit_order(problem: Problem) -> Tensor:
    """(V,) vocabulary ids by descending mean logit in float64, ties in the natural order."""
    stream = Stream(problem)
    mean = stream.embeddings.sum(0) / max(int(problem.valid.sum()), 1)
    logit = torch.cat([stream.classifier(columns) @ mean for columns in stream.columns()])
    if problem.bias is not None:
        logit += problem.bias.double()
    return torch.sort(logit, descending=True, stable=True).indices


def _chunk(problem: Problem, schedule: Schedule) -> int:
    """Columns per chunk: whole tiles of both passes, and float64 temporaries of half a gigabyte."""
    step = max(schedule.forward.block_v, schedule.backward.block_v)
    return max(1, 2**26 // max(problem.shape[0], 1) // step) * step


def _forward_error(stream: Stream, rows: Rows, variant: Variant, schedule: Schedule, fmt: Format) -> ForwardError:
    """The forward pass: perturbed logits, exponentials, sums of a tile, rescaling, joining the splits."""
    tiles = schedule.forward
    maximum = rows.maximum
    perturbation, exponentials, at_target, widest = (torch.zeros_like(maximum) for _ in range(4))
    tile_max, lse = [], formula.lse(FLOAT64, rows)
    for part in stream.residuals(rows):
        error = logit_error(stream, part.columns, part.raw, part.logits, tiles, fmt).capped
        perturbation += _moved_softmax(part, lse, error).sum(1, keepdim=True)
        distance = (maximum - part.logits).clamp(max=torch.finfo(torch.float32).max)
        # Every piece of the way from z to the final maximum is rounded, scaled by log2(e), and exponentiated.
        exponentials += (part.softmax * (U * distance + 2 * 1.173 * U * distance)).sum(1, keepdim=True)
        at_target += torch.where(part.columns == stream.targets, error, 0.0).sum(1, keepdim=True)
        widest = torch.maximum(widest, error.amax(1, keepdim=True))
        padded = torch.nn.functional.pad(part.logits, (0, -part.logits.shape[1] % tiles.block_v), value=-torch.inf)
        tile_max.append(padded.unflatten(1, (-1, tiles.block_v)).amax(2))
    maxima = torch.cat(tile_max, 1)
    per_split = -(-maxima.shape[1] // schedule.splits)
    splits = -(-maxima.shape[1] // per_split)
    rescalings = torch.zeros_like(maximum)
    for split in maxima.split(per_split, 1):
        running = split.cummax(1).values
        changes = (split[:, 1:] > running[:, :-1] - 2 * widest).sum(1, keepdim=True)
        rescalings = torch.maximum(rescalings, changes.double())
    relative = exponentials + U * (5 * (rescalings + 2) + tiles.block_v + per_split + splits)
    # log of a sum within `relative`; the logarithm itself is within 2 ulp.
    log_s = torch.log1p(rows.rest)
    log_sum = -torch.log1p(-relative.clamp(max=0.5)) + 4 * U * log_s.abs()
    if variant.target == "indexed":
        at_target = _indexed_error(stream, rows, tiles)
    # No more than the largest error of a logit either: the lse has slope 1 at most.
    return ForwardError(torch.minimum(torch.log1p(perturbation), widest), log_sum, at_target)


def _moved_softmax(part: ResidualChunk, lse: Tensor, error: Tensor) -> Tensor:
    """(N, n) the most that exp(z - lse) can grow when z grows by `error`; 0 for masked classes."""
    # Written without p for large errors: p may be 0 in float64 where the moved one is not.
    log_p = torch.where(part.softmax > 0, torch.log(part.softmax), part.logits - lse)
    grown = torch.where(error < 1, part.softmax * torch.expm1(error), torch.exp(log_p + error))
    return torch.where(part.logits == -torch.inf, 0.0, grown)


def _indexed_error(stream: Stream, rows: Rows, tiles: Tiles) -> Tensor:
    """(N, 1) Algorithm 1's dot product: per lane one chain over the D steps, then a tree over the lanes."""
    problem, d = stream.problem, stream.embeddings.shape[1]
    classifier = problem.classifier[stream.targets[:, 0]].double()
    absolute = (stream.embeddings * classifier).abs().sum(1, keepdim=True)
    error = (-(-d // tiles.block_d) + tiles.block_d + 1) * U * absolute
    if problem.bias is not None:
        error += U * ((stream.embeddings * classifier).sum(1, keepdim=True).abs() + absolute + error)
    if problem.softcap is not None:
        error += SOFTCAP_ROUNDINGS * U * rows.target_logit.abs()
    return error


def _reduced_bound(stream: Stream, loss: Tensor, bound: Tensor) -> Tensor:
    if stream.problem.reduction == "none":
        return bound
    return stream.reduce(bound) * (1 + 4 * U) + 2 * U * stream.reduce(loss).abs()


class _GradientBudget:
    """Streams over the vocabulary in the kernel's order; dE's recursion runs along tiles of V, dC's along N."""

    def __init__(
        self,
        stream: Stream,
        rows: Rows,
        variant: Variant,
        schedule: Schedule,
        fmt: Format,
        error: ForwardError,
        log_s: Tensor,
    ) -> None:
        self.stream, self.rows, self.variant, self.fmt = stream, rows, variant, fmt
        self.tiles, self.error, self.log_s = schedule.backward, error, log_s
        problem = stream.problem
        eps = torch.finfo(problem.embeddings.dtype).eps / 32 if variant.eps is None else variant.eps
        self.size = stream.d_loss.abs() + stream.d_lse.abs()  # (N, 1) the row's own upstream scale
        # The oracle's own rounding, as a share of dv, which holds at least u sum |g||C|.
        self.oracle_share = DOUBLE_U / U * (sum(problem.shape) + 64)
        self.threshold = torch.where(self.size > 0, eps * self.size, 0.0)
        # Upstream gradients and their sum reach the kernel rounded to fp32: near a power of two, the larger one.
        self.scale = torch.where(self.size > 0, 2.0 ** torch.floor(torch.log2(self.size * (1 + 8 * U))), 0.0)
        self.e = Accumulation(variant.accumulate, fmt, stream.embeddings, self.scale / HEADROOM)
        self.dropped_e = torch.zeros_like(stream.embeddings)
        self.d_classifier = torch.zeros(problem.classifier.shape, dtype=torch.float64, device=self.size.device)
        self.d_bias = None if problem.bias is None else torch.zeros_like(problem.bias, dtype=torch.float64)
        self.live_e = self.live_c = (0, 0)

    def run(self, order: Tensor | None) -> None:
        for part in self.stream.residuals(self.rows, order):
            dg = self._residual_error(part)
            surely, maybe = self._live_tiles(part.residual, dg)
            self._walk_vocabulary(part, dg, surely, maybe)
            self._walk_rows(part, dg, surely, maybe)
            if self.d_bias is not None:
                self.d_bias[part.columns] = self._bias_bound(part.residual, dg)

    def _residual_error(self, part: ResidualChunk) -> Tensor:
        """(N, n) bound on the fp32 residual, before its cast."""
        stream, rows, error = self.stream, self.rows, self.error
        shifted = (rows.maximum - part.logits).abs()
        exponent = (shifted + self.log_s).abs()
        logit = logit_error(stream, part.columns, part.raw, part.logits, self.tiles, self.fmt)
        moved = logit.capped + error.lse_from_logits + error.log_sum + U * (shifted + exponent)
        # Not capped at 1: a logit of 1e9 recomputed in other tiles may lie far above the maximum that forward found.
        lse = rows.maximum + self.log_s
        dp = _moved_softmax(part, lse, moved + U * exp_roundings(exponent)) + EXP_UNDERFLOW
        onehot = (part.columns == stream.targets).double()
        coefficient = (part.softmax - onehot).abs() * stream.d_loss.abs() + part.softmax * stream.d_lse.abs()
        # upstream divided by N and cast (2), p - q, two products, a sum
        dg = dp * self.size + 5 * U * (coefficient + dp * self.size)
        if stream.problem.softcap is not None:
            softcap = stream.problem.softcap
            y, away = part.raw.abs() / softcap, logit.raw / softcap
            slope = steepest_cap(part.raw, logit.raw, softcap)
            # |d sech^2 / dy| = 2 |tanh| sech^2; and a slope lies in [0, slope] whatever the error
            change = torch.where(away < 0.5, 2 * slope * away, slope)
            rounded = torch.where(slope == 0, 0.0, slope * U * (8 + 2 * exp_roundings(2 * y)))
            flushed = 4 * EXP_UNDERFLOW  # of the slope, 4 q / (1 + q)^2 with q an exponential
            dg = slope * dg + (coefficient + dg) * (rounded + change) + flushed * (self.size + dg)
        return torch.where(stream.valid, dg.clamp(max=1e300), 0.0)  # an infinity times a 0 of E or C would be NaN

    def _live_tiles(self, g: Tensor, dg: Tensor) -> tuple[Tensor, Tensor]:
        """(row blocks, vocabulary tiles) bool: tiles surely live, and tiles that may be."""
        low, high = self.threshold * (1 - 4 * U), self.threshold * (1 + 4 * U)
        surely = self._any_in_tile(((g.abs() - dg) > high) | ~g.isfinite())
        maybe = self._any_in_tile(((g.abs() + dg) > low) | ~g.isfinite())
        return surely, maybe

    def _any_in_tile(self, mask: Tensor) -> Tensor:
        n, v = self.tiles.block_n, self.tiles.block_v
        padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % v, 0, -mask.shape[0] % n))
        tiles: Tensor = padded.unflatten(1, (-1, v)).any(2).unflatten(0, (-1, n)).any(1)
        return tiles

    def _cast_error(self, g: Tensor, dg: Tensor, scale: Tensor) -> Tensor:
        """The residual's error after its cast at a power-of-two scale, and its share of the tile product's "
        "rounding."""
        if self.fmt.is_fp32:  # a product with a power of two, which may be subnormal
            return dg + FP32_TINY
        return dg + self.fmt.u * (g.abs() + dg) + self.fmt.tiny / 2 * scale

    def _walk_vocabulary(self, part: ResidualChunk, dg: Tensor, surely: Tensor, maybe: Tensor) -> None:
        block = self.tiles.block_v
        weight = self._cast_error(part.residual, dg, self.scale)
        weight = weight + product_roundings(block) * U * part.residual.abs()
        weight = torch.where(self.stream.valid, weight, 0.0)
        classifier = self.stream.classifier(part.columns)
        if not self.variant.filter_e:
            surely = maybe = torch.ones_like(surely)
        self.live_e = (self.live_e[0] + int(surely.sum()), self.live_e[1] + int(maybe.sum()))
        for tile in range(surely.shape[1]):
            span = slice(tile * block, (tile + 1) * block)
            v = part.residual[:, span] @ classifier[span]
            dv = weight[:, span] @ classifier[span].abs() + len(part.columns) * DOUBLE_U * v.abs()
            dv += (block + 1) * FP32_TINY * self.scale / HEADROOM  # sums of subnormal products
            live, unsure = self._rows_of(surely[:, tile]), self._rows_of(maybe[:, tile] & ~surely[:, tile])
            self.dropped_e += torch.where(live | unsure, 0.0, v)
            self.e.error += torch.where(live | unsure, 0.0, dv * self.oracle_share)
            self.e.add(
                torch.where(live | unsure, v, 0.0), torch.where(live, dv, torch.where(unsure, dv + v.abs(), 0.0))
            )

    def _rows_of(self, blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(self.tiles.block_n)[: len(self.size), None]

    def _walk_rows(self, part: ResidualChunk, dg: Tensor, surely: Tensor, maybe: Tensor) -> None:
        embeddings, columns = self.stream.embeddings, part.columns
        if not self.variant.filter_c:
            surely = maybe = torch.ones_like(surely)
        self.live_c = (self.live_c[0] + int(surely.sum()), self.live_c[1] + int(maybe.sum()))
        accumulation = Accumulation(
            self.variant.accumulate, self.fmt, embeddings.new_zeros((len(columns), embeddings.shape[1]))
        )
        dropped = torch.zeros_like(accumulation.sum)
        for block in range(surely.shape[0]):
            span = slice(block * self.tiles.block_n, (block + 1) * self.tiles.block_n)
            g, e = part.residual[span], embeddings[span]
            weight = self._cast_error(g, dg[span], self.scale[span].amax())
            weight = torch.where(self.stream.valid[span], weight, 0.0)
            weight = weight + product_roundings(self.tiles.block_n) * U * g.abs()
            v = g.T @ e
            dv = weight.T @ e.abs() + len(embeddings) * DOUBLE_U * v.abs()
            dv += (
                (self.tiles.block_n + 1)
                * FP32_TINY
                * (1.0 if self.fmt.is_fp32 else self.scale[span].amax().clamp(min=1))
            )
            live, unsure = self._columns_of(surely[block], v), self._columns_of(maybe[block] & ~surely[block], v)
            dropped += torch.where(live | unsure, 0.0, v)
            accumulation.error += torch.where(live | unsure, 0.0, dv * self.oracle_share)
            accumulation.add(
                torch.where(live | unsure, v, 0.0), torch.where(live, dv, torch.where(unsure, dv + v.abs(), 0.0))
            )
        self.d_classifier[columns] = accumulation.result() + dropped.abs()

    def _columns_of(self, tiles: Tensor, like: Tensor) -> Tensor:
        return tiles.repeat_interleave(self.tiles.block_v)[: len(like), None]

    def _bias_bound(self, g: Tensor, dg: Tensor) -> Tensor:
        bias = self.stream.problem.bias
        assert bias is not None
        storage = Format.of(bias.dtype)
        additions = self.tiles.block_n + -(-len(g) // self.tiles.block_n)
        size = (g.abs() + dg).sum(0)
        error = dg.sum(0) + additions * U * size + 2 * len(g) * FP32_TINY
        bound = error + storage.u * (g.sum(0).abs() + error) + storage.tiny / 2
        return torch.where((size < LARGEST_FP32) & (g.sum(0).abs() + error < storage.largest), bound, torch.inf)
