"""Traffic from settings: arrival processes, length distributions, closed loops, conversations, reasoning.

An arrival process is a function of ``ARRIVALS`` and a length distribution one of ``LENGTHS``; both tables
may be extended. Everything is deterministic by seed. Settings are given as plain values, e.g.::

    open_loop(10_000, rate_per_s=20, process="gamma", cv=2, inputs={"kind": "lognormal_pareto", "median":
    900},
              outputs=256, seed=1)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.traffic import MAX_TOKENS, Floats, Ints, Traffic
from trivet.errors import TrivetError, UnknownName

LengthSpec: TypeAlias = int | Mapping[str, Any]
Rng: TypeAlias = np.random.Generator


def _positive(value: float, field: str, *, zero: bool = False) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TrivetError(f"{value!r} is not a number", field=field) from error
    if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
        raise TrivetError(f"{value} is not a {'number from 0 on' if zero else 'positive number'}", field=field)
    return number


# ---- times between arrivals, of mean 1
# -------------------------------------------------------------------------------


def constant(rng: Rng, count: int, cv: float) -> Floats:
    """Evenly spaced."""
    return np.ones(count)


def poisson(rng: Rng, count: int, cv: float) -> Floats:
    """Exponential gaps (CV 1)."""
    return rng.exponential(1.0, count)


def gamma(rng: Rng, count: int, cv: float) -> Floats:
    """Gamma gaps of shape 1/CV^2; ``vllm bench serve --burstiness b`` is CV = b^-1/2."""
    shape = 1.0 / cv**2
    return rng.gamma(shape, 1.0 / shape, count)


def weibull_shape_of(cv: float) -> float:
    """Shape k with Gamma(1+2/k) / Gamma(1+1/k)^2 - 1 = CV^2."""
    from scipy.optimize import brentq

    def excess(log_k: float) -> float:
        inverse = math.exp(-log_k)
        return math.lgamma(1 + 2 * inverse) - 2 * math.lgamma(1 + inverse) - math.log1p(cv * cv)

    return math.exp(brentq(excess, math.log(0.05), math.log(2000.0)))


def weibull(rng: Rng, count: int, cv: float) -> Floats:
    """Weibull gaps with this CV (0.001 to 1e4)."""
    if not 1e-3 <= cv <= 1e4:
        raise TrivetError(f"{cv} is out of range", field="cv", allowed="0.001 to 10000")
    k = weibull_shape_of(cv)
    return np.asarray(rng.weibull(k, count) / math.gamma(1 + 1 / k))


ARRIVALS: dict[str, Callable[[Rng, int, float], Floats]] = {
    "constant": constant,
    "poisson": poisson,
    "gamma": gamma,
    "weibull": weibull,
}


def arrivals(process: str, count: int, rate_per_s: float, *, cv: float = 1.0, seed: int | Rng = 0) -> Floats:
    """Sorted arrival times; the first one gap after 0. Raises UnknownName or TrivetError naming the field."""
    if process not in ARRIVALS:
        raise UnknownName(f"unknown {process!r}", field="process", allowed=ARRIVALS)
    rate, spread = _positive(rate_per_s, "rate_per_s"), _positive(cv, "cv")
    return np.cumsum(ARRIVALS[process](np.random.default_rng(seed), _count(count), spread)) / rate


def _count(count: int) -> int:
    if count != int(count) or count < 0:
        raise TrivetError(f"{count} is not a whole number from 0 on", field="requests")
    return int(count)


# ---- lengths in tokens
# -----------------------------------------------------------------------------------------------


def fixed(rng: Rng, count: int, *, tokens: float) -> Floats:
    """All the same."""
    return np.full(count, _positive(tokens, "tokens"))


def uniform(rng: Rng, count: int, *, low: float, high: float) -> Floats:
    """Whole numbers from low to high, both included."""
    lo, hi = _positive(low, "low"), _positive(high, "high")
    if hi < lo:
        raise TrivetError(f"{high} is below low {low}", field="high")
    return rng.integers(round(lo), round(hi) + 1, count).astype(float)


def around(rng: Rng, count: int, *, tokens: float, ratio: float = 0.8) -> Floats:
    """InferenceX: uniform between ``ratio`` of the nominal length and the nominal length."""
    nominal, low = _positive(tokens, "tokens"), _positive(ratio, "ratio")
    if low > 1:
        raise TrivetError(f"{ratio} is above 1", field="ratio")
    return uniform(rng, count, low=max(1.0, nominal * low), high=nominal)


def vllm_random(rng: Rng, count: int, *, tokens: float, range_ratio: float = 0.0) -> Floats:
    """``vllm bench serve --dataset-name random``: uniform within +-``range_ratio`` of the nominal length."""
    nominal, ratio = _positive(tokens, "tokens"), _positive(range_ratio, "range_ratio", zero=True)
    if ratio >= 1:
        raise TrivetError(f"{range_ratio} is not below 1", field="range_ratio")
    return uniform(rng, count, low=max(1.0, nominal * (1 - ratio)), high=nominal * (1 + ratio))


def exponential(rng: Rng, count: int, *, mean: float) -> Floats:
    """Geometric on 1, 2, ...: the memoryless output lengths that services show."""
    return rng.geometric(1.0 / max(_positive(mean, "mean"), 1.0), count).astype(float)


def lognormal(rng: Rng, count: int, *, median: float, sigma: float = 1.0) -> Floats:
    """Log-normal."""
    return _positive(median, "median") * np.exp(_positive(sigma, "sigma", zero=True) * rng.standard_normal(count))


def lognormal_pareto(
    rng: Rng, count: int, *, median: float, sigma: float = 1.0, tail_share: float = 0.05, tail_index: float = 1.5
) -> Floats:
    """A log-normal body whose top ``tail_share`` is a Pareto tail of ``tail_index``: input lengths of services."""
    share, index = _positive(tail_share, "tail_share", zero=True), _positive(tail_index, "tail_index")
    if share >= 1:
        raise TrivetError(f"{tail_share} is not below 1", field="tail_share")
    body = lognormal(rng, count, median=median, sigma=sigma)
    if share == 0:
        return body
    from scipy.special import ndtri

    knee = median * math.exp(sigma * float(ndtri(1 - share)))  # the body's quantile where the tail begins
    u = rng.random(count)
    return np.where(body > knee, knee * (1 - u) ** (-1 / index), body)


def empirical(rng: Rng, count: int, *, tokens: Any, weights: Any = None) -> Floats:
    """A histogram: ``tokens`` with ``weights`` (equal where absent)."""
    values = np.asarray(tokens, float)
    if values.ndim != 1 or not values.size:
        raise TrivetError("not a list of lengths", field="tokens")
    mass = np.ones(values.size) if weights is None else np.asarray(weights, float)
    if mass.shape != values.shape or not np.isfinite(mass).all() or (mass < 0).any() or mass.sum() <= 0:
        raise TrivetError("not one weight >= 0 for each length", field="weights")
    return values[np.searchsorted(np.cumsum(mass / mass.sum())[:-1], rng.random(count), side="right")]


LENGTHS: dict[str, Callable[..., Floats]] = {
    "fixed": fixed,
    "uniform": uniform,
    "around": around,
    "vllm_random": vllm_random,
    "exponential": exponential,
    "lognormal": lognormal,
    "lognormal_pareto": lognormal_pareto,
    "empirical": empirical,
}


def lengths(spec: LengthSpec, count: int, *, seed: int | Rng = 0, field: str = "tokens") -> Ints:
    """Draw token counts: a number (fixed) or ``{"kind": ..., parameters}``, with ``min``/``max`` to clip.

    Raises UnknownName for a kind, TrivetError for a parameter, each naming ``field``.
    """
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        spec = {"kind": "fixed", "tokens": spec}
    if not isinstance(spec, Mapping):
        raise TrivetError(f"{spec!r} is neither a number nor a mapping", field=field)
    parameters = dict(spec)
    kind = parameters.pop("kind", "fixed")
    if kind not in LENGTHS:
        raise UnknownName(f"unknown kind {kind!r}", field=field, allowed=LENGTHS)
    low, high = parameters.pop("min", 1), parameters.pop("max", MAX_TOKENS)
    try:
        raw = LENGTHS[kind](np.random.default_rng(seed), _count(count), **parameters)
    except TypeError as error:
        raise TrivetError(f"{kind}: {error}", field=field) from error
    except TrivetError as error:
        raise TrivetError(f"{kind}: {error}", field=field) from error
    return np.clip(np.round(raw), max(1, low), min(high, MAX_TOKENS)).astype(np.int32)


# ---- whole traffics --------------------------------------------------------------------------------------------------


def _streams(seed: int, count: int) -> list[Rng]:
    """Independent random streams, so that changing one setting leaves the other draws as they are."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(count)]


