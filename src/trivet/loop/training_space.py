"""Every configuration of a dense model on a cluster, timed at once: the space of Calculon (Isaev et al., SC 2023).

Axes: tensor, pipeline and data parallelism, virtual stages, micro-batch, recompute (none, attention only, full), optimiser
sharding, how tensor-parallel partial sums are joined (all-reduce; all-reduce with scattered sends; reduce-scatter and
all-gather), whether gathered inputs are kept or gathered again, overlap of data- and tensor-parallel traffic, offload of
weights, activations and optimiser, and which network (scale-up or scale-out) each group uses. The equations are those of
``cloud/training/step.py`` on arrays; a test holds them against ``train_step``. Nothing is skipped, so the best is proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip.spec import Chip
from trivet.cloud import collectives, fabric
from trivet.cloud.collectives import Level
from trivet.cloud.training import kernels, memory, schedule, shapes, workload
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.prepare import HOST_MEMORY_BYTES_PER_S
from trivet.cloud.training.profile import Constants, shipped
from trivet.errors import DoesNotFit, Unsupported
from trivet.model.architecture import Architecture
from trivet.operators import Transfer

Floats = NDArray[np.float64]
RECOMPUTE = ("full", "attn_only", "none")
COMM = ("ar", "p2p_rs_ag", "rs_ag")
OVERLAP = ("none", "ring", "pipe")
# axis of the inner grid -> its length
AXES = {
    "recompute": 3,
    "sharded": 2,
    "comm": 3,
    "redo": 2,
    "dp_overlap": 2,
    "tp_overlap": 3,
    "weight_offload": 2,
    "activation_offload": 2,
    "optimizer_offload": 2,
    "tp_net": 2,
    "pp_net": 2,
    "dp_net": 2,
}


@dataclass(frozen=True, slots=True)
class Space:
    """A dense model of equal layers on ``chips`` chips of one kind."""

    architecture: Architecture
    chip: Chip
    chips: int
    max_batch: int  # sequences; each split uses the largest multiple of its replicas
    seq_len: int
    precision: str = "fp16"
    memory_bytes: float = 0.0  # 0 = the chip's
    host_memory_bytes: float = 512 * 2.0**30  # of one chip

    def __post_init__(self) -> None:
        if len(self.architecture.layers) != 1 or self.architecture.layers[0].mixer.kind != "attention":
            raise Unsupported("the exhaustive space is for models of equal attention layers", field="model")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the enumeration found. ``samples_per_s`` of the best configuration, which ``best`` names."""

    configurations: int
    feasible: int
    samples_per_s: float
    best: dict[str, Any]
    step_s: float
    memory_bytes: float


