"""A fleet's simulation under way: build the loop's arrays, run it whole or block by block, hand out what ended."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import EngineSettings
from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving._loop_cache import Cache
from trivet.cloud.serving._loop_group import Group
from trivet.cloud.serving._loop_time import Tables
from trivet.cloud.serving.adapters import adapters_of, new_lora
from trivet.cloud.serving.batching import batching
from trivet.cloud.serving.faults import link_rates
from trivet.cloud.serving.fleet_spec import ROLES, Fleet, check
from trivet.cloud.serving.images import image_tokens, with_images
from trivet.cloud.serving.kvcache import dense_ids, new_cache
from trivet.cloud.serving.lockstep import new_group, own_table
from trivet.cloud.serving.router import PYTHON_ROUTERS, PythonRouter, router_code, view
from trivet.cloud.serving.steptime import compile_tables
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError

Longs = NDArray[np.int64]
SPECULATIVE_UNITS = 16  # a step's expected tokens are rounded to 1/16 token
PRIORITY_CLASSES = k.PRIORITIES
SPARE_BYTES = 1 << 26
# One run's rows of results, for the next: asking the system for fresh pages costs a quarter of a run.
_spare: list[Longs] = []


def tokens_per_step(settings: EngineSettings) -> float:
    """Expected tokens of a decode step with drafts: ``(1 - a^(n+1)) / (1 - a)`` (Leviathan et al., arXiv 2211.17192)."""
    n, a = settings.speculative_tokens, settings.acceptance
    if n == 0 or a == 0:
        return 1.0
    if not 0 <= a <= 1:
        raise TrivetError(f"{a}", field="acceptance", allowed="0 to 1")
    return float(n + 1) if a == 1 else (1 - a ** (n + 1)) / (1 - a)


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """Requests that have ended: one row each, columns ``O_*`` of the loop, picoseconds."""

    rows: Longs

    def seconds(self, column: int) -> NDArray[np.float64]:
        values = self.rows[:, column]
        return np.where(values < 0, np.nan, values / k.PS)


def _rows(fleet: Fleet, rows: Longs) -> None:
    """Fill the replicas' constants."""
    at = 0
    for number, kind in enumerate(fleet.kinds):
        settings, rules = kind.settings, kind.rules or batching(kind.settings)
        gain, unit = tokens_per_step(settings), 1
        if gain != 1.0:
            unit = SPECULATIVE_UNITS
            gain = max(round(gain * unit), unit)
        mixed = float(np.interp(settings.max_num_batched_tokens, kind.table.tokens, kind.table.mixed_s))
        part = rows[at : at + kind.count]
        for column, value in (
            (k.R_END, k.INF), (k.R_STATE, k.IDLE), (k.R_TABLE, number), (k.R_BLOCKS, kind.kv_blocks),
            (k.R_FREE, kind.kv_blocks), (k.R_QUEUE_TAIL, kind.kv_blocks), (k.R_MAX_SEQS, settings.max_num_seqs),
            (k.R_BUDGET, max(settings.max_num_batched_tokens, 1)), (k.R_ROLE, ROLES.index(kind.role)), (k.R_UP, k.ON),
            (k.R_MODE, int(rules.prefill_first)), (k.R_RESERVE, round(1024 * rules.reserve_output)), (k.R_GAIN, int(gain)),
            (k.R_UNIT, unit), (k.R_BLOCK, settings.block_size), (k.R_DECODE_TOKENS, 1 + settings.speculative_tokens),
            (k.R_ASYNC, int(rules.asynchronous)), (k.R_PREFIX, int(settings.prefix_caching)),
            (k.R_PREFILL_PS, round(mixed / settings.max_num_batched_tokens * k.PS)),
            (k.R_SWAP, round(rules.swap_block_s * k.PS)),
        ):  # fmt: skip
            part[:, column] = value
        at += kind.count


def _picoseconds(seconds: NDArray[np.float64]) -> Longs:
    return np.rint(np.asarray(seconds) * 1e12).astype(np.int64)


def priority_classes(priority: NDArray[np.int32] | None) -> NDArray[np.int32]:
    """Priorities as classes 0 (first) to 3: the values in order, later ones share the last class."""
    if priority is None or priority.size == 0 or int(priority.min()) == int(priority.max()):
        return np.zeros(0, np.int32)
    return np.minimum(np.unique(priority, return_inverse=True)[1], PRIORITY_CLASSES - 1).astype(np.int32)


