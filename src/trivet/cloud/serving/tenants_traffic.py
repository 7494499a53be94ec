"""Many customers on one service: traffic as a sum of clients, each with its own rate, burstiness and lengths.

The model is ServeGen's (Xiang et al., arXiv 2505.09999): a client is a request rate, an inter-arrival
family (Gamma or Weibull) with its CV for each 10-minute window, and distributions of input and output
lengths for each 6 hours; input and output are drawn independently. Where a client has no lengths in a
window, its nearest window in time answers; where it has none at all, the service's pool. A service recorded
for one day repeats its day.

``stream`` makes a service window by window in constant memory; a window depends on the seed, the service,
the client and the window alone, so the same day comes out whichever part of it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.traffic import Traffic, merge
from trivet.errors import TrivetError

WINDOW_S = 600.0
LENGTH_WINDOWS = 36  # windows that share one length distribution: 6 hours
DAY_WINDOWS = 144

# Which model a service of Alibaba Cloud Model Studio runs is not published. These are our assumptions: open
# models of # the services' size classes. Callers print them and take others.
ASSUMED_MODELS = {
    "m-small": "Qwen/Qwen3-30B-A3B",
    "m-mid": "Qwen/Qwen3-32B",
    "m-large": "Qwen/Qwen3-235B-A22B",
    "deepseek-r1": "deepseek-ai/DeepSeek-R1",
}


@dataclass(frozen=True, slots=True, eq=False)
class LengthTables:
    """Histograms in CSR form: row r has ``tokens[offsets[r]:offsets[r+1]]`` with their probabilities."""

    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    probability: NDArray[np.float64]

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        part = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[part], self.probability[part]


@dataclass(frozen=True, slots=True, eq=False)
class Service:
    """The clients of one service.

    Args:
        name: of the service.
        clients: int32 [clients], their ids in the source.
        requests: int32 [clients, windows], requests of each 10-minute window.
        cv: float32 [clients, windows], of the times between arrivals.
        weibull: bool [clients, windows]; Gamma where False.
        row: int32 [clients, windows / 36], row of the length tables.
        inputs, outputs: length distributions; the last row is the service's pool.
        measured_lengths: bool [clients], False where the pool stands in.
    """

    name: str
    clients: NDArray[np.int32]
    requests: NDArray[np.int32]
    cv: NDArray[np.float32]
    weibull: NDArray[np.bool_]
    row: NDArray[np.int32]
    inputs: LengthTables
    outputs: LengthTables
    measured_lengths: NDArray[np.bool_]

    @property
    def windows(self) -> int:
        """Length of the record, after which it repeats: a whole number of days."""
        return int(self.requests.shape[1])

    def rate_per_s(self) -> NDArray[np.float64]:
        """Requests per second in each window, all clients together."""
        return np.asarray(self.requests.sum(axis=0) / WINDOW_S)

    def mean_tokens(self) -> tuple[float, float]:
        """Mean input and output tokens of a request, weighted by the clients' requests."""
        weights = np.zeros(self.inputs.offsets.size - 1)
        per_length = self.requests.reshape(len(self.clients), -1, LENGTH_WINDOWS).sum(axis=2)
        np.add.at(weights, self.row, per_length)
        means = []
        for table in (self.inputs, self.outputs):
            sums = np.add.reduceat(np.maximum(table.tokens, 1) * table.probability, table.offsets[:-1])
            mass = np.add.reduceat(table.probability, table.offsets[:-1])
            means.append(float((weights * sums / mass).sum() / weights.sum()))
        return means[0], means[1]


