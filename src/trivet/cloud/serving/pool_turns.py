"""One chip that takes turns between models, request by request: the check on the closed form of ``pooling``.

Prompts first, those of the model that is on the chip before others; then decode turns over the models in use, each long
enough to run ahead of the service level by one round. A token is on time when it leaves the buffer by
``arrival + ttft_slo + i * tpot_slo`` (the deadline of a stream that a reader follows).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.pooling import Pool, PooledModel
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError


@dataclass(slots=True)
class _Stream:
    """A request in decode: when its stream's clock starts, and how many tokens it has."""

    request: int
    start_s: float
    output: int
    made: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TurnResult:
    """``on_time``: share of the tokens within their deadline; ``ttft_on_time`` of the first ones; shares of time.

    ``first_token_s`` and ``last_token_s``: when the chip made them, in the order of the traffic.
    """

    requests: int
    tokens: int
    on_time: float
    ttft_on_time: float
    busy: float
    switching: float
    switches: int
    first_token_s: NDArray[np.float64]
    last_token_s: NDArray[np.float64]


def simulate_turns(traffic: Traffic, models: Sequence[PooledModel], pool: Pool) -> TurnResult:
    """Follow ``traffic`` (``model`` = index into ``models``) on one instance.

    Prefill times are those of the model's mean prompt, scaled by the request's length.
    """
    if traffic.model is None or (len(traffic) and int(traffic.model.max()) >= len(models)):
        raise TrivetError("every request needs the index of its model", field="traffic.model")
    chip = _Chip(models, pool, len(traffic))
    arrival, owner = traffic.arrival_s.tolist(), traffic.model.tolist()
    inputs, outputs = traffic.input_tokens.tolist(), traffic.output_tokens.tolist()
    at = 0
    while at < len(arrival) or chip.waiting_total or chip.active_total:
        if not chip.waiting_total and not chip.active_total:
            chip.now = max(chip.now, arrival[at])
        while at < len(arrival) and arrival[at] <= chip.now:
            chip.arrive(at, owner[at], arrival[at], inputs[at], outputs[at])
            at += 1
        if chip.waiting_total:
            chip.prefill()
        elif chip.active_total:
            chip.turn(arrival[at] if at < len(arrival) else np.inf)
    return chip.result(len(arrival))


class _Chip:
    def __init__(self, models: Sequence[PooledModel], pool: Pool, requests: int):
        self.first, self.last = np.full(requests, np.nan), np.full(requests, np.nan)
        self.models, self.pool = models, pool
        self.prefill_s = [m.prefill_s / max(m.input_tokens, 1.0) for m in models]
        self.switch_s = [pool.switch_s(m) for m in models]
        self.steps: list[dict[int, float]] = [{} for _ in models]
        self.waiting: list[deque[tuple[float, int, int, int]]] = [deque() for _ in models]
        self.active: list[list[_Stream]] = [[] for _ in models]
        self.waiting_total = self.active_total = 0
        self.now = self.busy = self.switching = 0.0
        self.on = -1
        self.switches = self.tokens = self.good = self.good_first = 0

    def arrive(self, request: int, model: int, time: float, inputs: int, outputs: int) -> None:
        self.waiting[model].append((time, inputs, outputs, request))
        self.waiting_total += 1

    def _bring(self, model: int) -> None:
        if self.on != model:
            self.now += self.switch_s[model]
            self.switching += self.switch_s[model]
            self.on = model
            self.switches += 1

    def _step(self, model: int, sequences: int) -> float:
        known = self.steps[model]
        if sequences not in known:
            known[sequences] = float(self.models[model].decode_s(np.array([float(sequences)]))[0])
        return known[sequences]

    def prefill(self) -> None:
        """One prompt: of the model on the chip, else of the one whose oldest prompt has waited longest."""
        if self.on >= 0 and self.waiting[self.on]:
            model = self.on
        else:
            model = min((q[0][0], i) for i, q in enumerate(self.waiting) if q)[1]
        self._bring(model)
        arrived, inputs, outputs, request = self.waiting[model].popleft()
        self.waiting_total -= 1
        spent = inputs * self.prefill_s[model]
        self.now += spent
        self.busy += spent
        self.tokens += 1
        first = self.now <= arrived + self.pool.ttft_slo_s
        self.good += first
        self.good_first += first
        self.first[request] = self.last[request] = self.now
        if outputs > 1:
            # A reader follows from the moment the first token is due at the latest, or there.
            self.active[model].append(_Stream(request, max(self.now, arrived + self.pool.ttft_slo_s), outputs, 1))
            self.active_total += 1

    def turn(self, next_arrival: float) -> None:
        """Decode the model whose reader runs dry first, until its streams are a round ahead, or a prompt comes."""
        pace, round_s = self.pool.tpot_slo_s, self.pool.round_s
        used = [i for i, streams in enumerate(self.active) if streams]
        model = min(used, key=lambda i: min(s.start_s + s.made * pace for s in self.active[i]))
        self._bring(model)
        # A turn is worth its switch also when everybody is ahead already.
        goal = max(self.now + round_s, min(s.start_s + s.made * pace for s in self.active[model]) + round_s / 4)
        while self.active[model] and self.now < next_arrival:
            streams = self.active[model]
            step = self._step(model, len(streams))
            count = min(s.output - s.made for s in streams)
            if len(used) > 1:
                need = math.ceil((goal - min(s.start_s + s.made * pace for s in streams)) / pace)
                if need <= 0:
                    break
                count = min(count, need)
            if next_arrival < math.inf:
                count = min(count, math.ceil((next_arrival - self.now) / step))
            self._decode(model, max(count, 1), step)

    def _decode(self, model: int, count: int, step: float) -> None:
        pace, streams = self.pool.tpot_slo_s, self.active[model]
        for s in streams:
            # Token made + j leaves the chip at now + j step and is due at start + (made + j - 1) pace.
            slack, gain = s.start_s + (s.made - 1) * pace - self.now + 1e-9, pace - step
            if gain >= 0:
                first = 1 if slack + gain >= 0 else math.ceil(-slack / gain) if gain > 0 else count + 1
                self.good += max(0, count - first + 1)
            else:
                self.good += max(0, min(count, math.floor(slack / -gain)))
            s.made += count
        self.tokens += count * len(streams)
        self.now += count * step
        self.busy += count * step
        for s in streams:
            if s.made >= s.output:
                self.last[s.request] = self.now
        left = [s for s in streams if s.made < s.output]
        self.active_total -= len(streams) - len(left)
        self.active[model] = left

    def result(self, requests: int) -> TurnResult:
        end = max(self.now, 1e-12)
        return TurnResult(
            requests, self.tokens, self.good / max(self.tokens, 1), self.good_first / max(requests, 1), self.busy / end,
            self.switching / end, self.switches, self.first, self.last,
        )  # fmt: skip
