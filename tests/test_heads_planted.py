"""Drawn heads behave as the real heads they stand for, are repeatable, and come in any shape."""

from __future__ import annotations

import pytest
import torch

from ccelab.reference.heads.anchors import ANCHORS, Figure
from ccelab.reference.heads.gaussian import gaussian
from ccelab.reference.heads.head import Head
from ccelab.reference.heads.lift import lift
from ccelab.reference.heads.planted import RECIPES, planted, recipe
from ccelab.reference.heads.statistics import ELEMENT, SEGMENTS, TILES, Grain, head_statistics

TOLERANCE = 0.25  # of the anchors' own figures
EPS = 2.0**-12


def ratios(head: Head, figures: list[Figure]) -> dict[Figure, float]:
    """Drawn over real, for each figure; figures of more tokens than the head has are measured on all it has."""
    n = len(head.targets)
    drawn: dict[Figure, float] = {}
    for tokens, eps in {(min(f.tokens, n), f.eps) for f in figures}:
        group = [f for f in figures if (min(f.tokens, n), f.eps) == (tokens, eps)]
        measured = head_statistics(
            head.tokens(tokens),
            eps,
            grains=tuple({f.grain for f in group if f.grain and f.quantity == "live_share"}),
            filters=tuple({f.grain for f in group if f.grain and f.quantity != "live_share"}),
        )
        drawn |= {f: f.of(measured) / f.value for f in group}
    return drawn


def few_documents(figure: Figure) -> bool:
    """Two documents at most: one seed then says as little as one real text does."""
    return figure.tokens <= 256


def check(drawn: dict[Figure, float]) -> None:
    wrong = [
        f"{f.quantity} {f.grain or ''} eps={f.eps:g} N={f.tokens}: {f.value:g} times {ratio:.2f}"
        for f, ratio in drawn.items()
        if abs(ratio - 1) > TOLERANCE
    ]
    assert not wrong, "\n".join(wrong)


def mean_ratios(
    name: str, n: int, d: int | None, seeds: int, figures: list[Figure], device: str = "cpu"
) -> dict[Figure, float]:
    drawn = [ratios(planted(name, n, d=d, seed=seed, device=device), figures) for seed in range(seeds)]
    return {f: sum(each[f] for each in drawn) / seeds for f in figures}


# N, D and seeds; fewer dimensions than the real heads have will do, since figures hardly depend on D.
QUICK = {
    "smollm2-alpaca": (4096, 192, 2),
    "smollm2-web": (4096, 192, 2),
    "gemma-alpaca": (1536, 160, 1),
    "gemma-web": (1024, 160, 1),
}


@pytest.mark.xdist_group("planted")  # one worker at a time holds float32 logits
@pytest.mark.parametrize("name", QUICK)
def test_a_planted_head_has_the_figures_of_its_real_head(name: str) -> None:
    n, d, seeds = QUICK[name]
    check(mean_ratios(name, n, d, seeds, [f for f in ANCHORS[name].figures if f.eps == EPS and not few_documents(f)]))


@pytest.mark.slow
@pytest.mark.xdist_group("planted")
@pytest.mark.parametrize("name", RECIPES)
def test_all_figures_on_the_mean_over_seeds(name: str) -> None:
    device, d = ("cuda", None) if torch.cuda.is_available() else ("cpu", 192)
    figures = list(ANCHORS[name].figures)
    check(mean_ratios(name, max(f.tokens for f in figures), d, 3, figures, device))


@pytest.mark.xdist_group("planted")
def test_filter_errors_of_gemma() -> None:
    figures = [f for f in ANCHORS["gemma-alpaca"].figures if f.eps == EPS and few_documents(f)]
    check(mean_ratios("gemma-alpaca", 256, 192, 2, figures))


@pytest.mark.gpu
def test_the_papers_shape_fits_one_gpu() -> None:
    head = planted("gemma-alpaca", 8192, 256000, 2304, device="cuda")
    check(ratios(head, [f for f in ANCHORS["gemma-alpaca"].figures if f.tokens >= 2048]))
    assert torch.cuda.max_memory_allocated() < 40 * 2**30


def test_one_seed_one_head() -> None:
    one, same, other = (planted("smollm2-web", 70, 3000, 96, seed=s) for s in (3, 3, 4))
    for matrix in ("embeddings", "classifier", "targets"):
        assert torch.equal(getattr(one, matrix), getattr(same, matrix))
        assert not torch.equal(getattr(one, matrix), getattr(other, matrix))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("n", "v", "d"), [(1, 1, 64), (1, 2, 65), (3, 17, 64), (129, 1023, 100), (333, 5001, 257)])