def open_loop(
    requests: int,
    *,
    rate_per_s: float,
    inputs: LengthSpec,
    outputs: LengthSpec,
    process: str = "poisson",
    cv: float = 1.0,
    seed: int = 0,
) -> Traffic:
    """Requests that arrive whatever the service does."""
    times, ins, outs = _streams(seed, 3)
    return Traffic(
        arrivals(process, requests, rate_per_s, cv=cv, seed=times),
        lengths(inputs, requests, seed=ins, field="inputs"),
        lengths(outputs, requests, seed=outs, field="outputs"),
        name=f"{process} {rate_per_s:g}/s",
    )


def closed_loop(requests: int, *, concurrency: int, inputs: LengthSpec, outputs: LengthSpec, seed: int = 0) -> Traffic:
    """``concurrency`` users, each sending its next request when the last one ends."""
    if concurrency != int(concurrency) or concurrency < 1:
        raise TrivetError(f"{concurrency} is not a whole number from 1 on", field="concurrency")
    _, ins, outs = _streams(seed, 3)
    return Traffic(
        np.zeros(_count(requests)),
        lengths(inputs, requests, seed=ins, field="inputs"),
        lengths(outputs, requests, seed=outs, field="outputs"),
        max_concurrency=int(concurrency),
        name=f"closed loop of {concurrency}",
    )