def build_service(
    name: str,
    rates: Mapping[str, NDArray[Any]],
    lengths: Mapping[str, NDArray[Any]],
) -> Service:
    """A service from long tables.

    Args:
        rates: columns ``client window requests cv weibull``, one row a client and 10-minute window.
        lengths: columns ``client window output tokens probability`` in order of (client, window, output),
            one row a bin; ``window`` in 10 minutes, ``output`` 1 for output lengths and 0 for input lengths.

    Raises:
        TrivetError: a column with impossible values, or lengths without their other half.
    """
    _check_columns(name, rates, lengths)
    clients = np.unique(rates["client"]).astype(np.int32)
    days = -(-(int(rates["window"].max()) + 1) // DAY_WINDOWS)
    shape = (clients.size, days * DAY_WINDOWS)
    at = np.searchsorted(clients, rates["client"]), rates["window"]
    requests, cv, weibull = np.zeros(shape, np.int32), np.ones(shape, np.float32), np.zeros(shape, bool)
    requests[at], cv[at], weibull[at] = rates["requests"], rates["cv"], rates["weibull"]

    key = (lengths["client"].astype(np.int64) << 32) | (lengths["window"].astype(np.int64) << 1) | lengths["output"]
    starts = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    bounds = np.append(starts, key.size)
    is_output = lengths["output"][starts].astype(bool)
    owner, window = lengths["client"][starts], lengths["window"][starts]
    pairs = is_output.size // 2
    if is_output.size % 2 or is_output[::2].any() or not is_output[1::2].all():
        raise TrivetError(f"{name}: input and output lengths do not come in pairs", field="output")
    row, measured = _rows(
        clients, days * DAY_WINDOWS // LENGTH_WINDOWS, owner[::2], window[::2] // LENGTH_WINDOWS, pairs
    )
    weights = np.bincount(row.ravel(), requests.reshape(clients.size, -1, LENGTH_WINDOWS).sum(2).ravel(), pairs + 1)[
        :pairs
    ]
    tables = []
    for half in (0, 1):
        parts = [slice(a, b) for a, b in zip(bounds[half:-1:2], bounds[half + 1 :: 2], strict=True)]
        tables.append(_tables(lengths, parts, np.asarray(weights, float) if weights.sum() > 0 else np.ones(pairs)))
    return Service(name, clients, requests, cv, weibull, row, tables[0], tables[1], measured)


def _check_columns(name: str, rates: Mapping[str, NDArray[Any]], lengths: Mapping[str, NDArray[Any]]) -> None:
    checks: tuple[tuple[Mapping[str, NDArray[Any]], str, Callable[[Any], Any]], ...] = (
        (rates, "client", lambda v: v >= 0),
        (rates, "window", lambda v: (v >= 0) & (v < 366 * DAY_WINDOWS)),
        (rates, "requests", lambda v: v >= 0),
        (rates, "cv", lambda v: np.isfinite(v) & (v >= 0)),
        (lengths, "client", lambda v: v >= 0),
        (lengths, "window", lambda v: v >= 0),
        (lengths, "tokens", lambda v: v >= 0),
        (lengths, "probability", lambda v: np.isfinite(v) & (v > 0)),
    )
    for table, column, good in checks:
        if column not in table:
            raise TrivetError(f"{name}: missing", field=column)
        bad = ~good(np.asarray(table[column]))
        if bad.any():
            at = int(np.argmax(bad))
            raise TrivetError(f"{name} row {at}: {table[column][at]} cannot be", field=column)
    if not len(rates["client"]) or not len(lengths["client"]):
        raise TrivetError(f"{name}: no rates or no lengths", field="clients")


def _rows(
    clients: NDArray[np.int32], windows: int, owner: NDArray[Any], window: NDArray[Any], pool: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """For each client and 6 hours the length row nearest in time; ``pool`` where the client has none."""
    row = np.full((clients.size, windows), pool, np.int32)
    measured = np.zeros(clients.size, bool)
    for c, client in enumerate(clients):
        mine = np.flatnonzero(owner == client)
        if mine.size:
            distance = np.abs(np.arange(windows)[:, None] - window[mine][None, :])
            row[c], measured[c] = mine[distance.argmin(axis=1)], True
    return row, measured


def _tables(lengths: Mapping[str, NDArray[Any]], parts: list[slice], weights: NDArray[np.float64]) -> LengthTables:
    tokens = [np.maximum(lengths["tokens"][p], 1).astype(np.int32) for p in parts]
    mass = [lengths["probability"][p].astype(float) / lengths["probability"][p].sum() for p in parts]
    every, inverse = np.unique(np.concatenate(tokens), return_inverse=True)
    spread = np.repeat(weights / weights.sum(), [t.size for t in tokens])
    pooled = np.bincount(inverse, spread * np.concatenate(mass), every.size)
    kept = pooled > 0
    tokens.append(every[kept].astype(np.int32))
    mass.append(pooled[kept])
    offsets = np.concatenate(([0], np.cumsum([t.size for t in tokens])))
    return LengthTables(offsets, np.concatenate(tokens), np.concatenate(mass))


def stream(
    service: Service,
    *,
    start_s: float = 0.0,
    end_s: float = 86400.0,
    seed: int = 0,
    rate: float = 1.0,
    block_windows: int = 1,
) -> Iterator[Traffic]:
    """The service's requests, block by block in order of time; times count from the start of the record.

    Args:
        start_s, end_s: part of the record, multiples of 600 s; beyond its end it repeats.
        rate: times the source's own rate (per client, bursts kept).
        block_windows: 10-minute windows in one block.

    Yields:
        ``Traffic`` with ``client`` (position in ``service.clients``); a block may be empty.

    Raises:
        TrivetError: bounds that are no multiples of a window, a rate that is not positive.
    """
    first, last = _window(start_s, "start_s"), _window(end_s, "end_s")
    if last < first:
        raise TrivetError(f"{end_s} before start_s {start_s}", field="end_s")
    if not (np.isfinite(rate) and rate > 0):
        raise TrivetError(f"{rate} is not a positive factor", field="rate")
    if block_windows < 1:
        raise TrivetError(f"{block_windows} windows", field="block_windows", allowed="1 or more")
    maker = _Maker(service, seed, rate)
    names = tuple(str(c) for c in service.clients)
    for begin in range(first, last, block_windows):
        parts = [maker.window(w) for w in range(begin, min(last, begin + block_windows))]
        time, inputs, outputs, client = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        yield Traffic(time, inputs, outputs, client=client, client_names=names, name=service.name)


def _window(time_s: float, field: str) -> int:
    count = time_s / WINDOW_S
    if not (np.isfinite(count) and count >= 0 and abs(count - round(count)) < 1e-9):
        raise TrivetError(f"{time_s} s is not a multiple of {WINDOW_S:g} s from 0 on", field=field)
    return round(count)


class _Maker:
    """Alias tables and scratch of one stream, reused from window to window."""

    def __init__(self, service: Service, seed: int, rate: float):
        from trivet.cloud.serving import _loop_tenants as loop

        self.loop, self.service, self.rate = loop, service, float(rate)
        self.seed = int(seed) & (2**63 - 1)
        self.stream = int.from_bytes(service.name.encode()[:7].ljust(7, b"\0"), "little")
        self.tables = [self._alias(t) for t in (service.inputs, service.outputs)]
        self.scratch: tuple[NDArray[Any], ...] = ()

    def _alias(self, table: LengthTables) -> tuple[NDArray[Any], ...]:
        threshold, other = np.empty(table.tokens.size, np.uint32), np.empty(table.tokens.size, np.int32)
        self.loop.build_alias(table.offsets, table.probability, threshold, other)
        return table.offsets, table.tokens, threshold, other

    def window(self, index: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        s, loop = self.service, self.loop
        column = index % s.windows
        requests, begin = np.ascontiguousarray(s.requests[:, column]), index * WINDOW_S
        counts = np.empty(requests.size, np.int64)
        total = loop.window_counts(self.seed, self.stream, index, self.rate, s.clients, requests, counts)
        if not self.scratch or self.scratch[0].size < total:
            room = int(total * 1.25) + 64
            self.scratch = (
                np.empty(room),
                np.empty(room, np.int32),
                np.empty(room, np.int32),
                np.empty(room, np.int32),
                np.empty(room + 1, np.int64),
            )
        raw, place = [a[:total] for a in self.scratch[:4]], self.scratch[4][: total + 1]
        rows = np.ascontiguousarray(s.row[:, column // LENGTH_WINDOWS])
        loop.fill_window(
            self.seed,
            self.stream,
            index,
            begin,
            WINDOW_S,
            self.rate,
            s.clients,
            requests,
            np.ascontiguousarray(s.cv[:, column]),
            np.ascontiguousarray(s.weibull[:, column]),
            rows,
            rows,
            self.tables[0],
            self.tables[1],
            counts,
            *raw,
        )
        out = tuple(np.empty_like(a) for a in raw)
        if total:
            loop.sort_window(begin, WINDOW_S, *raw, place, *out)
        return out[0], out[1], out[2], out[3]


def generate(service: Service, **settings: Any) -> Traffic:
    """All of a (short) :func:`stream` at once, on a clock that starts at ``start_s``."""
    start_s = float(settings.get("start_s", 0.0))
    parts = list(stream(service, **settings))
    joined: dict[str, Any] = {
        f: np.concatenate([getattr(p, f) for p in parts]) for f in ("input_tokens", "output_tokens", "client")
    }
    time = np.concatenate([p.arrival_s for p in parts]) - start_s
    return Traffic(time, **joined, client_names=parts[0].client_names, name=service.name)


def generate_all(services: Mapping[str, Service], **settings: Any) -> Traffic:
    """Several services on one clock; ``model`` numbers them in order."""
    return merge([generate(s, **settings) for s in services.values()])
