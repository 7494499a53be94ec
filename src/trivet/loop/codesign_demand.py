"""A demand for chips, and what it costs on one: workloads under SLO to chip-seconds, dollars and joules a token.

Each workload becomes one number, tokens a second and chip, at the load where its SLO still holds:

* decode: the largest batch whose step meets TPOT and whose KV fits, ``B * ranks / step(B, context) / chips``, the
  geometric mean over services whose TPOT is 0.8 to 1.25 times the one named (step times have tile edges, and one SLO may
  sit on one);
* prefill: ``prompt / t / chips`` times the load at which a queue of deterministic service (M/D/1) keeps the mean TTFT,
  ``t (1 + rho / (2 (1 - rho))) = TTFT``;
* training: the step of the best split that fits;
* mix: the chip-seconds that every service's mean request takes in a prefill and a decode pool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trivet.chip import estimate
from trivet.chip.estimate import Estimate
from trivet.chip.power import power_w
from trivet.chip.silicon import bill_of_materials
from trivet.chip.spec import Chip
from trivet.cloud.cost import card_usd, chip_hour, owner_hour_usd
from trivet.cloud.deployment import Deployment, EngineSettings, StepTable
from trivet.cloud.energy import facility_w
from trivet.cloud.engine.step import step_table
from trivet.cloud.fabric import server_of
from trivet.cloud.training.job import Split, TrainingJob
from trivet.cloud.training.step import train_step
from trivet.errors import DoesNotFit, TrivetError, Unsupported
from trivet.loop.space import Space, layouts, precisions
from trivet.model.architecture import Architecture
from trivet.model.layers import operators
from trivet.model.parallel import Batch, Layout
from trivet.operators import Transfer

KINDS = ("decode", "prefill", "training", "mix")
CHUNK = 8192
MAX_BATCH = 1024.0
MAX_LOAD = 0.95
SLO_SPREAD = (0.8, 0.87, 0.94, 1.0, 1.06, 1.15, 1.25)  # of the SLOs that a decode pool serves, over the one named
_NUMBERS = {
    "decode": ("context", "tpot_s"), "prefill": ("prompt", "ttft_s"), "training": ("seq_len", "global_batch", "chips"),
    "mix": ("tpot_s", "ttft_s"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of work. ``numbers`` by kind: see the module. ``services``: the parts of a mix, (workload, tokens a second)."""

    name: str
    kind: str
    share: float
    architecture: Architecture | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    services: tuple[tuple[Workload, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """How a chip runs a workload: layout and formats of a replica, or a training split."""

    layout: Layout | None = None
    weight: str = ""
    kv: str = ""
    split: Split | None = None
    micro_batch: int = 1
    recompute: str = "none"

    @property
    def text(self) -> str:
        if self.split is not None:
            s = self.split
            return f"tp {s.tp} pp {s.pp} dp {s.dp} micro {self.micro_batch} recompute {self.recompute}"
        assert self.layout is not None
        experts = f" ep {self.layout.moe_ep}" if self.layout.moe_ep > 1 else ""
        ranks = f" dp {self.layout.attention_dp}" if self.layout.attention_dp > 1 else ""
        return f"tp {self.layout.tp}{ranks}{experts}, {self.weight or 'own'} weights, {self.kv or 'own'} KV"


@dataclass(frozen=True, slots=True)
class Rate:
    """What one chip does of a workload: tokens/s, and for its power FLOP/s, bytes/s, link bytes/s; relative timing doubt."""

    tokens_per_s: float
    flops_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float
    log_sigma: float
    choice: Choice


@dataclass(frozen=True, slots=True)
class Metrics:
    """A workload on a chip: USD a million tokens, joules a token, chips for a million tokens a second."""

    usd: Estimate
    joules: Estimate
    chips: Estimate
    choice: str


@dataclass(frozen=True, slots=True)
class Price:
    """What a variant of ``base`` costs an hour: the base's price times the ratio of derived owner's costs.

    The card's price moves with its bill of materials (the markup stays); power, facility and server as they are.
    """

    base: Chip
    basis: str
    site: str
    hour: Estimate
    card: Estimate
    owner: Estimate

    @classmethod
    def of(cls, base: Chip, basis: str = "tco_hyperscaler", site: str = "") -> Price:
        card = card_usd(base)
        owner = owner_hour_usd(base, site=site, card=card)
        return cls(base, basis, site, chip_hour(base, basis, site=site).usd, card, owner)

    def usd_per_hour(self, chip: Chip) -> Estimate:
        """``chip`` is the base or a variant of it."""
        if chip is self.base:
            return self.hour
        bill = bill_of_materials(chip).total / bill_of_materials(self.base).total
        return self.hour * (owner_hour_usd(chip, site=self.site, card=self.card * bill) / self.owner)


def demand(raw: Mapping[str, Any], read_model: Any) -> tuple[Workload, ...]:
    """The workloads of a scenario file; ``read_model`` turns a name into an Architecture.

    Raises:
        TrivetError: naming the field.
    """
    listed = raw.get("workloads")
    if not isinstance(listed, Mapping) or not listed:
        raise TrivetError("needs at least one workload", field="workloads")
    found = tuple(_workload(str(name), entry, read_model) for name, entry in listed.items())
    whole = sum(w.share for w in found)
    if whole <= 0:
        raise TrivetError("shares sum to nothing", field="workloads: share")
    return tuple(Workload(w.name, w.kind, w.share / whole, w.architecture, w.numbers, w.services) for w in found)


def _workload(name: str, raw: Any, read_model: Any) -> Workload:
    if not isinstance(raw, Mapping) or raw.get("kind") not in KINDS:
        raise TrivetError("no known kind", field=f"{name}: kind", allowed=KINDS)
    kind = str(raw["kind"])
    unknown = set(raw) - {"kind", "share", "model", "services", *_NUMBERS[kind]}
    if unknown:
        raise TrivetError(
            f"unknown key {sorted(unknown)[0]!r}", field=name, allowed=("kind", "share", "model", *_NUMBERS[kind])
        )
    numbers = {key: _positive(raw.get(key), f"{name}: {key}") for key in _NUMBERS[kind]}
    share = _positive(raw.get("share", 1.0), f"{name}: share")
    if kind != "mix":
        if "model" not in raw:
            raise TrivetError("missing", field=f"{name}: model")
        return Workload(name, kind, share, read_model(str(raw["model"])), numbers)
    services = raw.get("services")
    if not isinstance(services, Mapping) or not services:
        raise TrivetError("a mix needs services", field=f"{name}: services")
    parts: list[tuple[Workload, float]] = []
    for service, entry in services.items():
        if not isinstance(entry, Mapping) or "model" not in entry:
            raise TrivetError("missing", field=f"{name}: {service}: model")
        rate, tokens_in, tokens_out = (
            _positive(entry.get(key), f"{name}: {service}: {key}") for key in ("requests_per_s", "input", "output")
        )
        model = read_model(str(entry["model"]))
        prefill = {"prompt": tokens_in, "ttft_s": numbers["ttft_s"]}
        decode = {"context": tokens_in + tokens_out / 2, "tpot_s": numbers["tpot_s"]}
        parts.append((Workload(f"{service} prefill", "prefill", 1.0, model, prefill), rate * tokens_in))
        parts.append((Workload(f"{service} decode", "decode", 1.0, model, decode), rate * tokens_out))
    return Workload(name, kind, share, None, numbers, tuple(parts))


def _positive(value: Any, field_name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not np.isfinite(value):
        raise TrivetError(f"{value!r} is not a positive number", field=field_name)
    return float(value)


def choices(chip: Chip, workload: Workload, limit: int = 16, keep: int = 1) -> tuple[Choice, ...]:
    """The ``keep`` ways to run a workload that give most tokens a chip-second; for a mix use its services one by one.

    Raises:
        DoesNotFit: no layout fits or meets the SLO.
    """
    rated: list[tuple[float, int, Choice]] = []
    for choice in _candidates(chip, workload, limit):
        try:
            rated.append((-rate(chip, workload, choice).tokens_per_s, len(rated), choice))
        except (DoesNotFit, Unsupported):
            continue
    if not rated:
        raise DoesNotFit(f"nothing up to {limit} chips fits and meets the SLO", field=f"{workload.name} on {chip.name}")
    return tuple(choice for _, _, choice in sorted(rated)[:keep])


def rate(chip: Chip, workload: Workload, choice: Choice) -> Rate:
    """Tokens a second of one chip for a workload that is not a mix, run as ``choice`` says, at the SLO's load."""
    assert workload.architecture is not None
    if workload.kind == "training":
        return _training(chip, workload, choice)
    assert choice.layout is not None
    settings = EngineSettings(max_num_batched_tokens=CHUNK, weight_dtype=choice.weight, kv_dtype=choice.kv)
    if choice.weight and workload.architecture.routed:
        settings = EngineSettings(
            max_num_batched_tokens=CHUNK, weight_dtype=choice.weight, moe_dtype=choice.weight, kv_dtype=choice.kv
        )
    table = step_table(Deployment(workload.architecture, chip, choice.layout, settings))
    if workload.kind == "decode":
        return _decode(workload, choice, settings, table)
    return _prefill(workload, choice, settings, table)


def metrics(
    chip: Chip, workload: Workload, found: Mapping[str, Choice], price: Price, timed: Chip | None = None
) -> Metrics:
    """Cost, energy and chips of a workload (or of each service of a mix, added up) on ``chip``.

    ``found`` maps the name of each workload (of each service, for a mix) to how it runs; ``timed`` is the chip that the
    timing model sees, where that differs (see ``codesign.timed``).
    """
    usd_per_s = price.usd_per_hour(chip) / 3600.0
    parts = workload.services if workload.kind == "mix" else ((workload, 1.0),)
    seconds: list[Estimate] = []
    joules: list[Estimate] = []
    whole = sum(tokens for _, tokens in parts)
    texts = []
    for part, tokens in parts:
        one = rate(timed or chip, part, found[part.name])
        chip_s = Estimate(1.0 / one.tokens_per_s, {f"{chip.name} timing": one.log_sigma} if one.log_sigma else {})
        watts = facility_w(chip, _watts(chip, one), server_of(chip), price.site)
        seconds.append(chip_s * (tokens / whole))
        joules.append(chip_s * watts * (tokens / whole))
        texts.append(f"{part.name}: {one.choice.text}" if workload.kind == "mix" else one.choice.text)
    chip_seconds = estimate.total(seconds)
    return Metrics(chip_seconds * usd_per_s * 1e6, estimate.total(joules), chip_seconds * 1e6, "; ".join(texts))


def _watts(chip: Chip, one: Rate) -> Estimate:
    dtype = (
        "fp8" if one.choice.weight.startswith("fp8") else one.choice.weight if one.choice.weight == "int8" else "bf16"
    )
    return power_w(
        chip,
        flops_per_s=one.flops_per_s,
        bytes_per_s=one.bytes_per_s,
        link_bytes_per_s=one.link_bytes_per_s,
        dtype=dtype,
    )


def _candidates(chip: Chip, workload: Workload, limit: int) -> Iterable[Choice]:
    assert workload.architecture is not None
    if workload.kind == "training":
        yield from _splits(workload)
        return
    formats = precisions(chip, Space((chip.name,)))
    reach = server_of(chip).domain_chips
    for layout in layouts(workload.architecture, reach, limit):
        if layout.pp == 1 and layout.moe_tp == 1:
            for one in formats:
                yield Choice(layout, one.weight, one.kv)


def _splits(workload: Workload) -> Iterable[Choice]:
    chips, batch = int(workload.numbers["chips"]), int(workload.numbers["global_batch"])
    for tp in (1, 2, 4, 8):
        for pp in (1, 2, 4, 8):
            dp = chips // (tp * pp)
            if dp * tp * pp != chips or batch % dp:
                continue
            for micro in (1, 2, 4):
                for recompute in ("none", "selective", "full"):
                    if batch // dp % micro == 0 and (recompute != "full" or micro == 1):
                        yield Choice(split=Split(tp=tp, pp=pp, dp=dp), micro_batch=micro, recompute=recompute)


def _decode(workload: Workload, choice: Choice, settings: EngineSettings, table: StepTable) -> Rate:
    assert choice.layout is not None
    assert workload.architecture is not None
    context, slo = workload.numbers["context"], workload.numbers["tpot_s"]
    fits = table.kv_blocks * table.block_size / context
    if fits < 1:
        raise DoesNotFit(f"one sequence of {context:g} tokens does not fit", field=workload.name)
    attention = np.array([np.interp(context, table.context, row) for row in table.decode_attention_s])

    def step_s(batch: float) -> float:
        device = float(np.interp(batch, table.sequences, table.graph_s) + np.interp(batch, table.sequences, attention))
        host = table.host_decode_s + table.host_per_sequence_s * batch
        return max(device, host) if table.overlap else device + host

    high = min(MAX_BATCH, fits, float(table.sequences[-1]))
    if step_s(1.0) > slo:
        raise DoesNotFit(f"a step takes {step_s(1.0) * 1e3:.0f} ms", field=workload.name, allowed=f"{slo * 1e3:g} ms")
    # Kernels step from tile to tile, and one SLO may sit on an edge: the mean over services somewhat stricter and laxer.
    batches = [high if step_s(high) <= k * slo else _bisect(step_s, 1.0, high, k * slo) for k in SLO_SPREAD]
    logs = [np.log(batch / step_s(batch)) for batch in batches]
    batch = batches[len(batches) // 2]
    work = _work(workload.architecture, Batch(decode_sequences=batch, decode_context=context), choice, settings)
    flops, moved, linked = (w / step_s(batch) for w in work)
    tokens = float(np.exp(np.mean(logs))) * choice.layout.attention_dp / choice.layout.chips
    return Rate(tokens, flops, moved, linked, table.log_sigma, choice)


def _prefill(workload: Workload, choice: Choice, settings: EngineSettings, table: StepTable) -> Rate:
    assert choice.layout is not None
    assert workload.architecture is not None
    prompt, slo = workload.numbers["prompt"], workload.numbers["ttft_s"]
    many = max(1.0, float(CHUNK // prompt))  # short prompts share a step
    if table.kv_blocks * table.block_size < prompt:
        raise DoesNotFit(f"a prompt of {prompt:g} tokens does not fit", field=workload.name)
    total, past, work = 0.0, 0.0, np.zeros(3)
    while past < prompt:
        new = min(CHUNK, prompt - past)
        device = np.interp(new * many, table.tokens, table.mixed_s)
        row = [np.interp(past, table.past, line) for line in table.prefill_attention_s]
        device += many * np.interp(new, table.chunk, row)
        host = table.host_mixed_s + table.host_per_sequence_s * many
        total += float(max(device, host) if table.overlap else device + host)
        batch = Batch(prefill_sequences=many, prefill_tokens=new, prefill_past=past)
        work += _work(workload.architecture, batch, choice, settings)
        past += new
    spare = (slo - table.first_token_overhead_s) / total - 1.0
    if spare <= 0:
        raise DoesNotFit(f"a prompt takes {total:.2f} s", field=workload.name, allowed=f"{slo:g} s")
    load = min(MAX_LOAD, 2.0 * spare / (1.0 + 2.0 * spare))
    tokens = prompt * many * choice.layout.attention_dp / total / choice.layout.chips * load
    flops, moved, linked = (float(w) / total * load for w in work)
    return Rate(tokens, flops, moved, linked, table.log_sigma, choice)


def _training(chip: Chip, workload: Workload, choice: Choice) -> Rate:
    assert workload.architecture is not None
    assert choice.split is not None
    numbers = workload.numbers
    job = TrainingJob(
        workload.architecture, chip, choice.split, int(numbers["seq_len"]), int(numbers["global_batch"]), choice.micro_batch,
        recompute=choice.recompute,
    )  # fmt: skip
    step = train_step(job)
    if not step.fits:
        raise DoesNotFit(
            f"{step.peak.total / 1e9:.0f} GB a chip", field=workload.name, allowed=f"{step.capacity_bytes / 1e9:.0f} GB"
        )
    again = {"none": 1.0, "selective": 1.02, "full": 4 / 3}[choice.recompute]
    flops = step.model_flops_per_s_per_chip * again
    # A GEMM at peak rate uses about a third of the memory rate; training is mostly such GEMMs.
    memory = 0.35 * (chip.get("memory_bandwidth_bytes_per_s") or 0.0) * min(1.0, step.mfu * again / 0.7)
    return Rate(
        step.tokens_per_s_per_chip,
        flops,
        memory,
        0.1 * (chip.get("link_bandwidth_bytes_per_s") or 0.0),
        step.log_sigma,
        choice,
    )


def _work(
    architecture: Architecture, batch: Batch, choice: Choice, settings: EngineSettings
) -> tuple[float, float, float]:
    """FLOPs, bytes and link bytes of one chip in one step."""
    flops = moved = linked = 0.0
    for op in operators(
        architecture, batch, choice.layout, weight_dtype=settings.weight_dtype, moe_dtype=settings.moe_dtype,
        kv_dtype=settings.kv_dtype,
    ):  # fmt: skip
        if isinstance(op, Transfer):
            linked += float(op.bytes) * op.count
        else:
            flops += float(op.flops) * op.count
            moved += float(op.bytes) * op.count
    return flops, moved, linked


def _bisect(step_s: Any, low: float, high: float, slo: float) -> float:
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if step_s(middle) <= slo else (low, middle)
    return low
