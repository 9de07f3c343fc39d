"""Heads that are drawn, yet decay, cluster and sort as real heads do.

A real head's logits are, in this order of size: a context, shared by the words around it and in part by the tokens of
one document; a bias of each word, the same for all tokens (its frequency); and the word the context points at. So

    C_v = mu_v m + (b_v / nu) w + G_v      G_v = n_v (sqrt(rho) k_v + sqrt(1 - rho) g_v)
    E_i = s_i (nu w + tau h_i) + beta_i G_{c_i}

with m, w and the `CONTEXTS` axes that span k_v and h_i orthonormal in a random orientation, k_v of one length and g_v
Gaussian in the other dimensions. E has nothing along m, so mu_v moves no logit; it makes dropped entries add up in dE,
most for infrequent words, as real heads do, and w does so in dC. b_v falls with log(index), because tokenizers number
frequent words first, and by a skewed amount for each run of neighbouring indices (scripts) and each word. s_i is the
token's sharpness. One word c_i is raised to drawn log-odds against all others, which keeps the rank-1 probability at
any V and D. Targets are drawn from the softmax times odds ``exp(surprise * normal_v)``: text uses some words more than
its model expects, so that residuals of one column add up in dC.

One to three tokens in a hundred are undecided: no word is raised, the context says less, and b is faded, or level over
the most frequent words by a second axis of C, which only these tokens use. They have the most live entries, and a few
rows of theirs are much of what tiles drop. Lower sharpness alone would not do: Gaussian logits of any spread have at
most 634 live entries at V = 49152 and 515 at V = 262144, and real heads have up to 795.

On the mean over three seeds, at D = 192 and at their own 576, SmolLM2's figures are met within 25 %. Nearest to the
limit are, of smollm2-alpaca, the dE of sorted tiles at 2^-14 (1.235 at D = 576) and of tiles in natural order (.79 at
D = 192); of smollm2-web, the dE of tiles sorted by probability (1.20 at D = 576). Of gemma-alpaca, live segments of the
first 256 tokens are nearest (.77 at D = 640, one seed): those are two documents, and one seed strays by up to .4. D
changes only the noise: on the mean over seeds it moves few figures by more than .05, those of sorted tiles by .1.

Their tokens resemble those beside them, and few others: where rows that are alike share blocks of 128, these need 4 to
13 % fewer words than blocks of neighbours (V=256000), those of SmolLM2 26 to 39 % fewer. No anchor asks for that.

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
from .targets import draw, draw_targets

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
    undecided: float  # share of undecided tokens
    level: float  # as many of the most frequent words are equally frequent to them
    fade: float  # the share of b that is left to them
    blur: float  # the share of the context that is left to them


# Fitted by damped Gauss-Newton steps on the log ratios to ANCHORS, at N of 1024 to 4096 and D of 128 to 192, the last
# percents by hand, SmolLM2's at D = 576 too. gemma-web has no filter errors and takes gemma-alpaca's mu, rare, nu and
# surprise.
_FITTED = {  # the columns are the names in the order of ANCHORS
    "trend": (1.528, 1.335, 1.747, 1.68),
    "region": (1.832, 2.113, 1.52, 2.17),
    "word": (1.172, 1.035, 2.077, 1.484),
    "sink": (1.759, 0.692, 1.208, 0.441),
    "tau": (3.823, 2.669, 4.255, 3.358),
    "norm": (0.165, 0.208, 0.162, 0.124),
    "document": (0.522, 0.279, 0.605, 0.5),
    "spike_mean": (-1.368, -3.839, -1.9, -3.116),
    "spike_std": (17.773, 2.589, 9.498, 3.135),
    "kappa": (0.017, 0.573, 0.604, 0.536),
    "sharpness": (0.146, 0.15, 0.16, 0.167),
    "mu": (1.277, 0.63, 0.552, 0.552),
    "rare": (0.463, 0.099, 0.079, 0.079),
    "nu": (0.963, 1.224, 0.354, 0.354),
    "rho": (0.4, 0.209, 0.465, 0.492),
    "surprise": (0.461, 0.637, 0.511, 0.511),
    "undecided": (0.026, 0.014, 0.012, 0.01),
    "level": (1, 1, 500, 500),
    "fade": (0.774, 0.45, 1, 1),
    "blur": (0.698, 0.78, 0.405, 0.42),
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

    One seed is one head on every device, up to the rounding of products: the CPU draws all numbers, which takes
    one core 4 s at V = 256000, D = 2304.
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
    # Words and tokens have a generator each, and whatever has a dimension of D comes last: in the coordinates of
    # `axes`, a seed's words are the same at any N and D, its tokens at any V and D.
    words = torch.Generator().manual_seed(seed)
    tokens = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=words)))

    def normal(*shape: int, of: torch.Generator = words) -> Tensor:
        return torch.randn(*shape, generator=of).to(device)

    bias = _word_bias(r, v)
    uniform = torch.rand(2, n, generator=tokens, dtype=torch.float64)
    spike = draw((r.kappa * bias).exp(), uniform[0]).to(device)
    bias = bias.float().to(device)
    nu = r.nu * r.tau * (CONTEXTS / r.rho) ** 0.5
    excess = (bias - bias.topk(min(round(r.level), v)).values[-1]).clamp(min=0)
    scale = torch.exp(r.norm * normal(v, 1))
    scale /= scale.square().mean().sqrt()
    common = r.mu - r.rare * bias / bias.square().mean().sqrt().clamp(min=1e-6)
    contexts = r.rho**0.5 * scale * normalize(normal(v, CONTEXTS))
    near = torch.cat([torch.stack([common, bias / nu, excess / nu], 1), contexts], 1)  # C in the coordinates of `axes`
    odds = torch.exp(r.surprise * normal(v))
    # (D, 3 + CONTEXTS): m, w, w', then the contexts'. By the CPU, because libraries choose signs of Q differently.
    axes = torch.linalg.qr(torch.randn(d, 3 + CONTEXTS, generator=words)).Q.to(device)
    classifier = torch.empty(v, d, dtype=dtype, device=device)
    for rows in torch.arange(v, device=device).split(2**15):
        far = normal(len(rows), d)
        far -= (far @ axes) @ axes.T
        far *= ((1 - r.rho) / (d - 3 - CONTEXTS)) ** 0.5 * scale[rows]
        classifier[rows] = (near[rows] @ axes.T + far).to(dtype)

    document = (torch.arange(n, device=device) + DOCUMENT // 2) // DOCUMENT
    shared, single = normal(n // DOCUMENT + 2, CONTEXTS, of=tokens), normal(n, CONTEXTS, of=tokens)
    # Of one length each: with a few documents in a batch, chance lengths would decide the rank curve.
    context = r.document**0.5 * normalize(shared)[document] + (1 - r.document) ** 0.5 * normalize(single)
    context *= r.tau * (CONTEXTS / r.rho) ** 0.5
    undecided = (_quantile(torch.arange(n, dtype=torch.float64), 0.6180339887498949) < r.undecided).to(device)
    token = torch.cat([torch.tensor([[0.0, nu, 0.0]], device=device).expand(n, 3), context], 1)
    sharpness = torch.exp(r.sharpness * _even_normal(n, 0.7548776662466927).to(device))
    sharpness[undecided] = 1  # drawn, one token in a thousand rows was 40 % of a tile filter's squared dE
    token *= sharpness[:, None]
    token[undecided, 1] *= r.fade
    token[undecided, 2] = -token[undecided, 1]  # takes the excess away
    token[undecided, 3:] *= r.blur
    above = r.spike_mean + r.spike_std * _even_normal(n, 0.5698402909980532).to(device)
    above[undecided] = -torch.inf
    lse = torch.cat([torch.logsumexp(rows @ near.T, 1) for rows in token.split(max(1, 2**26 // v))])
    beta = (lse + above - (token * near[spike]).sum(1)).clamp(min=0)
    own = classifier[spike].float() - near[spike, :3] @ axes[:, :3].T
    embeddings = token @ axes.T + (beta / own.square().sum(1))[:, None] * own
    embeddings = embeddings.to(dtype)
    return Head(
        embeddings=embeddings,
        classifier=classifier,
        targets=draw_targets(embeddings, classifier, uniform[1].to(device), odds),
        name=name,
        provenance={"generator": "planted", "seed": seed},
    )


def _even_normal(k: int, step: float) -> Tensor:
    """(k,) normal quantiles: the same at every seed, and nearly as evenly spread in each run of tokens as in all."""
    normal: Tensor = torch.special.ndtri(_quantile(torch.arange(k, dtype=torch.float64), step))
    return normal.float()


def _word_bias(r: Recipe, v: int) -> Tensor:
    """(V,) b in float64, of mean 0: the same at every seed, and smooth in V, because few words at its top decide much.

    The parts that a seed would draw are quantiles at the points of Kronecker sequences, which fill (0, 1) evenly.
    """
    index = torch.arange(v, dtype=torch.float64)
    region = torch.div(index + REGION // 3, REGION, rounding_mode="floor")  # off the grid of tiles and segments

    bias: Tensor = -r.trend * ((index + HEAD) / v).log() + r.word * torch.special.ndtri(
        _quantile(index, 0.7548776662466927)
    )
    bias += r.sink * _quantile(index, 0.5698402909980532).log() + r.region * _quantile(region, 0.6180339887498949).log()
    return bias - bias.mean()


def _quantile(of: Tensor, step: float) -> Tensor:
    """Points of a Kronecker sequence for the whole numbers `of`: they fill (0, 1) evenly from the first on."""
    return ((of + 1) * step).frac().clamp(min=1e-9)