def conversations(
    sessions: int,
    *,
    rate_per_s: float,
    turns: LengthSpec,
    inputs: LengthSpec,
    outputs: LengthSpec,
    system_tokens: int = 0,
    think_s: float = 10.0,
    process: str = "poisson",
    cv: float = 1.0,
    block_tokens: int = 16,
    max_input_tokens: int = 131072,
    seed: int = 0,
) -> Traffic:
    """Multi-turn sessions: each prompt is the system prompt, all that was said before, and a new message.

    Args:
        turns: number of turns of a session, as a length distribution.
        inputs, outputs: tokens of one message and one answer.
        system_tokens: a system prompt shared by all sessions.
        think_s: mean of the exponential pause between an answer and the next message.
        max_input_tokens: a session ends before a longer prompt.

    Returns:
        Every turn has the time of its session's start, ``previous`` and ``think_s``; block ids of full
        blocks: those of the system prompt are shared by all, the others by the turns of one session.
    """
    times, many, ins, outs, pauses = _streams(seed, 5)
    begin = arrivals(process, sessions, rate_per_s, cv=cv, seed=times)
    count = lengths(turns, sessions, seed=many, field="turns").astype(np.int64)
    total, session = int(count.sum()), np.repeat(np.arange(len(begin)), count)
    first = np.concatenate(([0], np.cumsum(count)))[:-1]
    turn = np.arange(total) - np.repeat(first, count)
    message = lengths(inputs, total, seed=ins, field="inputs").astype(np.int64)
    answer = lengths(outputs, total, seed=outs, field="outputs")
    said = np.cumsum(message + answer) - (message + answer)
    prompt = int(system_tokens) + said - np.repeat(said[first] if total else said, count) + message
    pause = _positive(think_s, "think_s", zero=True) * pauses.standard_exponential(total)
    previous = np.where(turn > 0, np.arange(total) - 1, -1)
    kept = prompt <= max_input_tokens  # prompts only grow, so what is kept are the first turns
    whole = Traffic(
        begin[session],
        np.minimum(prompt, MAX_TOKENS),
        answer,
        previous=previous,
        think_s=np.where(turn > 0, pause, 0.0),
        client=session.astype(np.int32),
        name=f"{sessions} conversations",
    ).take(kept)
    return replace(whole, **_prefixes(whole.input_tokens, session[kept], int(system_tokens), int(block_tokens)))


