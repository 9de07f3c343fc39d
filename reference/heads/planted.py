"""Heads that are drawn, yet decay, cluster and sort as real heads do.

A real head's logits are, in this order of size: a context, shared by the words around it and in part by the tokens of
one document; a bias of each word, the same for all tokens (its frequency); and the word the context points at. So

    C_v = mu_v m + (b_v / nu) w + G_v      G_v = n_v (sqrt(rho) k_v + sqrt(1 - rho) g_v)
    E_i = s_i (nu w + tau h_i) + beta_i G_{c_i}

with m, w and the `CONTEXTS` axes that span k_v and h_i orthonormal in a random orientation, and g_v Gaussian in the
other dimensions. E has nothing along m, so mu_v moves no logit; it makes dropped entries add up in dE, most for
infrequent words, as real heads do, and w does so in dC. b_v falls with log(index), because tokenizers number frequent
words first, and by a skewed amount for each run of neighbouring indices (scripts) and each word. s_i is the token's
sharpness. One word c_i is raised to drawn log-odds against all others, which keeps the rank-1 probability at any V
and D. Targets are drawn from the softmax times odds ``exp(surprise * normal_v)``: text uses some words more than its
model expects, so that residuals of one column add up in dC.

Figures of ANCHORS that fall short of 25 % (the rest are met on the mean over seeds; from N = 1500 on one seed strays by
a few percent, at N = 256, two documents, by up to half):

    live_max                                   .55 to .85 of the real head's: no token here is as undecided as a few are
    dE, dC of 128x128 tiles, natural order     .45, .6 (smollm2-alpaca); in mean-logit order .65 to .75
    dE of the same at 2^-10, mean-probability  .75 (smollm2-alpaca)
    dC of 128x128 tiles, mean-probability      1.3 to 1.5 (smollm2-web)
    live segments of gemma-alpaca at N = 256   .7 to .8: the real head has .040 there, yet .034 at N = 2048

Outside the anchors' range of V the nearer anchor's recipe holds, and live counts become those of that vocabulary.
Below D of about 200 the spikes' noise on other logits grows; D < 64 is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .anchors import ANCHORS
from .head import Head
from .targets import draw_targets

CONTEXTS = 32  # dimensions of the context; 12 fitted the figures less well
REGION = 1024  # consecutive indices that share a bias
HEAD = 64  # indices before log(index) falls: tokenizers start with bytes and control words
DOCUMENT = 200  # consecutive tokens that share a context; no multiple of a tile's 128 rows


@dataclass(frozen=True)
class Recipe:
    """Parameters of one kind of head. Logits are natural."""

    trend: float  # fall of b per unit of log index
    region: float  # mean of the exponential fall of b for each region
    word: float  # standard deviation of b
    sink: float  # mean of the exponential fall of b for each word
    tau: float  # standard deviation of the context's logits
    norm: float  # standard deviation of log n_v
    document: float  # share of the context's variance that is the document's
    spike_mean: float  # mean of the log-odds of the spike against all other words
    spike_std: float
    kappa: float  # spikes fall on words with probability ~ exp(kappa b_v)
    sharpness: float  # standard deviation of log s_i
    mu: float  # length of the common part of C, against 1 of the word's own
    rare: float  # how much longer it is for each standard deviation that b lies below its mean
    nu: float  # length of the common part of E, against 1 of the context's
    rho: float  # share of the word's own part that is context
    surprise: float  # standard deviation of the log odds of targets


# Fitted by Gauss-Newton steps on the log ratios to ANCHORS: what the softmax decides at N of 640 to 1536 and D of 192
# to 256, then mu, rare, nu and surprise (gemma-alpaca: rho too), which leave it nearly alone, on the filter errors.
# gemma-web has no filter errors and takes gemma-alpaca's four.
_FITTED = {  # the columns are the names in the order of ANCHORS
    "trend": (1.422, 1.204, 1.846, 1.6),
    "region": (1.061, 1.54, 1.209, 2.17),
    "word": (1.739, 1.182, 1.853, 1.484),
    "sink": (1.941, 0.647, 1.101, 0.441),
    "tau": (3.186, 2.867, 3.547, 3.358),
    "norm": (0.208, 0.179, 0.179, 0.124),
    "document": (0.436, 0.243, 0.65, 0.5),
    "spike_mean": (-0.535, -3.975, -1.9, -3.35),
    "spike_std": (8.212, 3.315, 9.0, 3.135),
    "kappa": (0.038, 0.595, 0.604, 0.536),
    "sharpness": (0.157, 0.189, 0.194, 0.167),
    "mu": (1.25, 0.592, 0.4, 0.4),
    "rare": (0.418, 0.087, 0.074, 0.074),
    "nu": (0.455, 1.325, 0.335, 0.335),
    "rho": (0.3, 0.178, 0.38, 0.492),
    "surprise": (0.309, 0.793, 0.511, 0.511),
}
RECIPES = {name: Recipe(**{f: row[i] for f, row in _FITTED.items()}) for i, name in enumerate(ANCHORS)}


def recipe(name: str, v: int) -> Recipe:
    """The recipe of `name` for a vocabulary of `v`: interpolated in log V between the two anchors of the name's text.

    So ``gemma-web`` and ``smollm2-web`` are one family and differ in their default V and D; outside the anchors'
    range the nearer anchor's recipe holds.
    """
    if name not in RECIPES:
        raise ValueError(f"no planted head {name!r}: legal are {', '.join(RECIPES)}")
    text = name.rpartition("-")[2]
    small, large = f"smollm2-{text}", f"gemma-{text}"
    low, high = ANCHORS[small].vocabulary, ANCHORS[large].vocabulary
    t = min(max(log(v / low) / log(high / low), 0.0), 1.0)
    pairs = ((getattr(RECIPES[small], f.name), getattr(RECIPES[large], f.name)) for f in fields(Recipe))
    return Recipe(*((1 - t) * a + t * b for a, b in pairs))


def planted(
    name: str,
    n: int = 1024,
    v: int | None = None,
    d: int | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> Head:
    """The planted head `name`, E (n, d), C (v, d); v and d default to those of the real head it resembles.

    Deterministic for a seed and a kind of device (CPU and CUDA draw different numbers from one seed).
    """
    if name not in RECIPES:
        raise ValueError(f"no planted head {name!r}: legal are {', '.join(RECIPES)}")
    v, d = v or ANCHORS[name].vocabulary, d or ANCHORS[name].hidden
    return cook(recipe(name, v), n, v, d, name=name, seed=seed, dtype=dtype, device=device)


def cook(
    r: Recipe, n: int, v: int, d: int, *, name: str, seed: int, dtype: torch.dtype, device: torch.device | str
) -> Head:
    """The head that recipe `r` describes."""
    if d < 2 * CONTEXTS:
        raise ValueError(f"a planted head needs D of at least {2 * CONTEXTS}, got {d}")
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    bias = _word_bias(r, v, device)
    nu = r.nu * r.tau * (CONTEXTS / r.rho) ** 0.5
    axes = torch.linalg.qr(normal(d, 2 + CONTEXTS)).Q  # (D, 2 + CONTEXTS): m, w, then the contexts'
    scale = torch.exp(r.norm * normal(v, 1))
    scale /= scale.square().mean().sqrt()
    common = r.mu - r.rare * bias / bias.square().mean().sqrt().clamp(min=1e-6)
    contexts = (r.rho / CONTEXTS) ** 0.5 * scale * normal(v, CONTEXTS)
    near = torch.cat([common[:, None], bias[:, None] / nu, contexts], 1)  # C in the coordinates of `axes`
    classifier = torch.empty(v, d, dtype=dtype, device=device)
    for rows in torch.arange(v, device=device).split(2**15):
        far = normal(len(rows), d)
        far -= (far @ axes) @ axes.T
        far *= ((1 - r.rho) / (d - 2 - CONTEXTS)) ** 0.5 * scale[rows]
        classifier[rows] = (near[rows] @ axes.T + far).to(dtype)

    document = (torch.arange(n, device=device) + DOCUMENT // 2) // DOCUMENT
    shared, single = normal(n // DOCUMENT + 2, CONTEXTS), normal(n, CONTEXTS)
    # Of one length each: with a few documents in a batch, chance lengths would decide the rank curve.
    context = r.document**0.5 * normalize(shared)[document] + (1 - r.document) ** 0.5 * normalize(single)
    context *= r.tau * (CONTEXTS / r.rho) ** 0.5
    token = torch.cat([torch.zeros(n, 1, device=device), torch.full((n, 1), nu, device=device), context], 1)
    token *= torch.exp(r.sharpness * _even_normal(n, generator))[:, None]
    spike = torch.multinomial(torch.softmax(r.kappa * bias, 0), n, replacement=True, generator=generator)
    above = r.spike_mean + r.spike_std * _even_normal(n, generator)
    lse = torch.cat([torch.logsumexp(rows @ near.T, 1) for rows in token.split(max(1, 2**26 // v))])
    beta = (lse + above - (token * near[spike]).sum(1)).clamp(min=0)
    own = classifier[spike].float() - near[spike, :2] @ axes[:, :2].T
    embeddings = token @ axes.T + (beta / own.square().sum(1))[:, None] * own
    embeddings = embeddings.to(dtype)
    odds = torch.exp(r.surprise * normal(v))
    return Head(
        embeddings=embeddings,
        classifier=classifier,
        targets=draw_targets(embeddings, classifier, generator, odds),
        name=name,
        provenance={"generator": "planted", "seed": seed, "device": torch.device(device).type},
    )


def _even_normal(k: int, generator: torch.Generator) -> Tensor:
    """(k,) normal quantiles of the numbers (i + 1/2) / k in random order: the same set at every seed."""
    order = torch.randperm(k, generator=generator, device=generator.device)
    normal: Tensor = torch.special.ndtri((order + 0.5) / k)
    return normal


def _word_bias(r: Recipe, v: int, device: torch.device | str) -> Tensor:
    """(V,) b, of mean 0: the same at every seed, and smooth in V, because the few words at its top decide much.

    The parts that a seed would draw are quantiles at the points of Kronecker sequences, which fill (0, 1) evenly.
    """
    index = torch.arange(v, device=device, dtype=torch.float64)
    region = torch.div(index + REGION // 3, REGION, rounding_mode="floor")  # off the grid of tiles and segments

    def quantile(of: Tensor, step: float) -> Tensor:
        return ((of + 1) * step).frac().clamp(min=1e-9)

    bias: Tensor = -r.trend * ((index + HEAD) / v).log() + r.word * torch.special.ndtri(
        quantile(index, 0.7548776662466927)
    )
    bias += r.sink * quantile(index, 0.5698402909980532).log() + r.region * quantile(region, 0.6180339887498949).log()
    return (bias - bias.mean()).float()