def test_any_shape(name: str, n: int, v: int, d: int) -> None:
    head = planted(name, n, v, d, dtype=torch.float16)
    assert head.shape == (n, v, d)
    assert head.embeddings.dtype == head.classifier.dtype == torch.float16
    assert head.embeddings.isfinite().all()
    assert head.classifier.isfinite().all()
    assert 0 <= int(head.targets.min()) <= int(head.targets.max()) < v


def test_the_vocabulary_interpolates_between_anchors() -> None:
    small, large = (RECIPES[f"{model}-web"] for model in ("smollm2", "gemma"))
    assert recipe("gemma-web", 49152) == recipe("smollm2-web", 1000) == small
    assert recipe("smollm2-web", 262144) == recipe("gemma-web", 10**6) == large
    middle = recipe("gemma-web", round((49152 * 262144) ** 0.5))
    assert middle.tau == pytest.approx((small.tau + large.tau) / 2, rel=1e-4)


def test_hidden_size_matters_little() -> None:
    """The spikes' noise on other logits comes from the contexts, whose number is fixed."""
    segments = Grain(1, 256)
    heads = (planted("smollm2-alpaca", 1024, 8192, d) for d in (256, 1536))
    small, large = (head_statistics(head, grains=(segments,)) for head in heads)
    assert small.live_mean == pytest.approx(large.live_mean, rel=TOLERANCE)
    assert small.rank_probability[1] == pytest.approx(large.rank_probability[1], rel=TOLERANCE)
    assert small.live_share[segments] == pytest.approx(large.live_share[segments], rel=TOLERANCE)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="legal are smollm2-alpaca"):
        planted("llama")
    with pytest.raises(ValueError, match="at least 64"):
        planted("gemma-web", 8, 100, 63)


def test_a_lift_keeps_logits() -> None:
    head = planted("smollm2-web", 64, 2000, 96, dtype=torch.float32)
    lifted = lift(head, 250)
    before, after = (h.embeddings.double() @ h.classifier.double().T for h in (head, lifted))
    # Storage rounds each of the 2 * 250 factors of a logit by at most 2^-24, and float32 sums of 96 terms made them.
    scale = lifted.embeddings.double().norm(dim=1).outer(lifted.classifier.double().norm(dim=1))
    assert ((before - after).abs() <= 2 * (96 + 1) * 2.0**-24 * scale).all()
    assert torch.equal(lifted.targets, head.targets)
    assert not torch.equal(lift(head, 250, seed=1).classifier, lifted.classifier)
    assert lift(head.to(dtype=torch.bfloat16), 96).classifier.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="cannot be lifted to 95"):
        lift(head, 95)


def test_sorting_does_nothing_to_gaussian_heads() -> None:
    measured = head_statistics(gaussian(256, 16384, 128), grains=(*SEGMENTS, *TILES))
    natural, ordered = (measured.live_share[g] for g in SEGMENTS)
    assert ordered == pytest.approx(natural, rel=0.1)
    assert all(measured.live_share[g] > 0.98 for g in TILES)
    assert measured.loss == pytest.approx(measured.entropy, abs=0.4)  # 256 draws from the head's own softmax


def test_statistics_of_a_head_worked_by_hand() -> None:
    """V = 512 words; row 0 splits its mass over words 0 and 300, row 1 holds all of it on word 511."""
    c = torch.eye(512)
    e = torch.full((2, 512), -200.0)
    e[0, 0] = e[0, 300] = e[1, 511] = 0.0
    head = Head(embeddings=e, classifier=c, targets=torch.tensor([0, 511]), name="by hand")
    measured = head_statistics(head, grains=(Grain(1, 256), Grain(128, 128)), filters=(ELEMENT,))
    assert measured.rank_probability == {1: 0.75, 10: 0.0, 50: 0.0}
    assert (measured.live_mean, measured.live_median, measured.live_max, measured.mass) == (1.5, 1.0, 2, 1.0)
    assert measured.loss == measured.entropy == pytest.approx(0.5 * torch.log(torch.tensor(2.0)).item())
    assert measured.live_share == {Grain(1, 256): 2 / 4, Grain(128, 128): 2 / 4}  # row 1's residual is 0
    assert measured.filter_error[ELEMENT].drop_de == measured.filter_error[ELEMENT].drop_dc == 0