def groups_of(fleet: Fleet, tables: Tables) -> Group:
    """The ranks in lock-step of a fleet that has some."""
    most = []
    for kind in fleet.kinds:
        seqs, drafts = kind.settings.max_num_seqs, kind.settings.speculative_tokens
        most.append((seqs, kind.settings.max_num_batched_tokens + seqs * (1 + drafts)))
    kinds = fleet.kinds
    return new_group(tables, [x.table for x in kinds], [x.count for x in kinds], [x.ranks for x in kinds], most)


class FleetRun:
    """A simulation under way: feed it traffic in blocks, in order; memory grows with what is in flight, not with time."""

    def __init__(
        self, fleet: Fleet, *, hash_ids: Longs | None = None, hash_block: int = 0, sessions: int = 0, adapters: int = 0
    ) -> None:
        check(fleet)
        self.fleet = fleet
        settings = [kind.settings for kind in fleet.kinds]
        max_seqs = [s.max_num_seqs for s in settings]
        units = [1 if tokens_per_step(s) == 1.0 else SPECULATIVE_UNITS for s in settings]
        self.tables = compile_tables(
            [own_table(kind.table) if fleet.lock_step else kind.table for kind in fleet.kinds],
            max_seqs, [s.max_num_batched_tokens for s in settings], units,
            with_host=not adapters and not fleet.lock_step,
        )  # fmt: skip
        block = max(s.block_size * u for s, u in zip(settings, units, strict=True))
        self.state = k.new_state(fleet.replicas, max(max_seqs), block, slots=0, out=0, sessions=sessions)
        _rows(fleet, self.state.replicas)
        if fleet.lock_step:
            self.state = self.state._replace(group=groups_of(fleet, self.tables), alone=None)
        if fleet.link_outages:
            self.state = self.state._replace(links=link_rates(fleet.link_outages, fleet.replicas))
        if adapters:
            each = [kind.adapters for kind in fleet.kinds for _ in range(kind.count)]
            self.state = self.state._replace(lora=new_lora(adapters, each))
        self._grow_slots(1024)
        self.cache = self._new_cache(hash_ids, hash_block)
        self.faults = fleet.events
        self._set_run()
        self.sent = 0
        for replica in range(fleet.replicas):
            pool = (
                self.state.load2_key if self.state.replicas[replica, k.R_ROLE] == k.ROLE_DECODE else self.state.load_key
            )
            pool[replica] = 0 if self.state.replicas[replica, k.R_UP] == k.ON else k.INF
        for key, tree in ((self.state.load_key, self.state.load_tree), (self.state.load2_key, self.state.load2_tree)):
            _rebuild(tree, key)

    def _new_cache(self, hash_ids: Longs | None, hash_block: int) -> Cache | None:
        on = all(kind.settings.prefix_caching for kind in self.fleet.kinds)
        if hash_ids is None or not on or not hash_block:
            return None
        sizes = {kind.settings.block_size for kind in self.fleet.kinds}
        if len(sizes) > 1:
            raise TrivetError(f"{sorted(sizes)} differ", field="block_size", allowed="one size with a prefix cache")
        self.state.run[k.G_HASH_BLOCK] = hash_block
        blocks = [kind.kv_blocks for kind in self.fleet.kinds for _ in range(kind.count)]
        tiers = [kind.tiers for kind in self.fleet.kinds for _ in range(kind.count)]
        return new_cache(dense_ids(hash_ids), hash_block, sizes.pop(), blocks, tiers)

    def _set_run(self) -> None:
        fleet, run, rows = self.fleet, self.state.run, self.state.replicas
        code = router_code(fleet.router)
        run[k.G_ROUTER] = code if code >= 0 else k.LEAST_OUTSTANDING
        run[k.G_BUCKET] = k.PS // 10
        run[k.G_POOLS] = int(any(kind.role != "both" for kind in fleet.kinds))
        run[k.G_RANDOM] = (88172645463325252 + 0x9E3779B97F4A7C1 * fleet.seed) & 0x7FFFFFFFFFFFFFFF or 1
        run[k.G_MAX_RETRIES], run[k.G_RETRY_DELAY] = fleet.retries.limit, round(fleet.retries.delay_s * k.PS)
        run[k.G_MAX_QUEUE] = fleet.admission.max_queue
        run[k.G_SLO_TTFT] = round(fleet.admission.max_wait_s * k.PS)
        run[k.G_TRANSFER_BASE] = round(fleet.transfer.base_s * k.PS)
        run[k.G_TRANSFER_TOKEN] = round(fleet.transfer.per_token_s * k.PS)
        run[k.G_PRIORITIES] = 1
        # Where others look into a replica's cache, a block must leave it at its own step, not at the end of many.
        shared = any(tier.name == "remote" for kind in fleet.kinds for tier in kind.tiers)
        run[k.G_WATCHED] = int(fleet.replicas > 1 and (shared or run[k.G_ROUTER] == k.PREFIX_AWARE))
        run[k.G_ACTIVE] = fleet.replicas
        scale = fleet.autoscale
        if scale is not None:
            maximum = min(scale.maximum or fleet.replicas, fleet.replicas)
            run[k.G_SCALE_EVERY], run[k.G_SCALE_TARGET] = round(scale.interval_s * k.PS), scale.target_in_flight
            run[k.G_SCALE_MIN], run[k.G_SCALE_MAX] = min(scale.minimum, maximum), maximum
            run[k.G_COLD_START], run[k.G_SCALE_NEXT] = round(scale.cold_start_s * k.PS), round(scale.interval_s * k.PS)
            start = max(scale.minimum, 1)
            rows[start:, k.R_UP] = k.OFF
            run[k.G_ACTIVE] = min(start, fleet.replicas)

    def _grow_slots(self, capacity: int) -> None:
        old = self.state.slots.shape[0]
        slots = np.zeros((capacity, self.state.slots.shape[1]), np.int64)
        slots[:old] = self.state.slots
        free = self.state.run[k.G_SLOT_FREE]
        slots[old:, k.S_NEXT] = np.arange(old + 1, capacity + 1)
        slots[-1, k.S_NEXT] = free
        self.state.run[k.G_SLOT_FREE] = old
        self.state.run[k.G_FREE_SLOTS] += capacity - old
        if capacity > 1 << 24:
            raise TrivetError(
                f"more than {1 << 24} requests in flight: the fleet cannot keep up with the traffic", field="traffic"
            )
        room = capacity + self.state.end.size + self.state.replicas.shape[0] + 64
        pending = np.zeros((room, 4), np.int64)
        size = self.state.run[k.G_PENDING]
        pending[:size] = self.state.pending[:size]
        self.state = self.state._replace(slots=slots, pending=pending)

    def _arrivals(self, traffic: Traffic) -> k.Arrivals:
        none32, none64 = np.zeros(0, np.int32), np.zeros(0, np.int64)
        cached = self.cache is not None and traffic.hash_offsets is not None
        priority = priority_classes(traffic.priority)
        if priority.size or any(kind.tiers for kind in self.fleet.kinds):
            self.state.run[k.G_PRIORITIES] = k.LEVELS
        self.state.run[k.G_MAX_CONCURRENCY] = traffic.max_concurrency
        kinds = self.fleet.kinds
        images = image_tokens(traffic, max(kind.kv_blocks * kind.settings.block_size for kind in kinds))
        self.state = with_images(self.state, [kind.encode for kind in kinds], images)
        return k.Arrivals(
            time=_picoseconds(traffic.arrival_s),
            inputs=traffic.input_tokens,
            outputs=traffic.output_tokens,
            priority=priority,
            previous=traffic.previous if traffic.previous is not None else none64,
            think=_picoseconds(traffic.think_s) if traffic.think_s is not None else none64,
            target=none32,
            hash_offsets=traffic.hash_offsets if cached else none64,  # type: ignore[arg-type]  # cached: they are there
            hash_ids=none64,
            first_id=self.sent,
            adapter=none32 if self.state.lora is None or traffic.adapter is None else traffic.adapter,
            images=images,
        )

    def feed(self, traffic: Traffic, *, final: bool = True, until_s: float = math.inf, copy: bool = True) -> Finished:
        """Run through one block of traffic; ``final``: and on until everything has ended.

        Returns the requests that ended, in order of their end; without ``copy`` their rows hold until the run goes on.
        Blocks must follow each other in time; sessions and prefix hashes need all their traffic in one block, and of adapters
        the run was told how many there are.
        """
        if self.sent and (traffic.previous is not None or traffic.hash_offsets is not None):
            raise TrivetError("sessions and prefix hashes need one block", field="traffic")
        known = 0 if self.state.lora is None else self.state.lora.of.shape[1]
        if adapters_of(traffic) > known:
            raise TrivetError("more than the run was told of", field="adapter", allowed=f"numbers below {known}")
        arrivals = self._arrivals(traffic)
        until = k.INF - 1 if not math.isfinite(until_s) else round(until_s * k.PS)
        run = self.state.run
        run[k.G_NEXT] = 0
        needed = int(traffic.arrival_s.size + run[k.G_IN_FLIGHT]) + self.state.heap.shape[1] + 64
        needed = min(max(needed, 4096), 1 << 20)
        if self.state.out.shape[0] < needed:
            self.state = self.state._replace(out=_rows_for(needed))
        parts: list[Longs] = []
        python = PYTHON_ROUTERS.get(self.fleet.router)
        if python is not None:
            arrivals = self._route_outside(python, arrivals, until, parts)
        self._run(arrivals, final, until, parts)
        if parts:
            self._drain(parts)
        if final and until_s == math.inf and run[k.G_IN_FLIGHT]:
            raise TrivetError(f"{run[k.G_IN_FLIGHT]} requests never ended: a replica stood still", field="fleet")
        self.sent += int(traffic.arrival_s.size)
        if parts:
            return Finished(np.concatenate(parts))
        rows = self.state.out[: run[k.G_OUT]]
        run[k.G_OUT] = 0
        return Finished(rows.copy() if copy else rows)

    def close(self) -> None:
        """Leave the memory of results to the next run; this one is over."""
        rows = self.state.out if self.state.out.base is None else self.state.out.base
        if rows.nbytes <= SPARE_BYTES and not _spare:
            _spare.append(rows)
        self.state = self.state._replace(out=np.zeros((0, k.OUT_COLUMNS), np.int64))

    def _run(self, arrivals: k.Arrivals, final: bool, until: int, parts: list[Longs]) -> None:
        """Call the loop, making room as often as it asks for some."""
        from trivet.cloud.serving._loop_fleet import advance

        run = self.state.run
        while True:
            why = advance(self.state, arrivals, self.tables, self.cache, self.faults, final, until)
            if why == k.NEED_SLOTS:
                self._grow_slots(max(2 * self.state.slots.shape[0], 4 * self.state.heap.shape[1] + 8))
            elif why == k.NEED_OUTPUT:
                self._drain(parts)
                least = int(run[k.G_IN_FLIGHT]) + self.state.heap.shape[1] + 64
                if self.state.out.shape[0] < least:
                    self.state = self.state._replace(out=np.zeros((2 * least, k.OUT_COLUMNS), np.int64))
            else:
                return

    def _route_outside(self, python: PythonRouter, arrivals: k.Arrivals, until: int, parts: list[Longs]) -> k.Arrivals:
        """Let a Python function choose the replica of each request, the loop stopping before each arrival."""
        if self.state.run[k.G_MAX_CONCURRENCY] or arrivals.previous.size:
            raise TrivetError("a Python router needs open-loop traffic", field="router")
        target = np.full(arrivals.time.size, -1, np.int32)
        arrivals = arrivals._replace(target=target)
        for number in range(target.size):
            time = int(arrivals.time[number])
            if time > until:
                break
            self._run(arrivals._replace(time=arrivals.time[:number]), True, time - 1, parts)
            chosen = int(python(number, time / k.PS, view(self.state.replicas)))
            if not -1 <= chosen < self.fleet.replicas:
                raise TrivetError(
                    f"chose replica {chosen}",
                    field=f"router {self.fleet.router}",
                    allowed=f"0 to {self.fleet.replicas - 1}",
                )
            target[number] = chosen
        return arrivals

    def _drain(self, parts: list[Longs]) -> None:
        run = self.state.run
        parts.append(self.state.out[: run[k.G_OUT]].copy())
        run[k.G_OUT] = 0


def _rows_for(count: int) -> Longs:
    """Room for so many rows of results; what is in it does not matter."""
    try:
        spare = _spare.pop()
    except IndexError:
        return np.empty((count, k.OUT_COLUMNS), np.int64)
    return spare[:count] if spare.shape[0] >= count else np.empty((count, k.OUT_COLUMNS), np.int64)


def _rebuild(tree: Longs, key: Longs) -> None:
    leaves = key.size
    for node in range(leaves - 1, 0, -1):
        a, b = tree[2 * node], tree[2 * node + 1]
        tree[node] = a if key[a] <= key[b] else b
