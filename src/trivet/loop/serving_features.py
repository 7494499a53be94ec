"""What the residual sees of a case: its load and layout, what its step and its wait are made of, and its names.

The shares of a decode step (experts, attention, exchange, launches, host) say by which mechanism a case is slow. They carry
what was learned of one model to another whose steps are made of the same, where a name could not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.deployment import StepTable
from trivet.cloud.engine.components import KINDS, Components
from trivet.cloud.engine.profiles import EngineProfile
from trivet.cloud.serving.steady import Steady
from trivet.loop.serving_model import Compiler, draws
from trivet.loop.serving_rows import Case

Floats = NDArray[np.float64]

# Load and layout, in octaves; ``step`` and ``first`` are the physics' own TPOT and TTFT.
LOAD = ("sequences", "isl", "osl", "chips", "expert_ranks", "attention_ranks", "step", "first", "intensity")
# Shares of a decode step's time; and in octaves TPOT over that step (prompts in between), TTFT over a prompt run alone.
MECHANISM = ("experts", "attention", "exchange", "launch", "host", "interference", "waiting")
CONTINUOUS = (*LOAD, *MECHANISM)
# Named ones, compared for equality. ``setup`` joins what an engine build is: engine, version, month; ``client`` tells which
# benchmark it was (its lengths drawn, or fixed); checkpoints of one ``shape`` are one architecture.
NAMED = ("engine", "mode", "chip", "family", "model", "kind", "precision", "setup", "layout", "client", "shape")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """``x`` [rows, CONTINUOUS]; ``names`` [rows, NAMED] as text."""

    x: Floats
    names: NDArray[np.str_]

    def rows(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Features:
        return Features(self.x[index], self.names[index])

    def named(self, name: str) -> NDArray[np.str_]:
        """One column of ``names``."""
        return self.names[:, NAMED.index(name)]


def features(cases: Sequence[Case], physics: Sequence[Steady], compiler: Compiler) -> Features:
    """Features of each case; ``physics`` is what ``serving_model.steady`` says of it under ``compiler``."""
    load = np.array([_numbers(case, steady) for case, steady in zip(cases, physics, strict=True)]).reshape(
        -1, len(LOAD)
    )
    names = np.array([_names(case) for case in cases], dtype=str).reshape(-1, len(NAMED))
    return Features(np.concatenate([load, _mechanism(cases, load, compiler)], axis=1), names)


def _numbers(case: Case, steady: Steady) -> list[float]:
    pool = case.pools[-1]
    layout = pool.deployment.layout
    sequences = case.concurrency / (pool.workers * layout.attention_dp)
    prefill, decode = case.isl / max(float(steady.ttft_s), 1e-6), case.osl * float(steady.tpot_s)
    return [
        math.log2(max(sequences, 0.25)), math.log2(case.isl), math.log2(case.osl), math.log2(layout.chips),
        math.log2(layout.moe_ep), math.log2(layout.attention_dp), math.log2(float(steady.tpot_s) * 1e3),
        math.log2(float(steady.ttft_s) * 1e3), 0.25 * math.log2(prefill * decode),
    ]  # fmt: skip


def _mechanism(cases: Sequence[Case], load: Floats, compiler: Compiler) -> Floats:
    """[rows, MECHANISM], deployment by deployment."""
    sequences, isl = np.maximum(2.0 ** load[:, 0], 1.0), 2.0 ** load[:, 1]
    context = 0.9 * (isl + 0.5 * 2.0 ** load[:, 2])
    step, alone = np.empty((len(cases), 5)), np.empty(len(cases))
    total = np.empty(len(cases))
    for decodes, members in _grouped(cases, -1, compiler):
        deployment = cases[members[0]].pools[-1].deployment
        parts, constants = compiler.components(deployment), compiler.constants(deployment)
        step[members], total[members] = _decode_shares(
            parts, constants, compiler.table(deployment), sequences[members], context[members], decodes
        )
    for _, members in _grouped(cases, 0, compiler):
        deployment = cases[members[0]].pools[0].deployment
        table = compiler.table(deployment)
        alone[members] = _prompt_alone(table, 0.9 * isl[members]) + table.first_token_overhead_s
    interference, waiting = load[:, 6] - np.log2(1e3 * total), load[:, 7] - np.log2(1e3 * alone)
    return np.concatenate([step, interference[:, None], waiting[:, None]], axis=1)


def _grouped(cases: Sequence[Case], role: int, compiler: Compiler) -> list[tuple[float, NDArray[np.int64]]]:
    """(pipeline stages, cases) of each deployment."""
    groups: dict[int, list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault(compiler.number(case.pools[role].deployment), []).append(number)
    return [(float(cases[m[0]].pools[role].deployment.layout.pp), np.array(m)) for m in groups.values()]


def _decode_shares(
    parts: Components, constants: EngineProfile, table: StepTable, sequences: Floats, context: Floats, stages: float
) -> tuple[Floats, Floats]:
    """(shares of experts, attention, exchange, launches and host [rows, 5]; seconds of the step [rows])."""
    weigh = np.array([constants.weights[kind] for kind in KINDS])
    floors = np.array([constants.floors[kind] for kind in KINDS])
    collective = np.array([kind in ("all_reduce", "exchange") for kind in KINDS])
    busy = [np.interp(sequences, table.sequences, w * row) for w, row in zip(weigh, parts.decode, strict=True)]
    surface = _bilinear(table.sequences, table.context, table.decode_attention_s, sequences, context)
    graph = np.interp(sequences, table.sequences, table.graph_s)
    exchange = sum(np.asarray(b) for b, c in zip(busy, collective, strict=True) if c) + float(
        (floors * parts.decode_floor)[collective].sum()
    )
    work = np.sum([b for b, c in zip(busy, collective, strict=True) if not c], axis=0)
    host = table.host_decode_s + table.host_per_sequence_s * sequences / stages
    total = graph + surface + host
    launch = np.maximum(graph - work - exchange, 0.0)
    attention = surface + busy[KINDS.index("attention")]
    columns = [busy[KINDS.index("experts")], attention, exchange, launch, host]
    return np.stack(columns, axis=1) / total[:, None], total


def _prompt_alone(table: StepTable, tokens: Floats) -> Floats:
    """Seconds of a prompt in one step of its own, chunk after chunk of the largest size of the table."""
    chunk = np.minimum(tokens, table.tokens[-1])
    alone = np.interp(chunk, table.tokens, table.mixed_s) + np.interp(
        chunk, table.chunk, table.prefill_attention_s[:, 0]
    )
    return np.asarray(alone * tokens / chunk + table.host_mixed_s, float)


def _bilinear(rows: Floats, columns: Floats, surface: Floats, x: Floats, y: Floats) -> Floats:
    """``surface`` at (x, y), clamped to its grid."""
    x, y = np.clip(x, rows[0], rows[-1]), np.clip(y, columns[0], columns[-1])
    i = np.clip(np.searchsorted(rows, x) - 1, 0, len(rows) - 2)
    j = np.clip(np.searchsorted(columns, y) - 1, 0, len(columns) - 2)
    u, v = (x - rows[i]) / (rows[i + 1] - rows[i]), (y - columns[j]) / (columns[j + 1] - columns[j])
    low = surface[i, j] * (1 - v) + surface[i, j + 1] * v
    high = surface[i + 1, j] * (1 - v) + surface[i + 1, j + 1] * v
    return np.asarray(low * (1 - u) + high * u, float)


def _names(case: Case) -> list[str]:
    g = case.group
    architecture = case.pools[-1].deployment.architecture
    experts = architecture.routed
    latent = any(layer.mixer.kind == "mla" for layer in architecture.layers)
    kind = ("moe" if experts else "dense") + ("-mla" if latent else "")
    setup = f"{g['engine']} {g['version']} {g['measured_on'][:7]}"
    layout = case.pools[-1].deployment.layout
    spread = f"{layout.tp}x{layout.attention_dp}x{layout.moe_ep} {len(case.pools)} {case.pools[0].workers}"
    shape = f"{architecture.model_type} {architecture.hidden} {architecture.num_layers}"
    client = "drawn" if draws(case) else "fixed"
    return [
        g["engine"], g["mode"], g["chip"], g["family"], g["model"], kind, g["precision"], setup, spread, client, shape,
    ]  # fmt: skip
