"""The customers of a cloud: recorded and generated ones, their drawn requests metered to the last token, their bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.cost import revenue_usd
from trivet.cloud.serving.rate import bilinear, linear
from trivet.cloud.serving.tenants_traffic import Service, stream
from trivet.errors import TrivetError
from trivet.loop.cloud_scenario import CloudScenario
from trivet.loop.cloud_services import Sized

Told = Callable[[str, int, int], None]
DAY_WINDOWS = 144


@dataclass(frozen=True, slots=True, eq=False)
class Meter:
    """Drawn requests of one service by customer [clients]: whole requests and tokens."""

    requests: NDArray[np.int64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    drawn_requests: int  # counted on the stream itself, not by customer
    drawn_input_tokens: int
    drawn_output_tokens: int

    @property
    def adds_up(self) -> bool:
        """The customers' sums are the stream's, to the last token."""
        return (
            int(self.requests.sum()) == self.drawn_requests
            and int(self.input_tokens.sum()) == self.drawn_input_tokens
            and int(self.output_tokens.sum()) == self.drawn_output_tokens
        )


def with_generated(services: Mapping[str, Service], names: list[str], count: int, seed: int) -> dict[str, Service]:
    """``services`` with ``count`` more customers: the rates of one recorded customer shifted by whole days, the lengths of
    another of the same service. Services get them in proportion to their recorded customers."""
    rng = np.random.default_rng([seed, 0x6E65])
    out = {n: services[n] for n in names}
    weights = np.array([len(services[n].clients) for n in names], float)
    for service_index in rng.choice(len(names), count, p=weights / weights.sum()) if count else []:
        s = out[names[int(service_index)]]
        base = services[s.name]
        donor, lengths = rng.integers(len(base.clients), size=2)
        shift = int(rng.integers(max(base.windows // DAY_WINDOWS, 1))) * DAY_WINDOWS

        def grown(a: NDArray[Any], row: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([a, row[None].astype(a.dtype)])

        out[s.name] = replace(
            s,
            clients=np.append(s.clients, s.clients.max() + 1).astype(s.clients.dtype),
            requests=grown(s.requests, np.roll(base.requests[donor], shift)),
            cv=grown(s.cv, np.roll(base.cv[donor], shift)),
            weibull=grown(s.weibull, np.roll(base.weibull[donor], shift)),
            row=grown(s.row, base.row[lengths]),
            measured_lengths=np.append(s.measured_lengths, base.measured_lengths[lengths]),
        )
    return out


def meter(service: Service, scenario: CloudScenario, told: Told) -> Meter:
    """Draw the week's requests at the share ``scenario.sample`` and count them by customer, in constant memory."""
    n = len(service.clients)
    requests, inputs, outputs = (np.zeros(n, np.int64) for _ in range(3))
    totals = [0, 0, 0]
    start = scenario.first_day * 86400.0
    blocks = stream(
        service,
        start_s=start,
        end_s=start + scenario.days * 86400.0,
        seed=scenario.seed,
        rate=scenario.sample,
        block_windows=DAY_WINDOWS,
    )
    for done, block in enumerate(blocks):
        told(f"metering {service.name}", done, scenario.days)
        if block.client is None:
            raise TrivetError("carries no customers", field=f"services.{service.name}")
        requests += np.bincount(block.client, minlength=n)
        # Sums of whole numbers below 2**53 are exact in the float weights of bincount.
        inputs += np.bincount(block.client, block.input_tokens, n).astype(np.int64)
        outputs += np.bincount(block.client, block.output_tokens, n).astype(np.int64)
        totals[0] += block.client.size
        totals[1] += int(block.input_tokens.sum(dtype=np.int64))
        totals[2] += int(block.output_tokens.sum(dtype=np.int64))
    return Meter(requests, inputs, outputs, *totals)


def token_weights(sized: Sized) -> tuple[float, float]:
    """Device seconds that one input and one output token take: what a customer's share of the cost goes by."""
    table, c = sized.candidate.compiled.table, sized.candidate
    budget = np.array(float(c.token_budget))
    demand = sized.loads[0]
    batch = np.array(min(64.0, float(c.max_num_seqs)))
    decode = linear(table.sequences, table.graph_s, batch)
    decode = decode + bilinear(
        table.sequences, table.context, table.decode_attention_s, batch, np.array(demand.context_mean)
    )
    return float(linear(table.tokens, table.mixed_s, budget) / budget), float(decode / batch)


def bills(
    service: Service, measured: Meter, sized: Sized, cost_usd: float, scenario: CloudScenario
) -> list[dict[str, Any]]:
    """One row a customer: metered tokens, revenue by the price sheet, its share of the service's cost.

    Tokens are those drawn; money is scaled to all requests.
    """
    w_in, w_out = token_weights(sized)
    weight = measured.input_tokens * w_in + measured.output_tokens * w_out
    share = weight / max(float(weight.sum()), 1e-12)
    rows = []
    for k in range(len(service.clients)):
        tokens_in, tokens_out = int(measured.input_tokens[k]), int(measured.output_tokens[k])
        rows.append(
            {
                "service": service.name,
                "customer": f"{service.name}/{int(service.clients[k])}",
                "own_lengths": bool(service.measured_lengths[k]),
                "requests": int(measured.requests[k]),
                "input_tokens": tokens_in,
                "output_tokens": tokens_out,
                "revenue_usd": revenue_usd(sized.spec.sold_as, tokens_in, tokens_out) / scenario.sample,
                "cost_usd": cost_usd * float(share[k]),
            }
        )
    return rows
