"""The simulator once more, step by step in plain Python: slow, obvious, and the judge of the fast one.

Every decode step is an event; every KV block is an object in a real free queue; every prefix block is a node in a
real least-recently-used order. It shares with the fast loop only the integer rows of step times.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from trivet.cloud.serving import _loop_state as k
from trivet.cloud.serving.batching import batching
from trivet.cloud.serving.fleet import Fleet
from trivet.cloud.serving.fleet_run import SPECULATIVE_UNITS, groups_of, priority_classes, tokens_per_step
from trivet.cloud.serving.lockstep import own_table
from trivet.cloud.serving.router import ROUTERS
from trivet.cloud.serving.steptime import compile_tables


@dataclass(eq=False)
class Request:
    id: int
    arrival: int
    inputs: int
    outputs: int
    priority: int = 0
    hashes: list[int] = field(default_factory=list)
    generated: int = 0  # tokens emitted before this residency
    computed: int = 0
    chunk: int = 0
    decoding: bool = False
    context_units: int = 0  # while decoding
    emitted_units: int = 0
    blocks: list[int] = field(default_factory=list)
    tags: list[tuple[int, Any]] = field(default_factory=list)  # blocks left behind when preempted
    entries: list[int] = field(default_factory=list)
    private: int = 0
    ready: int = 0
    flag: str = "fresh"
    first: int = -1
    scheduled: int = -1
    last: int = -1
    hits: int = 0
    preemptions: int = 0
    tries: int = 0
    status: int = -1
    replica: int = -1
    prefill_replica: int = -1
    adapter: int = -1
    image: int = 0  # tokens of an image at the start of the prompt
    source: Any = None  # the request at the prefill replica, whose blocks wait until its KV has arrived
    sending: bool = False


class Blocks:
    """A free queue as the engine has it: first in, first out, each block remembering what it last held."""

    def __init__(self, count: int, keep: bool) -> None:
        self.queue: deque[int] = deque(range(count))
        self.holds: dict[int, Any] = {}
        self.keep = keep

    @property
    def free(self) -> int:
        return len(self.queue)

    def take(self, count: int) -> list[int]:
        taken = [self.queue.popleft() for _ in range(count)]
        for block in taken:
            self.holds.pop(block, None)
        return taken

    def give(self, blocks: list[int]) -> None:
        self.queue.extend(blocks)


class Store:
    """Prefix blocks of one replica (or the shared pool) by tier: an entry with references is in no order."""

    def __init__(self, capacity: list[int]) -> None:
        self.capacity = capacity
        self.used: dict[int, int] = {}  # HBM entries with references
        self.idle: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(4)]

    def tier(self, block: int) -> int:
        if block in self.used:
            return 0
        for level in range(4):
            if block in self.idle[level]:
                return level
        return -1


class Replica:
    def __init__(self, sim: Reference, number: int, kind: Any, table: int) -> None:
        settings = kind.settings
        self.sim, self.number, self.kind, self.table = sim, number, kind, table
        self.rules = kind.rules or batching(settings)
        gain = tokens_per_step(settings)
        self.unit = 1 if gain == 1.0 else SPECULATIVE_UNITS
        self.gain = 1 if gain == 1.0 else max(round(gain * self.unit), self.unit)
        self.block = settings.block_size
        self.total = kind.kv_blocks
        mixed = float(np.interp(settings.max_num_batched_tokens, kind.table.tokens, kind.table.mixed_s))
        self.prefill_ps = round(mixed / settings.max_num_batched_tokens * k.PS)
        self.up = k.ON
        self.lead = self
        self.reset()

    def reset(self) -> None:
        self.memory = Blocks(self.total, self.kind.settings.prefix_caching)
        self.free = self.total  # with a hash cache only the count
        self.store = Store([0] * 4)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.held: list[Request] = []
        self.parked: list[Request] = []
        self.adapters = AdapterShelf(self.kind.adapters, self.sim.adapters) if self.sim.adapters else None
        self.end = k.INF
        self.start = 0
        self.state = "idle"
        self.under_way = False
        self.paused = False
        self.stall = False
        self.channel = 0
        self.backlog = self.outstanding = self.held_tokens = 0

    # ---- memory ------------------------------------------------------------------------------------------------
    def room(self) -> int:
        if self.sim.weight:
            return self.free + self.sim.weight * len(self.store.idle[0])
        return self.memory.free

    def take(self, request: Request, count: int) -> None:
        if not self.sim.weight:
            request.blocks += self.memory.take(count)
            return
        request.private += count
        self.pay(count)

    def pay(self, count: int) -> None:
        self.free -= count
        while self.free < 0:
            block, _ = self.store.idle[0].popitem(last=False)
            self.free += self.sim.weight
            self.sim.demote(self, block)

    def release(self, request: Request) -> None:
        if not self.sim.weight:
            self.memory.give(list(reversed(request.blocks)))
            request.blocks = []
            return
        for block in reversed(request.entries):
            self.store.used[block] -= 1
            if self.store.used[block] == 0:
                del self.store.used[block]
                self.store.idle[0][block] = None
        self.free += request.private
        request.entries, request.private = [], 0

    def need(self, request: Request) -> int:
        """Blocks that the request's next decode step takes."""
        size = self.block * self.unit
        return -(-(request.context_units + self.gain) // size) - -(-request.context_units // size)

    # ---- one step ----------------------------------------------------------------------------------------------
    def decodes(self) -> list[Request]:
        return [r for r in self.running if r.decoding]

    def commit(self, now: int) -> bool:
        self.let_held_go()
        ended = False
        step = [] if self.stall else self.in_step
        for request in step:
            request.context_units += self.gain
            request.emitted_units += self.gain
        for request in [r for r in self.running if r.chunk]:
            request.computed += request.chunk
            self.backlog -= request.chunk
            request.chunk = 0
            if request.computed < request.inputs + request.generated:
                continue
            if request.first < 0:
                request.first = now
            if request.outputs - request.generated - 1 <= 0:
                self.finish(request, now)
                ended = True
            elif self.kind.role == "prefill":
                self.hand_over(request, now)
                ended = True
            else:
                self.decode(request)
        for request in sorted(step, key=lambda r: r.id):
            if request.emitted_units >= (request.outputs - request.generated - 1) * self.unit:
                self.finish(request, now)
                ended = True
        return ended

    def decode(self, request: Request) -> None:
        request.decoding = True
        request.context_units = (request.inputs + request.generated) * self.unit
        request.emitted_units = 0

    def leave(self, request: Request) -> None:
        self.running.remove(request)
        request.decoding = False
        self.outstanding -= 1
        self.held_tokens -= request.inputs
        if self.rules.asynchronous:
            self.held.append(request)
        else:
            self.vacate(request)

    def vacate(self, request: Request) -> None:
        if self.adapters:
            self.adapters.give(request.adapter)
        if request.sending:
            self.parked.append(request)
        else:
            self.release(request)

    def let_held_go(self) -> None:
        while self.held:
            self.vacate(self.held.pop(0))

    def finish(self, request: Request, now: int) -> None:
        self.sim.record(request, now, k.DONE)
        self.leave(request)

    def hand_over(self, request: Request, now: int) -> None:
        request.sending = True
        self.leave(request)
        moved = Request(**{**request.__dict__, "blocks": [], "entries": [], "private": 0, "tags": []})
        moved.source, moved.sending = request, False
        moved.generated += 1
        moved.flag, moved.prefill_replica = "prefilled", self.number
        context = moved.inputs + moved.generated - 1
        sim = self.sim
        sim.push(sim.travel(self.number, now, sim.transfer_base + sim.transfer_token * context), k.P_LANDED, moved)

    def preempt(self, now: int) -> int:
        victim = self.running[-1]
        for request in reversed(self.running):
            if request.priority > victim.priority:
                victim = request
        swap = 0
        victim.preemptions += 1
        if victim.decoding:
            full = victim.context_units // (self.block * self.unit)
            victim.generated = min(victim.generated + 1 + victim.emitted_units // self.unit, victim.outputs - 1)
            if self.rules.swap_block_s > 0:
                victim.flag = "prefilled"
                swap = self.swap_ps() * (-(-victim.context_units // (self.block * self.unit)))
        else:
            full = victim.computed // self.block
            self.backlog -= victim.inputs + victim.generated - victim.computed
            victim.chunk = 0
        victim.decoding = False
        self.running.remove(victim)
        if self.adapters:
            self.adapters.give(victim.adapter)
        if self.sim.weight:
            self.release(victim)
        else:
            if self.memory.keep:
                victim.tags = [(b, object()) for b in victim.blocks[:full]]
                for block, tag in victim.tags:
                    self.memory.holds[block] = tag
            self.release(victim)
        victim.ready = now
        self.backlog += victim.inputs + victim.generated
        self.enqueue(victim, front=True)
        return swap

    def swap_ps(self) -> int:
        return round(self.rules.swap_block_s * k.PS)

    def enqueue(self, request: Request, front: bool) -> None:
        def level(r: Request) -> int:
            return -1 if r.flag == "loaded" else r.priority

        at = 0
        while at < len(self.waiting):
            other = level(self.waiting[at])
            if other > level(request) or (front and other == level(request)):
                break
            at += 1
        self.waiting.insert(at, request)

    def make_room(self, now: int) -> tuple[int, bool]:
        swap, preempted = 0, False
        while self.decodes():
            needs = [(r, self.need(r)) for r in self.decodes()]
            if sum(n for _, n in needs) <= self.room():
                for request, count in needs:
                    self.take(request, count)
                break
            swap += self.preempt(now)
            preempted = True
        return swap, preempted

    def plan(self, request: Request) -> int:
        share = round(1024 * self.rules.reserve_output)
        if share == 0 or self.kind.role == "prefill":
            return 0
        return -(-(request.inputs + (share * request.outputs) // 1024) // self.block)

    def reclaim(self, request: Request) -> list[int]:
        limit = (request.inputs + request.generated - 1) // self.block
        found = []
        for block, tag in request.tags[:limit]:
            if self.memory.holds.get(block) is not tag:
                break
            found.append(block)
        for block in found:
            self.memory.queue.remove(block)
            del self.memory.holds[block]
        return found

    def admit(self, request: Request, now: int) -> int:
        """-1: no room; 0: admitted; else the time at which its blocks are loaded."""
        if request.flag == "loaded":
            return 0
        tokens = request.inputs + request.generated - (request.flag == "prefilled")
        total = -(-tokens // self.block)
        present = self.running + self.held + self.sim.loading(self) + [r for r in self.waiting if r.flag == "loaded"]
        if self.plan(request) and sum(self.plan(r) for r in present) + self.plan(request) > self.total:
            return -1
        keep = 0
        if request.flag == "prefilled":
            keep += -(-self.gain // (self.block * self.unit))
            if self.rules.prefill_first:
                keep += sum(self.need(r) for r in self.decodes())
        if self.sim.weight:
            return self.admit_cached(request, now, total, keep)
        if total + keep > self.memory.free:
            return -1
        request.blocks = []
        if request.flag == "fresh":
            request.blocks = self.reclaim(request)
            request.computed = len(request.blocks) * self.block
            request.hits += request.computed
        request.blocks += self.memory.take(total - len(request.blocks))
        return 0

    def admit_cached(self, request: Request, now: int, total: int, keep: int) -> int:
        sim, weight = self.sim, self.sim.weight
        size = sim.hash_block
        limit = min((request.inputs + request.generated - 1) // size, request.inputs // size, len(request.hashes))
        tiers = []
        for block in request.hashes[:limit]:
            tier = self.store.tier(block)
            if tier < 0 and sim.pool.tier(block) >= 0:
                tier = 3
            if tier < 0:
                break
            tiers.append(tier)
        front = next((i for i, t in enumerate(tiers) if t), len(tiers))
        wait = max(0, self.channel - now)
        hits, load, most = front, 0, 0
        for length in range(front + 1, len(tiers) + 1):
            below = [t for t in tiers[:length] if t]
            takes = sum(sim.load[self.number][t] for t in below) + sim.latency[self.number][below[0]] + 1
            gain = self.prefill_ps * (length - front) * size - takes - wait
            if gain > most and request.flag != "prefilled":
                hits, load, most = length, takes, gain
        hbm = [b for b, t in zip(request.hashes[:hits], tiers, strict=False) if t == 0]
        idle = sum(b in self.store.idle[0] for b in hbm)
        if total + keep - len(hbm) * weight > self.room() - idle * weight:
            return -1
        cost = 0
        request.entries = request.hashes[: min(request.inputs // size, len(request.hashes))]
        for block in request.entries:
            tier = self.store.tier(block)
            if tier:
                cost += weight
            if tier >= 0 and block not in self.store.used:
                del self.store.idle[tier][block]
            self.store.used[block] = self.store.used.get(block, 0) + 1
            sim.owner[block] = self.number
        request.private = total - weight * len(request.entries)
        self.pay(cost + request.private)
        if request.flag == "fresh":
            request.computed = hits * size
            request.hits += request.computed
        if load:
            self.channel = max(self.channel, now) + load
            return self.channel
        return 0

    def schedule(self, now: int, woken: bool) -> None:
        settings, rules = self.kind.settings, self.rules
        cutoff = self.start if rules.asynchronous and not woken else now
        self.stall = False
        extra, preempted = 0, False
        decode_tokens = 1 + settings.speculative_tokens
        budget = settings.max_num_batched_tokens
        if not rules.prefill_first:
            extra, preempted = self.make_room(now)
            budget -= len(self.decodes()) * decode_tokens
        chunks: list[tuple[int, int]] = []

        def chunk(request: Request) -> None:
            nonlocal budget
            request.chunk = min(request.inputs + request.generated - request.computed, budget)
            chunks.append((request.chunk, request.computed))
            budget -= request.chunk

        half = [r for r in self.running if not r.decoding]
        assert len(half) <= 1
        if half and budget > 0:
            chunk(half[0])
        for request in list(self.waiting):
            if preempted or budget <= 0 or len(self.running) + len(self.held) >= settings.max_num_seqs:
                break
            if request.ready > cutoff:
                break
            if self.adapters and not self.adapters.fits(request.adapter):
                continue
            ready = self.admit(request, now)
            if ready < 0:
                break
            self.waiting.remove(request)
            if request.scheduled < 0:
                request.scheduled = now
            if ready > 0:
                self.sim.push(ready, k.P_READY, request)
                continue
            self.running.append(request)
            if self.adapters:
                extra += self.adapters.take(request.adapter)
            if request.flag == "prefilled":
                request.flag = "fresh"
                if rules.swap_block_s > 0 and request.preemptions:
                    extra += self.swap_ps() * -(-(request.inputs + request.generated - 1) // self.block)
                self.backlog -= request.inputs + request.generated
                request.generated -= 1
                self.decode(request)
                if not rules.prefill_first:
                    self.take(request, self.need(request))
                    budget -= decode_tokens
                continue
            request.flag = "fresh"
            self.backlog -= request.computed
            if request.computed < request.image:
                extra += int(self.sim.encode[self.table][request.image])
                self.sim.encodes += 1
            chunk(request)
        if rules.prefill_first and not chunks:
            swap, preempted = self.make_room(now)
            extra += swap
        self.start = now
        self.in_step = self.decodes()
        tables, t = self.sim.tables, self.table
        if chunks:
            if rules.prefill_first:
                self.stall, self.in_step = True, []
            self.state = "busy"
            context = sum(r.context_units for r in self.in_step)
            more = self.adapters_ps(decode_tokens)
            batch = len(self.in_step)
            self.prompts = sum(q for q, _ in chunks)
            self.tokens = self.prompts + batch * decode_tokens
            self.host = int(tables.host_mixed[t]) + int(tables.host_sequence[t]) * (batch + len(chunks))
            self.own = extra + mixed_ps(tables, t, batch, context, chunks, decode_tokens, more, with_host=False)
            self.end = now + extra + mixed_ps(tables, t, len(self.in_step), context, chunks, decode_tokens, more)
        elif self.in_step:
            self.state = "busy"
            context = sum(r.context_units for r in self.in_step)
            step = row_ps(tables.decode_bound, tables.decode_base, tables.decode_slope, t, len(self.in_step), context)
            step += self.adapters_ps(decode_tokens)
            host = int(tables.host_decode[t]) + int(tables.host_sequence[t]) * len(self.in_step)
            self.prompts, self.tokens = 0, len(self.in_step) * decode_tokens
            self.own, self.host = extra + step, host
            if self.sim.device_rows:
                step = max(step, host) if tables.overlap[t] else step + host
            self.end = now + extra + step
        else:
            self.state, self.end = "idle", k.INF
            if self.waiting and (preempted or self.held):
                self.state, self.end = "wake", now
            self.let_held_go()

    def adapters_ps(self, decode_tokens: int) -> int:
        if not self.adapters:
            return 0
        tokens = sum(r.chunk for r in self.running if r.adapter >= 0)
        tokens += decode_tokens * sum(r.adapter >= 0 for r in self.in_step)
        return self.adapters.step_ps(tokens)


class AdapterShelf:
    """Adapters of one replica: users of each, all that host memory holds in order of last use, those on the device."""

    def __init__(self, given: Any, count: int) -> None:
        self.given, self.users = given, [0] * count
        self.room = given.host_slots or max(count, given.slots)
        self.known = list(range(min(count, self.room)))[::-1]  # the first is the most recently used
        self.device: set[int] = set()
        self.loads = 0

    def fits(self, adapter: int) -> bool:
        return adapter < 0 or self.users[adapter] > 0 or sum(u > 0 for u in self.users) < self.given.slots

    def take(self, adapter: int) -> int:
        if adapter < 0:
            return 0
        self.users[adapter] += 1
        assert sum(u > 0 for u in self.users) <= self.given.slots
        if adapter in self.device:
            return 0
        self.loads += 1
        took = round(self.given.load_s * k.PS)
        if adapter not in self.known:
            took += round(self.given.disk_s * k.PS)
            if len(self.known) >= self.room:
                oldest = next(a for a in self.known if not self.users[a])
                self.known.remove(oldest)
                self.device.discard(oldest)
            self.known.append(adapter)
        if len(self.device) >= self.given.slots:
            self.device.remove(next(a for a in self.known if a in self.device and not self.users[a]))
        self.device.add(adapter)
        assert len(self.device) <= self.given.slots and len(self.known) <= self.room and self.device <= set(self.known)
        return took

    def give(self, adapter: int) -> None:
        if adapter < 0:
            return
        self.users[adapter] -= 1
        if self.users[adapter] == 0:
            self.known.remove(adapter)
            self.known.append(adapter)

    def step_ps(self, tokens: int) -> int:
        if not tokens:
            return 0
        step, each, token = (round(x * k.PS) for x in (self.given.step_s, self.given.adapter_s, self.given.token_s))
        return step + each * sum(u > 0 for u in self.users) + token * tokens


def row_ps(bound: Any, base: Any, slope: Any, table: int, batch: int, context: int) -> int:
    for limit, a, b in zip(bound[table, batch], base[table, batch], slope[table, batch], strict=True):
        if context < limit:
            return int(a) + int(b) * context
    raise AssertionError("no segment")


def mixed_ps(
    tables: Any,
    t: int,
    batch: int,
    context: int,
    chunks: list[tuple[int, int]],
    decode_tokens: int,
    more: int = 0,
    with_host: bool = True,
) -> int:
    tokens = sum(q for q, _ in chunks) + batch * decode_tokens
    device = int(tables.mixed[t, tokens]) + more
    if batch:
        device += row_ps(tables.attention_bound, tables.attention_base, tables.attention_slope, t, batch, context)
    nq, np_ = tables.knots[t]
    for q, p in chunks:
        seconds = bilinear(tables.chunk[t, :nq], tables.past[t, :np_], tables.prefill[t], q, p)
        device += int(seconds * 1e12 + 0.5) if seconds > 0 else 0
    if not with_host:
        return device
    host = int(tables.host_mixed[t]) + int(tables.host_sequence[t]) * (batch + len(chunks))
    return max(device, host) if tables.overlap[t] else device + host


def bilinear(xs: Any, ys: Any, grid: Any, x: float, y: float) -> float:
    def place(knots: Any, value: float) -> tuple[int, int, float]:
        if len(knots) == 1:
            return 0, 0, 0.0
        i = 0
        while i < len(knots) - 2 and value >= knots[i + 1]:
            i += 1
        return i, i + 1, float((value - knots[i]) / (knots[i + 1] - knots[i]))

    i, i2, u = place(xs, x)
    j, j2, v = place(ys, y)
    low = grid[i, j] * (1.0 - v) + grid[i, j2] * v
    high = grid[i2, j] * (1.0 - v) + grid[i2, j2] * v
    return float(low * (1.0 - u) + high * u)


class Reference:
    """The fleet: one event at a time, in the order that ``_loop_fleet`` documents."""

    def __init__(self, traffic: Any, fleet: Fleet) -> None:
        self.traffic, self.fleet = traffic, fleet
        self.adapters = int(traffic.adapter.max(initial=-1)) + 1 if traffic.adapter is not None else 0
        self.device_rows = self.adapters > 0 or fleet.lock_step
        settings = [kind.settings for kind in fleet.kinds]
        units = [1 if tokens_per_step(s) == 1.0 else SPECULATIVE_UNITS for s in settings]
        self.tables = compile_tables(
            [own_table(kind.table) if fleet.lock_step else kind.table for kind in fleet.kinds],
            [s.max_num_seqs for s in settings],
            [s.max_num_batched_tokens for s in settings],
            units,
            with_host=not self.device_rows,
        )
        cached = traffic.hash_offsets is not None and all(s.prefix_caching for s in settings)
        self.hash_block = traffic.block_tokens if cached else 0
        self.weight = traffic.block_tokens // settings[0].block_size if cached else 0
        self.owner: dict[int, int] = {}
        self.replicas: list[Replica] = []
        self.load: list[list[int]] = []
        self.latency: list[list[int]] = []
        self.pool = Store([0] * 4)
        for number, kind in enumerate(fleet.kinds):
            for at in range(kind.count):
                self.replicas.append(Replica(self, len(self.replicas), kind, number))
                self.replicas[-1].lead = self.replicas[-1 - at % kind.ranks]
        self.set_tiers()
        self.transfer_base = round(fleet.transfer.base_s * k.PS)
        self.transfer_token = round(fleet.transfer.per_token_s * k.PS)
        self.pools = any(kind.role != "both" for kind in fleet.kinds)
        self.pending: list[tuple[int, int, int, int, Any]] = []
        self.serial = 0
        self.turn = {False: 0, True: 0}
        self.random = (88172645463325252 + 0x9E3779B97F4A7C1 * fleet.seed) & 0x7FFFFFFFFFFFFFFF or 1
        self.end: dict[int, int] = {}
        self.followers: dict[int, list[int]] = {}
        self.done: list[Request] = []
        self.in_flight = 0
        self.faults = fleet.events.tolist()
        self.group_tables = groups_of(fleet, self.tables) if fleet.lock_step else None
        self.sent: dict[int, int] = {}
        self.encodes = 0
        self.encode: list[Any] = []
        if traffic.image_tokens is not None:
            sizes = np.arange(int(traffic.image_tokens.max()) + 1)
            self.encode = [np.rint(kind.encode.seconds_of(sizes) * k.PS).astype(int) for kind in fleet.kinds]

    def set_tiers(self) -> None:
        names = {"host": 1, "nvme": 2, "remote": 3}
        ids = int(self.traffic.hash_ids.max()) + 1 if self.weight and self.traffic.hash_ids.size else 1
        remote = None
        for replica in self.replicas:
            load, latency, capacity = [0] * 4, [0] * 4, [0] * 4
            for tier in replica.kind.tiers:
                at = names[tier.name]
                if at == 3 and remote is not None:
                    continue
                size = self.hash_block or 1
                capacity[at] = min(int(tier.tokens // size), ids)
                load[at] = round(tier.load_s_per_token * size * k.PS)
                latency[at] = round(tier.latency_s * k.PS)
                if at == 3:
                    remote = (load[3], latency[3])
                    self.pool.capacity[3] = capacity[3]
            self.load.append(load)
            self.latency.append(latency)
            replica.store.capacity = capacity
        for number in range(len(self.replicas)):
            if remote is not None:
                self.load[number][3], self.latency[number][3] = remote

    def demote(self, replica: Replica, block: int) -> None:
        store, tier = replica.store, 0
        while True:
            tier += 1
            while tier < 3 and store.capacity[tier] == 0:
                tier += 1
            if tier == 3:
                if store is self.pool or self.pool.capacity[3] == 0:
                    return
                if block in self.pool.idle[3]:
                    self.pool.idle[3].move_to_end(block)
                    return
                store = self.pool
            elif tier > 3:
                return
            store.idle[tier][block] = None
            if len(store.idle[tier]) <= store.capacity[tier]:
                return
            block, _ = store.idle[tier].popitem(last=False)

    # ---- events ------------------------------------------------------------------------------------------------
    def push(self, time: int, kind: int, subject: Any) -> None:
        heapq.heappush(self.pending, (time, kind, self.serial, id(subject), subject))
        self.serial += 1

    def record(self, request: Request, now: int, status: int) -> None:
        request.last, request.status = now, status
        self.done.append(request)
        self.in_flight -= 1
        self.end[request.id] = now
        for follower in self.followers.pop(request.id, []):
            self.push(now, k.P_RELEASE, follower)

    def key(self, replica: Replica) -> int:
        router = ROUTERS[self.fleet.router]
        if router == k.KV_LOAD:
            return replica.held_tokens
        if router == k.PREFIX_AWARE:
            return replica.backlog + replica.held_tokens
        if router == k.SLO_AWARE:
            return replica.backlog * replica.prefill_ps + replica.outstanding
        return replica.outstanding

    def choose(self, request: Request) -> Replica | None:
        second = request.flag == "prefilled" and self.pools
        roles = ("decode",) if second else ("both", "prefill")
        able = [r for r in self.replicas if r.up == k.ON and r.kind.role in roles]
        if not able:
            return None
        least = min(able, key=lambda r: (self.key(r), r.number))
        if len(self.replicas) == 1:
            return least
        router = ROUTERS[self.fleet.router]
        if router == k.ROUND_ROBIN:
            while True:
                at = self.turn[second]
                self.turn[second] = (at + 1) % len(self.replicas)
                if self.replicas[at] in able:
                    return self.replicas[at]
        if router == k.POWER_OF_TWO:
            picked = None
            for _ in range(64):
                at = self.replicas[self.draw(len(self.replicas))]
                if at not in able:
                    continue
                if picked is None:
                    picked = at
                else:
                    return at if self.key(at) < self.key(picked) else picked
            return picked or least
        if router == k.PREFIX_AWARE and self.weight and not second:
            return self.by_prefix(request, able, least)
        return least

    def by_prefix(self, request: Request, able: list[Replica], least: Replica) -> Replica:
        best = -1
        for block in request.hashes:
            if block not in self.owner:
                break
            best = self.owner[block]
        if best < 0 or best == least.number or self.replicas[best] not in able:
            return least

        def cost(replica: Replica) -> int:
            count = 0
            for block in request.hashes:
                if replica.store.tier(block) < 0:
                    break
                count += 1
            return self.key(replica) - count * self.hash_block

        return self.replicas[best] if cost(self.replicas[best]) <= cost(least) else least

    def draw(self, n: int) -> int:
        x = self.random
        x ^= (x << 13) & 0x7FFFFFFFFFFFFFFF
        x ^= x >> 7
        x ^= (x << 17) & 0x7FFFFFFFFFFFFFFF
        self.random = x
        return (x >> 11) % n

    def route(self, request: Request, now: int) -> None:
        replica = self.choose(request)
        fleet = self.fleet
        if replica is None:
            if self.faults or any(kind == k.P_UP for _, kind, *_ in self.pending):
                delay = max(round(fleet.retries.delay_s * k.PS), 1000000000)
                self.push(now + delay, k.P_RETRY, request)
            else:
                self.record(request, now, k.FAILED)
            return
        request.replica = replica.number
        if request.flag == "bounced":
            request.flag = "fresh"
        decode_tokens = 1 + replica.kind.settings.speculative_tokens
        needed = -(-(request.inputs + request.outputs + decode_tokens - 1) // replica.block)
        limit, wait = fleet.admission.max_queue, round(fleet.admission.max_wait_s * k.PS)
        full = limit > 0 and len(replica.waiting) >= limit
        late = wait > 0 and (replica.backlog + request.inputs) * replica.prefill_ps > wait
        if needed > replica.total or ((full or late) and request.flag != "prefilled"):
            self.record(request, now, k.REJECTED)
            return
        replica.outstanding += 1
        replica.held_tokens += request.inputs
        replica.backlog += request.inputs + request.generated
        self.enter(replica, request, now, False)

    def enter(self, replica: Replica, request: Request, now: int, front: bool) -> None:
        request.ready = now
        replica.enqueue(request, front)
        if replica.state == "idle":
            self.wake(replica, now)

    def wake(self, replica: Replica, now: int) -> None:
        if self.group_tables is None:
            replica.state, replica.end = "wake", now
        elif replica.lead.end >= k.INF:
            replica.lead.end = now

    def send(self, number: int, now: int) -> None:
        assert number not in self.sent, "sent twice"
        self.sent[number] = now
        t = self.traffic
        request = Request(number, now, int(t.input_tokens[number]), int(t.output_tokens[number]))
        if self.priorities.size:
            request.priority = int(self.priorities[number])
        if self.adapters:
            request.adapter = int(t.adapter[number])
        if t.image_tokens is not None:
            request.image = int(t.image_tokens[number])
        if self.weight:
            request.hashes = [int(h) for h in t.hash_ids[t.hash_offsets[number] : t.hash_offsets[number + 1]]]
        self.in_flight += 1
        self.route(request, now)

    def due(self, number: int, ended: int, now: int) -> int:
        think = 0 if self.traffic.think_s is None else round(float(self.traffic.think_s[number]) * 1e12)
        return max(self.times[number], ended + think, now)

    def bounce(self, request: Request, now: int) -> None:
        request.tries += 1
        request.generated = request.computed = request.chunk = 0
        request.first = request.scheduled = -1
        request.decoding = False
        request.tags, request.blocks, request.entries, request.private = [], [], [], 0
        request.flag = "bounced"
        if request.tries > self.fleet.retries.limit:
            self.record(request, now, k.FAILED)
        else:
            self.push(now + round(self.fleet.retries.delay_s * k.PS), k.P_RETRY, request)

    def fail(self, replica: Replica, now: int) -> None:
        if replica.up == k.DOWN:
            return
        replica.up = k.DOWN
        lost = replica.running + replica.waiting
        capacity = replica.store.capacity
        replica.reset()
        replica.lead.end, replica.lead.under_way = k.INF, False
        replica.store.capacity = capacity
        for request in lost:
            self.bounce(request, now)
        lost = [e for e in self.pending if e[1] in (k.P_READY, k.P_LANDED) and e[4].replica == replica.number]
        self.pending = [e for e in self.pending if e not in lost]
        heapq.heapify(self.pending)
        for event in sorted(lost, key=lambda e: e[2]):
            self.bounce(event[4], now)

    def travel(self, number: int, now: int, took: int) -> int:
        """The link does ``factor`` of its work in each span between two of its outages' ends."""
        own = [o for o in self.fleet.link_outages if number in o.replicas]
        spans = [(round(o.start_s * k.PS), (o.start_s + o.duration_s) * k.PS, round(o.factor * 1024)) for o in own]
        marks = sorted({round(t) for span in spans for t in span[:2] if t < math.inf and round(t) > now})
        left, at = Fraction(took), now
        for mark in [*marks, None]:
            rates = [r for a, b, r in spans if a <= at and (b == math.inf or at < round(b))]
            rate = Fraction(min(rates, default=1024), 1024)
            if mark is None or left <= rate * (mark - at):
                return at + math.ceil(left / rate) if rate else at
            left -= rate * (mark - at)
            at = mark
        raise AssertionError("no end")

    def handle(self, now: int) -> None:
        _, kind, _, _, subject = heapq.heappop(self.pending)
        if kind == k.P_RELEASE:
            due = self.due(subject, now, now)
            if due > now:
                self.push(due, k.P_SEND, subject)
            else:
                self.send(subject, now)
        elif kind == k.P_SEND:
            self.send(subject, now)
        elif kind == k.P_RETRY:
            self.route(subject, now)
        elif kind == k.P_LANDED:
            self.land(subject, now)
        else:
            subject.flag = "loaded"
            self.enter(self.replicas[subject.replica], subject, now, True)

    def land(self, request: Request, now: int) -> None:
        source, request.source = request.source, None
        source.sending = False
        replica = self.replicas[source.replica]
        if source in replica.parked:
            replica.parked.remove(source)
            replica.release(source)
            if replica.state == "idle" and replica.waiting:
                self.wake(replica, now)
        self.route(request, now)

    def arrive(self, number: int, now: int) -> None:
        before = -1 if self.traffic.previous is None else int(self.traffic.previous[number])
        if before >= 0:
            if before not in self.end:
                self.followers.setdefault(before, []).insert(0, number)
                return
            due = self.due(number, self.end[before], now)
            if due > now:
                self.push(due, k.P_SEND, number)
                return
        self.send(number, now)

    def step_together(self, lead: Replica) -> None:
        """The ranks of a group: the longest own part, what they do together, and not less than the slowest host."""
        now, ranks, tables = lead.end, [r for r in self.replicas if r.lead is lead], self.group_tables
        paused, lead.paused = lead.paused, False
        ended = False
        if lead.under_way and not paused:
            for rank in ranks:
                if rank.state == "busy":
                    ended = rank.commit(now) or ended
        if ended and (self.traffic.max_concurrency > 0 or self.traffic.previous is not None):
            lead.paused, lead.end = True, now
            return
        for rank in ranks:
            woken = rank.state == "idle"
            if woken and not rank.waiting:
                continue
            rank.schedule(now, woken)
            while rank.state == "wake":
                rank.schedule(now, True)
            self.check(rank)
        busy = [r for r in ranks if r.state == "busy"]
        for rank in ranks:
            rank.end = k.INF
        lead.under_way = bool(busy)
        if not busy:
            return
        t = lead.table
        idle = len(ranks) - len(busy)
        own, floor = [], 0
        for rank in busy:
            if self.tables.overlap[t]:
                floor = max(floor, rank.host)
                own.append(rank.own)
            else:
                own.append(rank.own + rank.host)
        if idle:
            rows = self.tables.decode_bound, self.tables.decode_base, self.tables.decode_slope
            own.append(row_ps(*rows, t, 1, 0))
        if any(r.prompts for r in busy):
            row, at = tables.mixed[t], sum(r.tokens for r in busy) + idle
        else:
            row, at = tables.decode[t], sum(len(r.in_step) for r in busy) + idle
        lead.end = now + max(max(own) + int(row[min(at, len(row) - 1)]), floor)

    def step(self, replica: Replica) -> None:
        if self.group_tables is not None:
            self.step_together(replica)
            return
        now, woken = replica.end, replica.state == "wake"
        paused, replica.paused = replica.paused, False
        ended = False
        if not woken and not paused:
            assert now >= replica.start, "time went back"
            ended = replica.commit(now)
        closed = self.traffic.max_concurrency > 0 or self.traffic.previous is not None
        if ended and closed:
            replica.paused = True
            return
        replica.schedule(now, woken)
        self.check(replica)

    def loading(self, replica: Replica) -> list[Request]:
        waits = [s for _, kind, _, _, s in self.pending if kind == k.P_READY]
        return [s for s in waits if s.replica == replica.number]

    def check(self, replica: Replica) -> None:
        """Blocks are conserved and no batch is over its limits."""
        settings = replica.kind.settings
        assert len(replica.running) + len(replica.held) <= settings.max_num_seqs
        chunked = sum(r.chunk for r in replica.running)
        assert chunked <= settings.max_num_batched_tokens
        if self.weight:
            present = (
                replica.running
                + replica.held
                + replica.parked
                + self.loading(replica)
                + [r for r in replica.waiting if r.flag == "loaded"]
            )
            private = sum(r.private for r in present)
            entries = len(replica.store.used) + len(replica.store.idle[0])
            assert replica.free >= 0
            assert replica.free + private + self.weight * entries == replica.total
        else:
            held = [b for r in replica.running + replica.held + replica.parked for b in r.blocks]
            assert len(set(held) | set(replica.memory.queue)) == len(held) + replica.memory.free == replica.total

    def run(self) -> list[Request]:
        t = self.traffic
        self.times = [int(x) for x in np.rint(np.asarray(t.arrival_s) * 1e12).astype(np.int64)]
        self.priorities = priority_classes(t.priority)
        at, now = 0, 0
        while True:
            replica = min(self.replicas, key=lambda r: (r.end, r.number))
            pending = self.pending[0][0] if self.pending else k.INF
            arrival = k.INF
            if at < len(self.times):
                if not t.max_concurrency:
                    arrival = self.times[at]
                elif self.in_flight < t.max_concurrency:
                    arrival = max(self.times[at], now)
            fault = self.faults[0][0] if self.faults else k.INF
            time = min(replica.end, pending, arrival)
            if time >= k.INF and self.in_flight == 0 and at >= len(self.times):
                break
            time = min(time, fault)
            if time >= k.INF:
                break
            assert time >= now, "time went back"
            now = time
            if fault <= time:
                _, number, up = self.faults.pop(0)
                if up == 0:
                    self.fail(self.replicas[number], time)
                elif self.replicas[number].up == k.DOWN:
                    self.replicas[number].up = k.ON
            elif pending <= time:
                self.handle(time)
            elif arrival <= time:
                at += 1
                self.arrive(at - 1, time)
            else:
                self.step(replica)
        self.done.sort(key=lambda r: r.id)
        return self.done
