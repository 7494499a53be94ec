"""One step of an engine as sums over kinds of operators, on small grids: what the step table is made of.

Grids: decode sequences S, mean context C, tokens of a prompt step T (and chunk sizes, the same), cached tokens P. An
operator whose time depends on the context goes to the attention sums, any other to the token sums. Calibration changes
only the weights of the kinds, so a deployment is compiled once and re-weighted in microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip import timing
from trivet.cloud import collectives, fabric
from trivet.cloud.deployment import Deployment
from trivet.model.layers import operators
from trivet.model.parallel import Batch, Layout
from trivet.operators import Gemm, GroupedGemm, Operator, Scan, Stream, Transfer

Floats = NDArray[np.float64]

SEQUENCES = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024], float)
CONTEXT = np.array([128, 1024, 4096, 16384, 65536, 262144], float)
TOKENS = np.array([8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], float)
PAST = np.array([0, 2048, 8192, 32768, 131072], float)

# Kinds of work that a calibration may weigh: busy time of each, and launches.
KINDS = ("gemm", "head", "experts", "attention", "scan", "stream", "all_reduce", "exchange")


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Seconds by kind [K, ...] without launch floors, and the floors of all kernels together."""

    decode: Floats  # [K, S]
    decode_floor: Floats  # [2] compute kernels, collectives
    decode_attention: Floats  # [S, C]
    mixed: Floats  # [K, T]
    mixed_floor: Floats  # [2]
    prefill_attention: Floats  # [T, P]
    kernels: float  # launches of one step
    layers: int
    log_sigma: float  # of the operators' times together


def kind_index(operator: Operator) -> int:
    """Row of ``KINDS``."""
    if isinstance(operator, Transfer):
        return 6 if operator.axis in ("tp", "pp", "dcp", "cp") else 7
    if isinstance(operator, GroupedGemm):
        return 2
    if isinstance(operator, Gemm):
        return 1 if operator.name == "lm_head" else 0
    if isinstance(operator, Scan):
        return 4
    return 5 if isinstance(operator, Stream) else 3


class _Clock:
    """Times operators for one deployment and sums them by kind."""

    def __init__(self, deployment: Deployment):
        self.deployment = deployment
        self.place = fabric.server_of(deployment.chip, deployment.server)
        self.levels: dict[int, Any] = {}
        self.library = deployment.settings.engine

    def seconds(self, operator: Operator) -> Any:
        if isinstance(operator, Transfer):
            group = operator.group
            if group not in self.levels:
                self.levels[group] = [
                    collectives.Level(
                        level.size, level.bandwidth_bytes_per_s / level.oversubscription, level.latency_s, log_sigma=level.log_sigma
                    )
                    for level in fabric.levels(self.place, group, self.deployment.chip)
                ]
            return collectives.time(operator, self.levels[group], self.deployment.chip, self.library)
        return timing.time(operator, self.deployment.chip, self.library)

    def sums(self, found: tuple[Operator, ...], rows: int, columns: int) -> tuple[Floats, Floats, Floats, float, float]:
        """(busy by kind [K, rows], floors [2], context part [rows, columns], launches, log sigma at the middle)."""
        busy, floors = np.zeros((len(KINDS), rows)), np.zeros(2)
        surface = np.zeros((rows, columns))
        launches, total, variance = 0.0, 0.0, 0.0
        for operator in found:
            time = self.seconds(operator)
            value = np.asarray(time.value_s, float) * operator.count
            floor = float(np.min(np.asarray(time.floor_s, float))) * operator.count
            floors[1 if isinstance(operator, Transfer) else 0] += floor
            launches += operator.count
            work = np.maximum(value - floor, 0.0)
            kind = kind_index(operator)
            if work.ndim == 2 and work.shape[1] > 1:
                surface += work
            elif work.ndim == 2:
                busy[kind] += work[:, 0]
            else:
                busy[kind] += work
            middle = float(value.mean())
            total += middle
            variance += (middle * float(np.mean(time.log_sigma))) ** 2
        return busy, floors, surface, launches, float(np.sqrt(variance)) / max(total, 1e-12)


def compile_components(deployment: Deployment) -> Components:
    """Operators of the deployment's decode and prompt steps, timed on the grids.

    With pipeline stages a decode step of ``B`` sequences is ``pp`` passes of ``B / pp`` in flight at once, and a prompt
    step of ``T`` tokens leaves every ``1/pp`` of its full pass. Raises DoesNotFit when the layout does not divide the model.
    """
    architecture, settings = deployment.architecture, deployment.settings
    layout: Layout = deployment.layout
    names = {"weight_dtype": settings.weight_dtype, "moe_dtype": settings.moe_dtype, "kv_dtype": settings.kv_dtype}
    clock = _Clock(deployment)
    pp = float(layout.pp)
    decode = Batch(
        decode_sequences=np.maximum(SEQUENCES[:, None] / pp, 1.0), decode_context=CONTEXT[None, :],
        decode_tokens=1.0 + settings.speculative_tokens,
    )
    prompt = Batch(
        prefill_sequences=1.0, prefill_tokens=TOKENS[:, None], prefill_past=PAST[None, :],
        logits=np.minimum(TOKENS[:, None], 64.0),
    )
    a = clock.sums(operators(architecture, decode, layout, **names), len(SEQUENCES), len(CONTEXT))
    b = clock.sums(operators(architecture, prompt, layout, **names), len(TOKENS), len(PAST))
    return Components(
        a[0], a[1], a[2], b[0] / pp, b[1] / pp, b[2] / pp, a[3], architecture.num_layers, float(np.hypot(a[4], b[4]) / 2**0.5)
    )

