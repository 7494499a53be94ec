"""How unevenly a mixture of experts loads its chips: the hottest chip's token copies over the mean, by tokens in the batch.

Experts are not equally popular, and even if they were, few tokens spread by chance. An expert of popularity ``p_e`` (Zipf:
the i-th most popular has ``i ** -s``) is among the ``k`` that a token chooses with probability

    pi_e = 1 - exp(-lambda p_e),  lambda such that the pi_e sum to k

(sampling without replacement; Rosen 1972, Hajek 1964). A chip's copies from ``n`` tokens then have mean ``n sum pi_e`` and,
with ``w_e = pi_e (1 - pi_e)``, variance ``n (sum w_e - (sum w_e)^2 / W)``; the largest of the chips' loads is that of
independent binomial (many tokens: normal) variables with these moments: within 6% of sampling, 10% at a few tokens.
Redundant experts are placed as DeepSeek's EPLB places them: another copy of whichever expert has the most load a copy,
then copies to chips from the heaviest on, each to the least loaded chip with room.
Without any, experts lie on the chips in an order that has nothing to do with their popularity.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ORDERS = 8  # placements without redundancy that are averaged: layers differ in which experts are popular
POINTS = 600


def inclusion(experts: int, top_k: int, zipf: float) -> Floats:
    """[experts] probability that a token chooses each expert, the most popular first; sums to ``top_k``."""
    popularity = np.arange(1.0, experts + 1.0) ** -zipf
    if top_k >= experts:
        return np.ones(experts)
    low, high = 0.0, 1.0
    while (1.0 - np.exp(-high * popularity)).sum() < top_k:
        high *= 2.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if (1.0 - np.exp(-middle * popularity)).sum() < top_k:
            low = middle
        else:
            high = middle
    return np.asarray(1.0 - np.exp(-high * popularity))


def placements(chosen: Floats, chips: int, redundant: int) -> list[tuple[NDArray[np.int64], Floats]]:
    """Ways to lay the experts on the chips: for each the expert of every place [chips, places] and its share of the load."""
    experts = chosen.size
    if not redundant:
        out = []
        for seed in range(ORDERS):
            order = np.random.default_rng(seed).permutation(experts).reshape(chips, -1)
            out.append((order, np.ones(order.shape)))
        return out
    copies = np.ones(experts, np.int64)
    for _ in range(redundant):
        copies[int(np.argmax(chosen / copies))] += 1
    of = np.repeat(np.arange(experts), copies)
    load = (chosen / copies)[of]
    places = of.size // chips
    where: list[list[int]] = [[] for _ in range(chips)]
    weight = np.zeros(chips)
    for at in np.argsort(-load, kind="stable"):
        room = np.array([weight[c] if len(where[c]) < places else np.inf for c in range(chips)])
        best = int(np.argmin(room))
        where[best].append(int(of[at]))
        weight[best] += load[at]
    order = np.array(where)
    return [(order, 1.0 / copies[order])]


def _largest(mean: Floats, variance: Floats) -> Floats:
    """[tokens] expected largest of independent loads with the moments [tokens, chips]."""
    from scipy.special import betainc, ndtr

    out = np.empty(mean.shape[0])
    for i, (m, v) in enumerate(zip(mean, np.clip(variance, 1e-9 * mean, (1.0 - 1e-9) * mean), strict=True)):
        top = float((m + 9.0 * np.sqrt(v) + 3.0).max())
        if top <= POINTS:  # counts one by one while they are few, then a smooth integral
            x = np.arange(int(top) + 1.0)
            trials, miss = m * m / (m - v), v / m
            left = np.maximum(trials[:, None] - x, 1e-9)
            below = np.where(x >= trials[:, None], 1.0, betainc(left, x + 1.0, miss[:, None]))
            out[i] = (1.0 - below.prod(axis=0)).sum()
        else:
            x = np.linspace(0.0, top, 4 * POINTS)
            below = ndtr((x - m[:, None]) / np.sqrt(v)[:, None])
            out[i] = float(np.trapezoid(1.0 - below.prod(axis=0), x))
    return out


@lru_cache(maxsize=256)
def _curve(experts: int, top_k: int, chips: int, zipf: float, redundant: int, tokens: tuple[float, ...]) -> Floats:
    chosen = inclusion(experts, top_k, zipf)
    spread = chosen * (1.0 - chosen)
    n = np.array(tokens)
    total = np.zeros(n.size)
    found = placements(chosen, chips, redundant)
    for order, share in found:
        mean = (chosen[order] * share).sum(axis=1)
        # A copy takes its share of an expert's tokens at random: the variance of a thinned count.
        own = (spread[order] * share**2 + chosen[order] * share * (1.0 - share)).sum(axis=1)
        variance = own - own**2 / max(float(own.sum()), 1e-300)
        total += np.maximum(_largest(n[:, None] * mean, n[:, None] * variance), n * mean.max())
    most = total / len(found)
    least = np.maximum(n * top_k / chips, np.minimum(n, 1.0))  # some chip has the mean; and a whole copy
    places = (experts + redundant) // chips
    return np.maximum(np.minimum(np.maximum(most, least), n * min(top_k, places)) / (n * top_k / chips), 1.0)


def skew(experts: int, top_k: int, chips: int, tokens: NDArray[np.float64], zipf: float, redundant: int = 0) -> Floats:
    """Hottest chip's load over the mean, of the shape of ``tokens``.

    Args:
        experts, top_k: of the layer.
        chips: groups of chips that the experts are spread over; divides ``experts + redundant``.
        tokens: in the batch of the whole expert group, above 0.
        zipf: exponent of the popularity; 0 = all alike.
        redundant: further copies of popular experts.
    """
    if chips == 1:
        return np.ones(np.shape(tokens))
    values, back = np.unique(np.asarray(tokens, float), return_inverse=True)
    found = _curve(experts, top_k, chips, float(zipf), redundant, tuple(np.maximum(values, 1e-9).tolist()))
    return np.asarray(found[back].reshape(np.shape(tokens)))
