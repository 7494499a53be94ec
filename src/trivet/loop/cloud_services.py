"""The services of a cloud's week: a deployment each, replicas by the hour, SLO attainment, watts, and the check.

Fluid by the hour: within an hour a service is in the steady state of ``cloud/serving/rate.py`` at the hour's busiest ten
minutes, with the lengths of the customers that are active then. Burstiness is that of requests drawn at full rate in the
busiest window of each six hours, where the request-level simulator also says what a rank carries; the ratio to the fluid
rate corrects those six hours. Other hours, sampled, are then simulated too, and the difference is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.rate import QUANTILES, Load, load, open_loop
from trivet.cloud.serving.tenants_traffic import LENGTH_WINDOWS, WINDOW_S, Service, generate
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import DoesNotFit, TrivetError
from trivet.loop.cloud_scenario import CloudScenario, ServiceSpec
from trivet.loop.plan import Candidate, Goal, Slo, scaled, search
from trivet.loop.plan_verify import judge
from trivet.loop.space import Space
from trivet.units import Z80

Floats = NDArray[np.float64]
Told = Callable[[str, int, int], None]
HOUR_WINDOWS = 6
DRAWN = 60_000  # requests of the peak that plan's search sees
JUDGED = 25_000  # requests of a window that are simulated, up to twice as many where one replica takes more
BEYOND = 8.0  # times the cards: then no number of them is said to keep the SLO
PERCENTILES = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999])


@dataclass(frozen=True, slots=True, eq=False)
class Sized:
    """One service on one chip. Arrays by hour of the week."""

    spec: ServiceSpec
    chip: str
    candidate: Candidate
    rate_per_s: Floats  # mean
    busiest_per_s: Floats  # of the hour's ten-minute windows
    loads: tuple[Load, ...]
    rank_rate: Floats  # requests a second that one rank carries within the SLO
    correction: Floats  # simulated over fluid rate, found in the busiest window of the six hours
    replicas: NDArray[np.int64]  # needed
    slow_chips: Floats  # with steps at the upper end of their 80% interval, on the deployment that then needs least
    fast_chips: Floats

    @property
    def chips_per_replica(self) -> int:
        return self.candidate.compiled.deployment.layout.chips

    @property
    def ranks(self) -> int:
        return self.candidate.compiled.deployment.layout.attention_dp


def week_windows(service: Service, scenario: CloudScenario) -> NDArray[np.int64]:
    """Requests of each ten-minute window of the week; a record shorter than that repeats."""
    count = scenario.days * 144
    columns = (scenario.first_day * 144 + np.arange(count)) % service.windows
    return np.asarray(service.requests.sum(axis=0)[columns], np.int64)


def window_at(service: Service, scenario: CloudScenario, index: int) -> Traffic:
    """The requests of one ten-minute window of the week, drawn at full rate."""
    start = (scenario.first_day * 144 + index) * WINDOW_S
    return generate(service, start_s=start, end_s=start + WINDOW_S, seed=scenario.seed)


class _Mixtures:
    """Length moments of whichever customers are active: their histograms on a common grid, mixed by their requests."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.grid = np.unique(np.round(np.geomspace(1, 2**20, 400)))
        self.inputs = self._histograms(service.inputs)
        tokens, probability, offsets = service.outputs.tokens, service.outputs.probability, service.outputs.offsets
        out = np.maximum(tokens.astype(float), 1.0)
        mass = np.add.reduceat(probability, offsets[:-1])
        self.outputs = np.stack(
            [
                np.add.reduceat(f * probability, offsets[:-1]) / mass
                for f in (out, out**2, 1.0 / np.maximum(out - 1.0, 1.0))
            ],
            axis=1,
        )
        self.means = np.add.reduceat(
            np.maximum(service.inputs.tokens, 1) * service.inputs.probability, service.inputs.offsets[:-1]
        )
        self.means = self.means / np.add.reduceat(service.inputs.probability, service.inputs.offsets[:-1])

    def _histograms(self, table: Any) -> Floats:
        rows = len(table.offsets) - 1
        row = np.repeat(np.arange(rows), np.diff(table.offsets))
        column = np.searchsorted(self.grid, np.maximum(table.tokens, 1), side="right") - 1
        flat = np.bincount(row * len(self.grid) + column, table.probability, rows * len(self.grid))
        histogram = flat.reshape(rows, len(self.grid))
        return np.asarray(histogram / histogram.sum(axis=1, keepdims=True))

    def load(self, column: int, rate_per_s: float, dispersion: float) -> Load | None:
        """The load of window ``column`` of the record; None where nobody asks."""
        requests = self.service.requests[:, column].astype(float)
        if requests.sum() <= 0:
            return None
        row, share = self.service.row[:, column // LENGTH_WINDOWS], requests / requests.sum()
        cdf = np.cumsum(share @ self.inputs[row])
        points = (np.arange(QUANTILES) + 0.5) / QUANTILES
        quantiles = np.interp(points, cdf, self.grid)
        quantiles = quantiles * (float(share @ self.means[row]) / quantiles.mean())
        mean, square, inverse = share @ self.outputs[row]
        return Load(rate_per_s, rate_per_s, quantiles, float(mean), float(square), float(inverse), dispersion)


def split_load(demand: Load, total_per_s: float, rank_per_s: float) -> Load:
    """The load of one rank that gets ``rank_per_s`` of the service's ``total_per_s`` at random.

    Splitting thins the counts: their variance over mean falls to ``1 + (D - 1) p`` with the share ``p``.
    """
    share = min(rank_per_s / max(total_per_s, 1e-12), 1.0)
    return replace(demand, arrival_dispersion=1.0 + (demand.arrival_dispersion - 1.0) * share)


def _point(candidate: Candidate, demand: Load, rate: float, percentile: float, factor: float = 1.0) -> Any:
    table = candidate.compiled.table if factor == 1.0 else scaled(candidate.compiled.table, factor)
    return open_loop(table, demand, np.array(rate), np.array(float(candidate.token_budget)),
                     np.array(float(candidate.max_num_seqs)), percentile)  # fmt: skip


def _keeps(point: Any, spec: ServiceSpec) -> bool:
    return bool(point.limit == 0 and point.ttft_s <= spec.ttft_s and point.tpot_s <= spec.tpot_s)


def carried_per_rank(
    candidate: Candidate, demand: Load, total_per_s: float, spec: ServiceSpec, factor: float = 1.0
) -> float:
    """The highest rate of one rank that keeps the SLO; 0 where none does. ``factor`` stretches every step."""

    def good(rate: float) -> bool:
        return _keeps(_point(candidate, split_load(demand, total_per_s, rate), rate, spec.percentile, factor), spec)

    low, high = 1e-3, 1e-3
    if not good(low):
        return 0.0
    while high < 1e4 and good(high * 2):
        high *= 2
    low, high = high, high * 2
    for _ in range(10):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def thinned(traffic: Traffic, share: float, seed: int) -> Traffic:
    """Each request with probability ``share``: what a part of the fleet sees."""
    kept = np.random.default_rng(seed).random(traffic.arrival_s.size) < share
    return Traffic(traffic.arrival_s[kept], traffic.input_tokens[kept], traffic.output_tokens[kept], name=traffic.name)


def _judged(
    candidate: Candidate, window: Traffic, rank_per_s: float, spec: ServiceSpec, seed: int
) -> dict[str, Any] | None:
    """Some replicas simulated under their part of a drawn window, at ``rank_per_s`` each rank; None with too few requests."""
    total = window.arrival_s.size / WINDOW_S if window.arrival_s.size else 0.0
    per_replica = rank_per_s * candidate.compiled.deployment.layout.attention_dp
    count = max(1, min(round(JUDGED / max(per_replica * WINDOW_S, 1e-9)), int(total / max(per_replica, 1e-9)), 64))
    part = thinned(window, count * per_replica / max(total, 1e-9), seed)
    if part.arrival_s.size > 2 * JUDGED:  # one replica alone is that fast: its first minutes tell
        part = Traffic(
            part.arrival_s[: 2 * JUDGED],
            part.input_tokens[: 2 * JUDGED],
            part.output_tokens[: 2 * JUDGED],
            name=part.name,
        )
    if part.arrival_s.size < 50:
        return None
    return {
        **judge(replace(candidate, replicas=count), part, Slo(spec.ttft_s, spec.tpot_s, spec.percentile)),
        "replicas": count,
    }


def simulated_per_rank(candidate: Candidate, window: Traffic, guess: float, spec: ServiceSpec, seed: int) -> float:
    """The highest rate of one rank that keeps the SLO in the request-level simulator, to 6%; 0 where none near does."""
    low, high = 0.0, guess * 4.0
    rate = guess
    for _ in range(7):
        judged = _judged(candidate, window, rate, spec, seed)
        if judged is not None and judged["holds"]:
            low = rate
        else:
            high = rate
        if low > 0 and high / low < 1.06:
            break
        rate = math.sqrt(low * high) if low > 0 else high / 2.0
    return low


def choose(
    spec: ServiceSpec, chip: str, architecture: Any, peak: Traffic, demand: Load, scenario: CloudScenario, told: Told
) -> tuple[Candidate, list[Candidate]]:
    """The aggregated deployment of plan's ladder that carries most a chip in the simulator at the week's peak, and the ladder.

    Raises DoesNotFit where none keeps the SLO.
    """
    stretch = Traffic(peak.arrival_s[:DRAWN], peak.input_tokens[:DRAWN], peak.output_tokens[:DRAWN], name=spec.name)
    space = Space((chip,), modes=("aggregated",), max_chips_per_replica=spec.max_chips_per_replica,
                  price_basis=scenario.price_basis)  # fmt: skip
    found = search(Goal(architecture, stretch, Slo(spec.ttft_s, spec.tpot_s, spec.percentile)), space, told)
    total = peak.arrival_s.size / WINDOW_S
    best: tuple[float, Candidate] | None = None
    ladder = next(iter(found.by_chip.values()), ())
    for k, i in enumerate(ladder):
        told(f"simulating {spec.name} on {chip}", k, len(ladder))
        candidate = found.candidates[i]
        fluid = carried_per_rank(candidate, demand, total, spec)
        carried = simulated_per_rank(candidate, peak, fluid, spec, scenario.seed) if fluid > 0 else 0.0
        layout = candidate.compiled.deployment.layout
        per_chip = carried * layout.attention_dp / layout.chips
        if carried > 0 and (best is None or per_chip > best[0]):
            best = (per_chip, candidate)
    if best is None:
        lost = max(found.rejected, key=lambda k: found.rejected[k], default="the simulator finds none")
        raise DoesNotFit(
            f"no deployment of {spec.model} on {chip} keeps the SLO: {lost}", field=f"services.{spec.name}"
        )
    return best[1], [found.candidates[i] for i in ladder]


def size(
    service: Service, spec: ServiceSpec, chip: str, architecture: Any, scenario: CloudScenario, told: Told
) -> Sized:
    """A deployment and the replicas that each hour needs."""
    windows = week_windows(service, scenario)
    by_hour = windows.reshape(-1, HOUR_WINDOWS)
    busiest = by_hour.max(axis=1) / WINDOW_S
    busiest_window = by_hour.argmax(axis=1) + np.arange(len(by_hour)) * HOUR_WINDOWS
    if windows.max() < 2:
        raise TrivetError("has no requests in this week", field=f"services.{service.name}")
    mixtures = _Mixtures(service)

    def load_of(hour: int, dispersion: float) -> Load | None:
        column = (scenario.first_day * 144 + int(busiest_window[hour])) % service.windows
        return mixtures.load(column, float(busiest[hour]), dispersion)

    peak = window_at(service, scenario, int(windows.argmax()))
    drawn = load(peak.arrival_s, peak.input_tokens.astype(float), peak.output_tokens.astype(float))
    candidate, ladder = choose(spec, chip, architecture, peak, drawn, scenario, told)
    hours_a_block = LENGTH_WINDOWS // HOUR_WINDOWS
    loads: list[Load | None] = []
    correction, known = np.ones(len(by_hour)), 1.0
    for b in range(len(by_hour) // hours_a_block):
        told(f"simulating {spec.name} on {chip}", b, len(by_hour) // hours_a_block)
        hours = range(b * hours_a_block, (b + 1) * hours_a_block)
        top = max(hours, key=lambda h: busiest[h])
        window = window_at(service, scenario, int(busiest_window[top]))
        dispersion = 1.0
        if window.arrival_s.size >= 100:
            # ``load`` takes whole numbers of tokens as well.
            dispersion = load(window.arrival_s, window.input_tokens, window.output_tokens).arrival_dispersion  # type: ignore[arg-type]
            demand = load_of(top, dispersion)
            fluid = carried_per_rank(candidate, demand, float(busiest[top]), spec) if demand else 0.0
            if fluid > 0:
                carried = simulated_per_rank(candidate, window, fluid * known, spec, scenario.seed)
                known = carried / fluid if carried > 0 else known
        correction[list(hours)] = known
        loads += [load_of(h, dispersion) for h in hours]
    some = next(x for x in loads if x is not None)
    filled = tuple(x if x is not None else some for x in loads)
    return _counted(spec, chip, candidate, ladder, by_hour, busiest, filled, correction, scenario)


def _replicas(
    candidate: Candidate, spec: ServiceSpec, loads: Sequence[Load], busiest: Floats, correction: Floats, headroom: float,
    factor: float,
) -> tuple[NDArray[np.int64], Floats] | None:
    """(replicas, rate that a rank carries) by hour with every step ``factor`` as long; None where no hour keeps the SLO."""
    carried = np.array(
        [carried_per_rank(candidate, x, max(float(t), 1e-6), spec, factor) for x, t in zip(loads, busiest, strict=True)]
    )
    carried *= correction
    if not (carried > 0).any():
        return None
    # Where the lengths of an hour break the SLO at any sensible rate, a quarter of the usual rate serves: it misses.
    carried = np.maximum(carried, 0.25 * float(np.median(carried[carried > 0])))
    ranks = candidate.compiled.deployment.layout.attention_dp
    return np.maximum(np.ceil(busiest * (1.0 + headroom) / (carried * ranks)), 1).astype(np.int64), carried


def _counted(
    spec: ServiceSpec, chip: str, candidate: Candidate, ladder: Sequence[Candidate], by_hour: NDArray[np.int64],
    busiest: Floats, loads: tuple[Load, ...], correction: Floats, scenario: CloudScenario,
) -> Sized:  # fmt: skip
    """Replicas by hour, and chips at both ends of the step times' 80% interval.

    At an end another deployment of the ladder may need fewer: who knew the steps would choose that one.
    """
    middle = _replicas(candidate, spec, loads, busiest, correction, scenario.headroom, 1.0)
    if middle is None:
        raise DoesNotFit(f"no rate keeps the SLO on {chip}", field=f"services.{spec.name}")
    replicas, rank_rate = middle
    own = replicas * float(candidate.compiled.deployment.layout.chips)
    ends = []
    for sign in (1.0, -1.0):
        best: Floats | None = None
        for other in ladder:
            factor = math.exp(sign * Z80 * other.compiled.table.log_sigma)
            found = _replicas(other, spec, loads, busiest, correction, scenario.headroom, factor)
            if found is not None:
                chips = np.asarray(found[0], np.float64) * other.compiled.deployment.layout.chips
                if best is None or chips.mean() < best.mean():
                    best = chips
        ends.append(np.full(len(own), np.inf) if best is None else best)
    if ends[0].mean() > BEYOND * own.mean():  # an SLO on a cliff: cards do not buy it back
        ends[0] = np.full(len(own), np.inf)
    slow, fast = np.maximum(ends[0], own), np.minimum(ends[1], own)
    rate = by_hour.mean(axis=1) / WINDOW_S
    return Sized(spec, chip, candidate, rate, busiest, loads, rank_rate, correction, replicas, slow, fast)


def attainment(sized: Sized, replicas: Floats) -> tuple[Floats, Floats, Floats]:
    """(share of requests within the SLO, watts a chip, busy) by hour with ``replicas`` serving (may be fractional).

    The fluid answer is read at the rate over the simulator's correction, so that both agree on what a rank carries.
    """
    hours = len(sized.rate_per_s)
    share, watts, busy = np.zeros(hours), np.zeros(hours), np.zeros(hours)
    item, c = sized.candidate.compiled, sized.candidate
    budget, limit = np.array(float(c.token_budget)), np.array(float(c.max_num_seqs))
    served = np.maximum(replicas, 1e-9) * sized.ranks
    for h in range(hours):
        if replicas[h] <= 0:
            continue
        demand = sized.loads[h]
        rate = sized.busiest_per_s[h] / served[h]
        part = split_load(demand, float(sized.busiest_per_s[h]), float(rate))
        for p in PERCENTILES:
            if not _keeps(_point(c, part, rate / sized.correction[h], float(p)), sized.spec):
                break
            share[h] = p
        mean_rate = min(sized.rate_per_s[h] / served[h], 1.02 * sized.rank_rate[h])
        mean = open_loop(item.table, part, np.array(mean_rate), budget, limit, 0.0)
        used = float(np.clip(mean.busy, 0.0, 1.0))
        read = (
            item.work.weight_bytes
            + min(float(mean.batch), c.max_num_seqs) * demand.context_mean * item.work.kv_bytes_per_token
        )
        flops = item.work.flops_per_token * mean_rate * demand.tokens
        watts[h] = float(item.economics.watts(np.array(used), flops, used * read / max(float(mean.tpot_mean_s), 1e-6)))
        busy[h] = used
    return share, watts, busy


def check_hours(sized: Sized, service: Service, scenario: CloudScenario) -> list[dict[str, Any]]:
    """Sampled hours simulated request by request beside the fluid answer, other hours than the one that was fitted.

    The second busiest hour, the median and the quietest; a large fleet as a part of it under its part of the traffic.
    """
    order = np.argsort(-sized.busiest_per_s, kind="stable")
    picks = [order[int(1 + q * (len(order) - 2))] for q in np.linspace(0.0, 1.0, max(scenario.checks_per_service, 1))]
    fluid, _, _ = attainment(sized, sized.replicas.astype(float))
    rows = []
    for hour in dict.fromkeys(int(h) for h in picks[: scenario.checks_per_service]):
        windows = week_windows(service, scenario)[hour * HOUR_WINDOWS : (hour + 1) * HOUR_WINDOWS]
        window = window_at(service, scenario, hour * HOUR_WINDOWS + int(np.argmax(windows)))
        rate = sized.busiest_per_s[hour] / (sized.replicas[hour] * sized.ranks)
        judged = _judged(sized.candidate, window, float(rate), sized.spec, scenario.seed + 1)
        if judged is None:
            continue
        demand = split_load(sized.loads[hour], float(sized.busiest_per_s[hour]), float(rate))
        point = _point(sized.candidate, demand, rate / sized.correction[hour], sized.spec.percentile)
        rows.append({
            "service": sized.spec.name, "hour": hour, "replicas": int(sized.replicas[hour]),
            "simulated_replicas": judged["replicas"], "requests": judged["requests"], "fluid_ttft_s": float(point.ttft_s),
            "simulated_ttft_s": judged["ttft_s"], "fluid_tpot_s": float(point.tpot_s), "simulated_tpot_s": judged["tpot_s"],
            "fluid_attainment": float(fluid[hour]), "simulated_attainment": judged["attainment"],
        })  # fmt: skip
    return rows
