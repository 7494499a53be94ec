"""Traffic: what arrives, when and how long, as plain arrays.

Files become ``Traffic`` in ``interop/traces.py``, settings in ``generate.py``, and many customers at once in
``tenants_traffic.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.errors import TrivetError

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

MAX_TOKENS = 2**31 - 1
MAX_TIME_S = 1e10  # three centuries: float64 still resolves 2 microseconds there


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """Requests in order of arrival. Every array is one-dimensional with one entry a request unless told.

    Args:
        arrival_s: float64, sorted, seconds from the start of the traffic (>= 0).
        input_tokens: int32 >= 1, prompt tokens, those of a shared prefix included.
        output_tokens: int32 >= 1, tokens to generate, reasoning included.
        hash_offsets: int64 [requests + 1], CSR offsets into ``hash_ids``; None where prefixes are not known.
        hash_ids: int64 >= 0, one id for each block of the prompt (the last may be partial), in order; two
            requests share a cached block where their ids agree from the front on. Readers and generators number
            them from 0.
        block_tokens: prompt tokens that one id stands for (0 without ids).
        previous: int64, index of the request before it in its session (always smaller than its own), -1 for
            a first one. A request with a previous one is released at the later of ``arrival_s`` and the end of
            the previous one plus ``think_s``.
        think_s: float64 >= 0, see ``previous``; None counts as 0.
        priority: int32, the lowest value is served first (as in vLLM); None = all equal.
        client, model, adapter: int32 ids >= 0 (adapter -1 = the base model); None where there is only one.
        image_tokens: int32 >= 0, the part of ``input_tokens`` that a vision tower makes; None = none.
        reasoning_tokens: int32 >= 0, the part of ``output_tokens`` spent thinking; None = unknown.
        max_concurrency: at most this many requests in flight, the next in order released when one ends; 0 = no
            limit. With ``arrival_s`` all zero: the closed loop of ``vllm bench serve --max-concurrency`` and
            InferenceX.
        model_names, client_names: text of the ids, where known.
        name: where the traffic comes from.

    Raises:
        TrivetError: naming the field (and the first bad request) when an array is malformed.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    hash_offsets: Longs | None = None
    hash_ids: Longs | None = None
    block_tokens: int = 0
    previous: Longs | None = None
    think_s: Floats | None = None
    priority: Ints | None = None
    client: Ints | None = None
    model: Ints | None = None
    adapter: Ints | None = None
    image_tokens: Ints | None = None
    reasoning_tokens: Ints | None = None
    max_concurrency: int = 0
    model_names: tuple[str, ...] = ()
    client_names: tuple[str, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "arrival_s", _array(self.arrival_s, np.float64, "arrival_s"))
        count = self.arrival_s.size
        _check(
            self.arrival_s,
            ~np.isfinite(self.arrival_s),
            "arrival_s",
            "is not a finite time",
            "seconds from 0 on",
        )
        _check(self.arrival_s, self.arrival_s < 0, "arrival_s", "is negative", "seconds from 0 on")
        _check(
            self.arrival_s,
            self.arrival_s > MAX_TIME_S,
            "arrival_s",
            "is too late",
            f"at most {MAX_TIME_S:g} s",
        )
        late = np.zeros(count, bool)
        late[1:] = np.diff(self.arrival_s) < 0
        _check(self.arrival_s, late, "arrival_s", "goes back in time", "times in ascending order")
        for field, low in (
            ("input_tokens", 1),
            ("output_tokens", 1),
            ("priority", None),
            ("client", 0),
            ("model", 0),
            ("adapter", -1),
            ("image_tokens", 0),
            ("reasoning_tokens", 0),
        ):
            self._take_ints(field, low, count)
        self._check_parts()
        self._check_sessions(count)
        self._check_hashes(count)
        if self.max_concurrency < 0 or self.max_concurrency != int(self.max_concurrency):
            raise TrivetError(f"{self.max_concurrency} is not a whole number >= 0", field="max_concurrency")

    def _take_ints(self, field: str, low: int | None, count: int) -> None:
        raw = getattr(self, field)
        if raw is None:
            return
        raw = np.asarray(raw)
        if raw.dtype.kind not in "iuf":
            raw = _array(raw, np.float64, field)
        if raw.ndim != 1:
            raise TrivetError(f"{raw.ndim} dimensions", field=field, allowed="one")
        if raw.dtype.kind == "f":
            _check(raw, ~np.isfinite(raw), field, "is not a number", "whole numbers")
            _check(raw, raw != np.floor(raw), field, "is not a whole number", "whole numbers")
        if low is not None:
            _check(raw, raw < low, field, f"is below {low}", f"whole numbers from {low} on")
        _check(raw, np.abs(raw) > MAX_TOKENS, field, "is too large", f"at most {MAX_TOKENS}")
        array = _array(raw, np.int32, field)
        if array.size != count:
            raise TrivetError(f"{array.size} entries for {count} requests", field=field)
        object.__setattr__(self, field, array)

    def _check_parts(self) -> None:
        if self.image_tokens is not None:
            _check(
                self.image_tokens,
                self.image_tokens > self.input_tokens,
                "image_tokens",
                "exceeds input_tokens",
                "a part of them",
            )
        if self.reasoning_tokens is not None:
            over = self.reasoning_tokens > self.output_tokens
            _check(self.reasoning_tokens, over, "reasoning_tokens", "exceeds output_tokens", "a part of them")

    def _check_sessions(self, count: int) -> None:
        if self.previous is not None:
            previous = _array(self.previous, np.int64, "previous")
            if previous.size != count:
                raise TrivetError(f"{previous.size} entries for {count} requests", field="previous")
            _check(
                previous,
                (previous < -1) | (previous >= np.arange(count)),
                "previous",
                "is not an earlier request",
                "-1 or an earlier index",
            )
            object.__setattr__(self, "previous", previous)
        if self.think_s is not None:
            if self.previous is None:
                raise TrivetError("needs previous", field="think_s")
            think = _array(self.think_s, np.float64, "think_s")
            if think.size != count:
                raise TrivetError(f"{think.size} entries for {count} requests", field="think_s")
            _check(
                think, ~np.isfinite(think) | (think < 0), "think_s", "is not a time >= 0", "seconds from 0 on"
            )
            object.__setattr__(self, "think_s", think)

    def _check_hashes(self, count: int) -> None:
        if (self.hash_offsets is None) != (self.hash_ids is None):
            raise TrivetError("hash_offsets and hash_ids come together", field="hash_offsets")
        if self.hash_offsets is None or self.hash_ids is None:
            return
        offsets, ids = (
            _array(self.hash_offsets, np.int64, "hash_offsets"),
            _array(self.hash_ids, np.int64, "hash_ids"),
        )
        if self.block_tokens < 1:
            raise TrivetError(
                f"{self.block_tokens} tokens a block",
                field="block_tokens",
                allowed="at least 1 where there are hash_ids",
            )
        if (
            offsets.size != count + 1
            or offsets[0] != 0
            or offsets[-1] != ids.size
            or np.any(np.diff(offsets) < 0)
        ):
            raise TrivetError(
                f"not ascending offsets from 0 to {ids.size} for {count} requests", field="hash_offsets"
            )
        _check(ids, ids < 0, "hash_ids", "is negative", "ids from 0 on")
        blocks = -(-self.input_tokens.astype(np.int64) // self.block_tokens)
        _check(
            np.diff(offsets),
            np.diff(offsets) > blocks,
            "hash_ids",
            "ids are more than the prompt has blocks",
            "one a block",
        )
        object.__setattr__(self, "hash_offsets", offsets)
        object.__setattr__(self, "hash_ids", ids)

    def __len__(self) -> int:
        return int(self.arrival_s.size)

    @property
    def duration_s(self) -> float:
        """Time of the last arrival."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    @property
    def rate_per_s(self) -> float:
        """Mean rate of arrivals between the first and the last; 0 where that is not defined."""
        span = self.duration_s - float(self.arrival_s[0]) if len(self) > 1 else 0.0
        return (len(self) - 1) / span if span > 0 else 0.0

    @property
    def interarrival_cv(self) -> float:
        """Standard deviation over mean of the times between arrivals; NaN below three requests."""
        gaps = np.diff(self.arrival_s)
        return float(gaps.std() / gaps.mean()) if gaps.size > 1 and gaps.mean() > 0 else float("nan")

    def head(self, count: int) -> Traffic:
        """The first ``count`` requests."""
        return self.take(np.arange(min(count, len(self))))

    def take(self, index: NDArray[Any]) -> Traffic:
        """The requests of an ascending ``index`` (or boolean mask); links to requests left out are cut."""
        index = np.flatnonzero(index) if index.dtype == bool else np.asarray(index, np.int64)
        changes: dict[str, Any] = {
            f: getattr(self, f)[index] for f in _PER_REQUEST if getattr(self, f) is not None
        }
        if self.previous is not None:
            place = np.full(len(self) + 1, -1, np.int64)  # the last entry answers for -1
            place[index] = np.arange(index.size)
            changes["previous"] = place[self.previous[index]]
        if self.hash_offsets is not None and self.hash_ids is not None:
            offsets, ids = _gather(self.hash_offsets, self.hash_ids, index)
            changes |= {"hash_offsets": offsets, "hash_ids": ids}
        return replace(self, **changes)

    def scaled(self, rate: float) -> Traffic:
        """The same requests ``rate`` times as fast."""
        if not (np.isfinite(rate) and rate > 0):
            raise TrivetError(f"{rate} is not a positive factor", field="rate")
        return replace(self, arrival_s=self.arrival_s / rate)


_PER_REQUEST = (
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "think_s",
    "priority",
    "client",
    "model",
    "adapter",
    "image_tokens",
    "reasoning_tokens",
)


def _array(raw: Any, dtype: Any, field: str) -> NDArray[Any]:
    try:
        array = np.ascontiguousarray(raw, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise TrivetError(f"not an array of numbers: {error}", field=field) from error
    if array.ndim != 1:
        raise TrivetError(f"{array.ndim} dimensions", field=field, allowed="one")
    return array


def _check(values: NDArray[Any], bad: NDArray[Any], field: str, what: str, allowed: str) -> None:
    if bad.any():
        first = int(np.argmax(bad))
        raise TrivetError(f"request {first}: {values[first]} {what}", field=field, allowed=allowed)


_MERGE_DEFAULTS = {"priority": 0, "adapter": -1, "image_tokens": 0, "reasoning_tokens": 0, "think_s": 0.0}


def merge(parts: Sequence[Traffic], *, label: str = "model") -> Traffic:
    """Several traffics on one clock; ``label`` ("model", "client" or "") numbers the part a request is from.

    Prefixes of different parts never meet. Raises TrivetError when the parts differ in ``block_tokens`` or limit
    their concurrency, which has no meaning across parts.
    """
    if not parts:
        raise TrivetError("nothing to merge", field="parts")
    if any(p.max_concurrency for p in parts):
        raise TrivetError("closed loops cannot be merged", field="max_concurrency")
    order = np.argsort(np.concatenate([p.arrival_s for p in parts]), kind="stable")
    sizes = [len(p) for p in parts]
    joined: dict[str, Any] = {}
    for field in ("arrival_s", "input_tokens", "output_tokens"):
        joined[field] = np.concatenate([getattr(p, field) for p in parts])[order]
    for field, default in _MERGE_DEFAULTS.items():
        if any(getattr(p, field) is not None for p in parts):
            columns = [
                np.full(len(p), default) if getattr(p, field) is None else getattr(p, field) for p in parts
            ]
            joined[field] = np.concatenate(columns)[order]
    if label:
        joined[label] = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)[order]
        joined[f"{label}_names"] = tuple(p.name for p in parts)
    if any(p.previous is not None for p in parts):
        starts = np.repeat(np.concatenate(([0], np.cumsum(sizes)[:-1])), sizes)
        links = np.concatenate([np.full(len(p), -1) if p.previous is None else p.previous for p in parts])
        rank = np.empty(order.size + 1, np.int64)
        rank[order], rank[-1] = np.arange(order.size), -1  # the last entry answers for -1
        joined["previous"] = rank[np.where(links < 0, -1, links + starts)][order]
    return Traffic(**joined, **_merged_hashes(parts, order))


def _merged_hashes(parts: Sequence[Traffic], order: NDArray[np.int64]) -> dict[str, Any]:
    blocks = {p.block_tokens for p in parts if p.hash_ids is not None}
    if not blocks:
        return {}
    if len(blocks) > 1:
        raise TrivetError(f"the parts differ: {sorted(blocks)}", field="block_tokens")
    ids, sizes, first = [], [], 0
    for p in parts:
        if p.hash_ids is None or p.hash_offsets is None:
            sizes.append(np.zeros(len(p), np.int64))
            continue
        ids.append(p.hash_ids + first)
        sizes.append(np.diff(p.hash_offsets))
        first += int(p.hash_ids.max(initial=-1)) + 1
    offsets, gathered = _gather(
        np.concatenate(([0], np.cumsum(np.concatenate(sizes)))), np.concatenate(ids), order
    )
    return {"hash_offsets": offsets, "hash_ids": gathered, "block_tokens": blocks.pop()}


def _gather(offsets: Longs, ids: Longs, index: NDArray[np.int64]) -> tuple[Longs, Longs]:
    """Rows ``index`` of a CSR array."""
    sizes = np.diff(offsets)[index]
    new = np.concatenate(([0], np.cumsum(sizes)))
    return new, ids[np.repeat(offsets[index] - new[:-1], sizes) + np.arange(new[-1])]
