"""The physics of one case: its pools' step tables, its scheduler, its clients, followed to a mean TTFT and TPOT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trivet.cloud import fabric
from trivet.cloud.deployment import Deployment, StepTable
from trivet.cloud.engine import (
    Components,
    EngineProfile,
    assemble,
    compile_components,
    profile,
    room,
    schedule,
    speculating,
)
from trivet.cloud.engine.ported import behind
from trivet.cloud.engine.versions import kernel_changes
from trivet.cloud.serving.steady import Policy, Split, Steady, closed_loop, closed_loop_split
from trivet.errors import DoesNotFit
from trivet.loop.serving_launch import launched
from trivet.loop.serving_recipes import recipe
from trivet.loop.serving_rows import LENGTHS, Case
from trivet.loop.serving_speculation import Speculation, unstated
from trivet.model import memory

# deployment_key -> a number that stands for it, one for all compilers: calibration hands parts from one to the next.
_NUMBERS: dict[Any, int] = {}


@dataclass(slots=True)
class Compiler:
    """Remembers compiled deployments. ``profiles`` replaces the shipped constants by engine (calibration)."""

    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    parts: dict[int, Components] = field(default_factory=dict)
    rooms: dict[Any, tuple[float, str]] = field(default_factory=dict)
    tables: dict[tuple[int, float, bool, int], StepTable] = field(default_factory=dict)
    known: dict[tuple[str, str, str], EngineProfile] = field(default_factory=dict)
    speculation: bool = True  # reckon with speculation that rows do not state
    held: dict[int, tuple[Deployment, int]] = field(default_factory=dict)  # by identity; kept, so that it stays its own

    def constants(self, deployment: Deployment) -> EngineProfile:
        name = (deployment.settings.engine, deployment.settings.version, deployment.chip.name)
        if name not in self.known:
            own = self.profiles.get(name[0])
            self.known[name] = own.build(name[1], name[2]) if own else profile(*name)
        return self.known[name]

    def number(self, deployment: Deployment) -> int:
        """A number that deployments with one ``deployment_key`` share; worked out once an object, since hashing takes long."""
        held = self.held.get(id(deployment))
        if held is None:
            number = _NUMBERS.setdefault(deployment_key(deployment), len(_NUMBERS))
            held = self.held[id(deployment)] = (deployment, number)
        return held[1]

    def components(self, deployment: Deployment) -> Components:
        """Compiled once a deployment."""
        key = self.number(deployment)
        found = self.parts.get(key)
        if found is None:
            found = self.parts[key] = compile_components(deployment)
        return found

    def kv_tokens(self, deployment: Deployment) -> tuple[float, str]:
        """(KV tokens of a rank, a note where our count finds no room: then as many as are asked for)."""
        settings = deployment.settings
        key = (self.number(deployment), deployment.expected_isl, settings.memory_utilization, settings.num_kv_blocks)
        if key not in self.rooms:
            try:
                space = room(deployment, self.constants(deployment), deployment.expected_isl)
                self.rooms[key] = (float(space.blocks * settings.block_size), "")
            except DoesNotFit as error:
                self.rooms[key] = (np.inf, f"by our count it does not fit, its KV taken as sufficient: {error}")
        return self.rooms[key]

    def table(
        self, deployment: Deployment, launches: float = 1.0, overlap: bool | None = None, drafts: int = 0
    ) -> StepTable:
        """``launches``: the host's time for launches in steps with prompts, over that of the engine. ``overlap``: whether the
        host works beside the device, where a launch script says so. ``drafts``: tokens that the model's own head proposes a
        step."""
        constants = self.constants(deployment)
        if overlap is not None:
            constants = replace(constants, overlap=overlap)
        if launches != 1.0:
            constants = constants.launching(launches)
        key = (self.number(deployment), constants.routed_layer_s, constants.overlap, drafts)
        if key not in self.tables:
            found = assemble(self.components(deployment), constants)
            if drafts:
                wider = replace(deployment, settings=replace(deployment.settings, speculative_tokens=drafts))
                wide = assemble(self.components(wider), constants)
                found = speculating(wide, found, self.components(deployment), drafts)
            self.tables[key] = found
        return self.tables[key]


def deployment_key(deployment: Deployment) -> Any:
    """What a compiled deployment depends on, hashable."""
    d = deployment
    s = d.settings
    quantisation = d.architecture.quantisation
    kernels = kernel_changes(s.engine, s.version)
    return (d.architecture.name, quantisation, d.chip.name, d.server, d.layout, s.engine, kernels, s.kv_dtype, s.weight_dtype,
            s.moe_dtype, s.speculative_tokens, s.all_reduce, behind(d))  # fmt: skip


# Rows with a date and lengths of InferenceX come from a benchmark that draws lengths from 0.8 to 1.0 of the nominal ones. Others
# come from a client with fixed lengths, whose requests stay in step; what little an engine itself spreads them is this.
DRAWN = 0.8
FIXED = {"sglang": 1.0, "trtllm": 1.0, "vllm": 0.98}
# That client also sends its next request at once: of what a first token takes beside its steps only a share lies before the
# scheduler sees the request. Requests that ended one step apart then stay apart, as groups of their own.
TURNAROUND = {"sglang": 0.35, "trtllm": 0.35, "vllm": 0.0}


def draws(case: Case) -> bool:
    """Whether the benchmark that a row is from draws its lengths; so does what is asked for without one ("recent")."""
    asked = bool(case.measured_on) and not case.measured_on[:1].isdigit()
    return asked or (bool(case.measured_on) and {case.isl, case.osl} <= set(LENGTHS))


def shortest(case: Case) -> float:
    """Shortest length over the nominal one in the benchmark that a row is from, where the row does not say it."""
    if case.shortest:
        return case.shortest
    return DRAWN if draws(case) else FIXED[case.group["engine"]]


def turnaround(case: Case) -> float:
    """``Policy.turnaround`` of the benchmark that a row is from."""
    return 1.0 if draws(case) else TURNAROUND[case.group["engine"]]


def streaming_steps(case: Case, constants: EngineProfile) -> float:
    """Decode steps until the first token is streamed out; the client of fixed lengths streams every token."""
    return constants.first_token_steps if draws(case) else min(1.0, constants.first_token_steps)


def steady(case: Case, compiler: Compiler) -> Steady:
    """Mean TTFT and TPOT of a case, before any residual."""
    low = shortest(case)
    if len(case.pools) > 1:
        return _split(case, compiler, low)
    plain = _aggregated(case, compiler, low, Speculation())
    drawn = unstated(case) if compiler.speculation else Speculation()
    if not drawn.share:
        return plain
    faster = _aggregated(case, compiler, low, drawn)
    tpot, ttft = (
        getattr(plain, name) ** (1.0 - drawn.share) * getattr(faster, name) ** drawn.share for name in ("tpot_s", "ttft_s")
    )
    return replace(faster, tpot_s=tpot, ttft_s=ttft)


def _aggregated(case: Case, compiler: Compiler, low: float, drawn: Speculation) -> Steady:
    pool = case.pools[0]
    clients = max(1.0, case.concurrency / pool.workers)
    plan = launched(case, schedule(pool.deployment, case.isl, case.osl, clients), drawn.drafts)
    table = compiler.table(pool.deployment, plan.launches, False if drawn.serial else plan.overlap, drawn.drafts)
    if drawn.serial:
        table = replace(table, host_per_sequence_s=3.0 * table.host_per_sequence_s)
    constants = compiler.constants(pool.deployment)
    kv_tokens = compiler.kv_tokens(pool.deployment)[0]
    policy = Policy(
        plan.mixing,
        plan.budget_tokens,
        plan.max_sequences,
        kv_tokens,
        pool.deployment.layout.attention_dp,
        tokens_a_step=drawn.tokens_a_step,
        decode_tokens=1.0 + drawn.drafts,
        preempts=plan.preempts,
        frontend_s=constants.frontend_s,
        look_steps=plan.look_steps,
        wait_steps=plan.wait_steps,
        gather_steps=plan.gather_steps,
        gather_tokens=plan.gather_share * plan.budget_tokens,
        first_token_steps=streaming_steps(case, constants),
        cold_s=plan.cold_s,
        turnaround=turnaround(case),
    )
    return closed_loop(table, case.isl, case.osl, clients, policy, low=low)


def _split(case: Case, compiler: Compiler, low: float) -> Steady:
    prefill, decode = case.pools
    plan = launched(case, schedule(prefill.deployment, case.isl, case.osl, case.concurrency))
    tables = [compiler.table(pool.deployment, plan.launches) for pool in case.pools]
    constants = compiler.constants(prefill.deployment)
    ranks = decode.deployment.layout.attention_dp
    known = recipe(case)
    slots = decode.max_sequences or 2048.0
    kv_tokens = compiler.kv_tokens(decode.deployment)[0]
    budget = max(plan.budget_tokens, case.isl)
    if known is not None:
        slots, budget = known.slots, max(known.prompt_tokens, case.isl)
    split = Split(
        prefill.workers,
        prefill.deployment.layout.attention_dp,
        budget,
        decode.workers,
        ranks,
        slots * ranks,
        kv_tokens * ranks,
        transfer_token_s=_transfer_token_s(prefill.deployment),
        frontend_s=constants.frontend_s,
        first_token_steps=plan.stream_steps + streaming_steps(case, constants),
        routing="round_robin" if case.group["engine"] == "trtllm" else "least_loaded",
        frontends=known.frontends if known else 1,
    )
    return closed_loop_split(tables[0], tables[1], case.isl, case.osl, case.concurrency, split, low=low)


def _transfer_token_s(deployment: Deployment) -> float:
    """Seconds that one token's KV of one chip takes to the decode pool."""
    size = memory.kv_bytes_per_token(deployment.architecture, deployment.layout, kv_dtype=deployment.settings.kv_dtype)
    level = fabric.kv_level(fabric.server_of(deployment.chip, deployment.server), deployment.chip)
    return size / level.bandwidth_bytes_per_s