def _prefixes(prompt: Ints, session: NDArray[np.int64], system: int, block: int) -> dict[str, Any]:
    """Ids of full blocks, dense from 0: first the shared ones, then each session's own."""
    if block < 1:
        raise TrivetError(f"{block} tokens", field="block_tokens", allowed="1 or more")
    shared = system // block
    sizes = prompt.astype(np.int64) // block
    own = np.zeros(int(session.max(initial=-1)) + 1, np.int64)
    np.maximum.at(own, session, np.maximum(sizes - shared, 0))
    base = shared + np.concatenate(([0], np.cumsum(own)))[:-1]
    offsets = np.concatenate(([0], np.cumsum(sizes)))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    ids = np.where(place < shared, place, np.repeat(base[session], sizes) + place - shared)
    return {"hash_offsets": offsets, "hash_ids": ids, "block_tokens": block}


def with_reasoning(traffic: Traffic, thinking: LengthSpec, *, share: float = 1.0, seed: int = 0) -> Traffic:
    """The same requests with ``thinking`` tokens before the answer in a ``share`` of them."""
    if not 0 <= share <= 1:
        raise TrivetError(f"{share} is no share", field="share", allowed="0 to 1")
    amounts, who = _streams(seed, 2)
    thought = lengths(thinking, len(traffic), seed=amounts, field="thinking").astype(np.int64)
    thought[who.random(len(traffic)) >= share] = 0
    output = np.minimum(traffic.output_tokens + thought, MAX_TOKENS)
    return replace(traffic, output_tokens=output, reasoning_tokens=np.minimum(thought, output))


def with_images(traffic: Traffic, tokens: LengthSpec, *, share: float = 1.0, seed: int = 0) -> Traffic:
    """The same requests, a ``share`` of them with an image of ``tokens`` in front of the prompt (which grows by them).

    Raises TrivetError where the traffic names its prefixes: what their blocks hold would no longer be right.
    """
    if not 0 <= share <= 1:
        raise TrivetError(f"{share} is no share", field="images.share", allowed="0 to 1")
    if traffic.hash_ids is not None:
        raise TrivetError("not with prompts that share prefixes", field="images", allowed="open_loop or closed_loop")
    amounts, who = _streams(seed, 2)
    image = lengths(tokens, len(traffic), seed=amounts, field="images.tokens").astype(np.int64)
    image[who.random(len(traffic)) >= share] = 0
    return replace(
        traffic,
        input_tokens=np.minimum(traffic.input_tokens + image, MAX_TOKENS),
        image_tokens=np.minimum(image, MAX_TOKENS - 1),
    )


def with_adapters(traffic: Traffic, count: int, *, zipf: float = 1.0, share: float = 1.0, seed: int = 0) -> Traffic:
    """The same requests, a ``share`` of them for one of ``count`` adapters, the i-th as popular as ``i ** -zipf``."""
    if count < 1:
        raise TrivetError(f"{count}", field="adapters.count", allowed="1 or more")
    if not 0 <= share <= 1:
        raise TrivetError(f"{share} is no share", field="adapters.share", allowed="0 to 1")
    _positive(zipf, "adapters.zipf", zero=True)
    which, who = _streams(seed, 2)
    weight = np.cumsum(np.arange(1.0, count + 1.0) ** -zipf)
    adapter = np.searchsorted(weight, which.random(len(traffic)) * weight[-1], side="right").astype(np.int32)
    adapter = np.minimum(adapter, count - 1)
    return replace(traffic, adapter=np.where(who.random(len(traffic)) < share, adapter, -1).astype(np.int32))