def factors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def outer(space: Space) -> Iterator[tuple[int, int, int, int, list[int]]]:
    """(tp, pp, dp, vp, micro-batches) of every split."""
    arch = space.architecture
    layers, heads = arch.num_layers, arch.layers[0].mixer.heads
    for tp in (t for t in factors(space.chips) if arch.hidden % t == 0 and heads % t == 0):
        for pp in factors(min(space.chips // tp, layers)):
            if space.chips % (tp * pp) or layers % pp:
                continue
            dp = space.chips // tp // pp
            batch = space.max_batch // dp * dp
            if not batch:
                continue
            micro = [m for m in factors(batch // dp) if m * space.seq_len % tp == 0]
            for vp in [1] if pp == 1 else factors(layers // pp):
                yield tp, pp, dp, vp, micro


def _axis(name: str) -> Floats:
    """Values 0, 1, ... of an inner axis, shaped to broadcast over the grid."""
    place = list(AXES).index(name)
    return np.arange(AXES[name], dtype=float).reshape([-1 if i == place else 1 for i in range(len(AXES))])


def valid(tp: int, pp: int, dp: int) -> NDArray[np.bool_]:
    """Which cells of the inner grid are configurations (an axis without meaning holds one value)."""
    a = {name: _axis(name) for name in AXES}
    ok = np.ones([AXES[n] for n in AXES], bool)
    ok &= (a["redo"] == 0) | ((a["comm"] == 2) & (a["recompute"] != 0))
    ok &= (a["activation_offload"] == 0) | (a["recompute"] != 0)
    if dp == 1:
        ok &= (a["sharded"] == 0) & (a["dp_overlap"] == 0) & (a["dp_net"] == 0)
    if tp == 1:
        ok &= (a["tp_overlap"] == 0) & (a["tp_net"] == 0)
    if pp == 1:
        ok &= a["pp_net"] == 0
    return ok


class _Terms:
    """What depends on tp and micro-batch alone, computed once: pass times and saved bytes of one layer."""

    def __init__(self, space: Space, constants: Constants):
        self.space, self.c = space, constants
        self.place = fabric.server_of(space.chip)
        self.point = kernels.point(space.chip, "bf16" if space.precision != "fp16" else "fp16")
        levels = fabric.levels(self.place, space.chips, space.chip)
        self.nets = [
            Level(n.size, n.bandwidth_bytes_per_s / n.oversubscription, n.latency_s) for n in (levels[0], levels[-1])
        ]
        self._passes: dict[tuple[int, int, bool], dict[str, float]] = {}
        self._moves: dict[tuple[str, float, int, int], float] = {}

    def job(self, tp: int, micro: int, gathered: bool, recompute: str = "none") -> TrainingJob:
        split = Split(tp=tp, sequence_parallel=gathered)
        return TrainingJob(
            self.space.architecture,
            self.space.chip,
            split,
            self.space.seq_len,
            micro,
            micro,
            self.space.precision,
            recompute,
            tp_comm="rs_ag" if gathered else "all_reduce",
        )

    def passes(self, tp: int, micro: int, gathered: bool) -> dict[str, float]:
        """Seconds of a layer's and the ends' passes; seconds-free sizes come from ``bytes_of``."""
        key = (tp, micro, gathered)
        if key not in self._passes:
            job = self.job(tp, micro, gathered)
            found: dict[str, float] = {}
            works = {
                "layer": workload.layer_work(job, job.architecture.layers[0]),
                "first": workload.embedding_work(job),
                "last": workload.head_work(job),
            }
            for name, work in works.items():
                for part in ("forward", "inputs", "weights", "core"):
                    found[f"{name}.{part}"] = kernels.total(
                        kernels.ideal(getattr(work, part), job.chip), self.point, self.c, "megatron"
                    )
            layer = job.architecture.layers[0]
            for kind in ("none", "selective", "full"):
                found[f"kept.{kind}"] = memory.activation_bytes(job, layer, kind)
            e = shapes.saved_elements(layer, job.architecture.hidden)
            found["gathered"] = 2.0 * micro * self.space.seq_len * e.whole_gemm * (1.0 - 1.0 / tp) if gathered else 0.0
            found["logits"] = memory.logits_bytes(job)
            self._passes[key] = found
        return self._passes[key]

    def move(self, kind: str, size: float, group: int, net: int) -> float:
        """Seconds of a collective on one network."""
        if group <= 1:
            return 0.0
        key = (kind, size, group, net)
        if key not in self._moves:
            level = Level(max(group, 2), self.nets[net].bandwidth_bytes_per_s, self.nets[net].latency_s)
            self._moves[key] = (
                float(
                    collectives.time(Transfer(kind, kind, size, group, "tp"), [level], self.space.chip, "nccl").value_s
                )
                * self.c.transfer
            )
        return self._moves[key]


def evaluate(terms: _Terms, tp: int, pp: int, dp: int, vp: int, micro: int) -> tuple[Floats, Floats, Floats]:
    """(step seconds, bytes on the chip, bytes on the host) over the inner grid; infeasible networks are infinite."""
    space, c = terms.space, terms.c
    arch, tokens = space.architecture, float(micro * space.seq_len)
    a = {name: _axis(name) for name in AXES}
    plain, gathered = terms.passes(tp, micro, False), terms.passes(tp, micro, tp > 1)
    is_sp = a["comm"] == 2

    def pick(name: str) -> Floats:
        return np.where(is_sp, gathered[name], plain[name])

    layers = arch.num_layers // pp
    batch = space.max_batch // dp * dp
    count = batch // dp // micro
    full, core = a["recompute"] == 0, a["recompute"] == 1
    forward, inputs, weights = (layers * pick(f"layer.{p}") for p in ("forward", "inputs", "weights"))
    again = np.where(full, forward, np.where(core, layers * pick("layer.core"), 0.0))
    # --- tensor parallel traffic of one layer, forward and backward
    size = 2.0 * tokens * arch.hidden

    def on(axis: str, kind: str, amount: float, group: int) -> Floats:
        return np.where(a[axis] == 0, terms.move(kind, amount, group, 0), terms.move(kind, amount, group, 1))

    reduce = on("tp_net", "all_reduce", size, tp)
    scatter, gather = on("tp_net", "reduce_scatter", size, tp), on("tp_net", "all_gather", size, tp)
    once = np.where(is_sp, 2.0 * (scatter + gather), 2.0 * reduce)
    regather = np.where(is_sp & (a["redo"] == 1), 2.0 * gather, 0.0)
    seen = np.choose(a["tp_overlap"].astype(int), [1.0, c.exposed_tp, (1.0 + c.exposed_tp) / 2.0])
    forward_comm, backward_comm = layers * once * seen, layers * (once + regather + np.where(full, once, 0.0)) * seen
    # --- the rank with the ends (pp = 1: both) is the slowest
    ends = [
        pick("last.forward") + (pick("first.forward") if pp == 1 else 0.0),
        pick("last.inputs"),
        pick("last.weights") + (pick("first.weights") if pp == 1 else 0.0),
    ]
    ends_comm = on("tp_net", "all_reduce", 12.0 * tokens, tp)
    if pp == 1:
        ends_comm = ends_comm + np.where(is_sp, scatter, reduce)
    host = layers * c.host_dense_s

    def rank(extra: list[Any], comm: Any) -> Floats:
        device = forward + inputs + weights + again + sum(extra)
        joined = (device**c.host_power + host**c.host_power) ** (1.0 / c.host_power)
        moved = np.where(a["weight_offload"] == 1, 4.0 * params, 0.0) + np.where(
            a["activation_offload"] == 1, 2.0 * layers * kept, 0.0
        )
        return np.asarray(joined + forward_comm + backward_comm + comm + np.maximum(moved / link - joined, 0.0) + send)

    link = space.chip.get("host_bandwidth_bytes_per_s") or math.nan
    p = shapes.layer_parameters(arch.layers[0], arch.hidden)
    params = layers * (p.tp_cut / tp + p.replicated)
    matrix = shapes.embedding_parameters(arch) / tp
    kept = np.where(full, pick("kept.full"), np.where(core, pick("kept.selective"), pick("kept.none")))
    kept = kept + np.where(is_sp & (a["redo"] == 0) & ~full, pick("gathered"), 0.0)
    width = np.where(a["comm"] == 0, 1.0, float(tp))
    send_full, send_cut = (
        on("pp_net", "send", size, 2 if pp > 1 else 1),
        on("pp_net", "send", size / tp, 2 if pp > 1 else 1),
    )
    send = 2.0 * vp * np.where(width == 1.0, send_full, send_cut) * c.exposed_pp
    middle, last = rank([0.0], 0.0), rank(ends, ends_comm)
    slow = np.maximum(middle, last)
    first = rank([pick("first.forward"), pick("first.weights")], np.where(is_sp, scatter, reduce)) if pp > 1 else last
    total = (middle * (pp - 2) + first + last) if pp > 1 else last
    running = slow * count + (total - slow if pp > 1 else 0.0) / (vp if vp > 1 else 1)
    # --- once a step
    own = params + matrix * (1 if pp > 1 else (1 if arch.tied_embeddings else 2))
    states = np.where(a["sharded"] == 1, own / dp, own)
    exchange, update = _exchange(a, on, own, dp, slow, c), _update(terms, a, states, link)
    step = running + exchange + update + c.step_s
    chip_bytes, host_bytes = _bytes(
        space, a, pp, vp, count, layers, params, own, states, kept, pick, p.tp_cut / tp + p.replicated
    )
    ok = valid(tp, pp, dp) & _networks(a, tp, pp, dp, int(terms.nets[0].chips))
    return np.where(ok, step, np.inf), chip_bytes + 0.0 * step, host_bytes + 0.0 * step


def _exchange(
    a: dict[str, Floats], on: Callable[[str, str, float, int], Floats], own: float, dp: int, slow: Floats, c: Constants
) -> Floats:
    """What is seen of the gradients' and parameters' way between data-parallel ranks, once a step."""
    exchange = np.where(
        a["sharded"] == 1,
        on("dp_net", "reduce_scatter", 2.0 * own, dp) + on("dp_net", "all_gather", 2.0 * own, dp),
        on("dp_net", "all_reduce", 2.0 * own, dp),
    )
    return np.where(a["dp_overlap"] == 1, np.maximum(c.exposed_dp * exchange, exchange - slow), exchange)


def _update(terms: _Terms, a: dict[str, Floats], states: Floats, link: float) -> Floats:
    """The optimiser's pass over ``states`` parameters, on the chip or on the host."""
    return np.where(
        a["optimizer_offload"] == 1,
        6.0 * states / link + 30.0 * states / HOST_MEMORY_BYTES_PER_S,
        30.0 * states / terms.point.bandwidth / terms.c.stream * terms.c.optimizer,
    )


def _networks(a: dict[str, Floats], tp: int, pp: int, dp: int, domain: int) -> NDArray[np.bool_]:
    """The groups that share the scale-up network must fill it evenly."""
    inside = np.ones((1,) * len(AXES))
    for axis, ways in (("tp_net", tp), ("pp_net", pp), ("dp_net", dp)):
        if ways > 1:
            inside = inside * np.where(a[axis] == 0, float(ways), 1.0)
    return (inside <= domain) & (np.mod(domain, inside) == 0)


def _bytes(
    space: Space,
    a: dict[str, Floats],
    pp: int,
    vp: int,
    count: int,
    layers: int,
    params: float,
    own: float,
    states: Floats,
    kept: Floats,
    pick: Callable[[str], Floats],
    largest: float,
) -> tuple[Floats, Floats]:
    """Bytes on the chip and offloaded, of the fullest rank (as ``memory.rank_memory``)."""
    name = "interleaved" if vp > 1 else "1f1b"
    copies = schedule.in_flight(name, pp, vp, 0, count)
    alive = np.where(a["recompute"] == 2, 0.0, pick("kept.none"))
    activations = layers * kept * copies * (1 + memory.FRAGMENTATION) + alive
    weights, optimizer = 2.0 * own + 0.0 * states, 12.0 * states
    stay_weights = np.minimum(weights, 4.0 * largest)
    stay_activations = np.minimum(activations, 2.0 * kept + alive)
    off_w, off_a, off_o = a["weight_offload"] == 1, a["activation_offload"] == 1, a["optimizer_offload"] == 1
    host = (
        np.where(off_w, weights - stay_weights, 0.0)
        + np.where(off_a, activations - stay_activations, 0.0)
        + np.where(off_o, optimizer, 0.0)
    )
    front = np.where(off_w, stay_weights, weights) + 4.0 * own + np.where(off_o, 0.0, optimizer) + memory.CONTEXT_BYTES
    first = front + np.where(off_a, stay_activations, activations)
    if pp == 1:
        return np.asarray(first + pick("logits")), np.asarray(host)
    tail = schedule.in_flight(name, pp, vp, pp - 1, count)
    last = layers * kept * tail * (1 + memory.FRAGMENTATION) + alive
    last = front + np.where(off_a, np.minimum(last, 2.0 * kept + alive), last) + pick("logits")
    return np.asarray(np.maximum(first, last)), np.asarray(host)


def search(
    space: Space, constants: Constants | None = None, report: Callable[[str, int, int], None] | None = None
) -> Outcome:
    """Time every configuration and return the one that trains most samples a second.

    Raises:
        DoesNotFit: none fits the memories.
    """
    terms = _Terms(space, constants or shipped())
    capacity = space.memory_bytes or space.chip.get("memory_bytes") or math.inf
    configurations = feasible = 0
    best: tuple[float, dict[str, Any], float, float] = (0.0, {}, math.inf, 0.0)
    splits = list(outer(space))
    for done, (tp, pp, dp, vp, micros) in enumerate(splits):
        ok = valid(tp, pp, dp)
        cells = int(ok.sum())
        batch = space.max_batch // dp * dp
        for micro in micros:
            configurations += cells
            step, chip_bytes, host_bytes = evaluate(terms, tp, pp, dp, vp, micro)
            fits = ok & (chip_bytes <= capacity) & (host_bytes <= space.host_memory_bytes) & np.isfinite(step)
            feasible += int(fits.sum())
            timed = np.where(fits, step, np.inf)
            at = int(np.argmin(timed))
            seconds = float(timed.flat[at])
            if batch / seconds > best[0]:
                cell = np.unravel_index(at, timed.shape)
                best = (
                    batch / seconds,
                    _named(tp, pp, dp, vp, micro, batch, cell),
                    seconds,
                    float(np.broadcast_to(chip_bytes, timed.shape)[cell]),
                )
        if report:
            report("configurations", done + 1, len(splits))
    if not feasible:
        raise DoesNotFit(f"none of {configurations} configurations fits", field="memory")
    return Outcome(configurations, feasible, best[0], best[1], best[2], best[3])


def _named(tp: int, pp: int, dp: int, vp: int, micro: int, batch: int, cell: Any) -> dict[str, Any]:
    index = dict(zip(AXES, (int(i) for i in cell), strict=True))
    words: dict[str, Any] = {
        "recompute": RECOMPUTE[index["recompute"]],
        "comm": COMM[index["comm"]],
        "tp_overlap": OVERLAP[index["tp_overlap"]],
    }
    for name in ("tp_net", "pp_net", "dp_net"):
        words[name] = index[name]
    for name in ("sharded", "redo", "dp_overlap", "weight_offload", "activation_offload", "optimizer_offload"):
        words[name] = bool(index[name])
    return {"tp": tp, "pp": pp, "dp": dp, "vp": vp, "micro_batch": micro, "global_batch": batch, **words}
