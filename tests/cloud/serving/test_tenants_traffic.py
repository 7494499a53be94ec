"""The many-client generator against its source: rates, CV, length quantiles; determinism; constant memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from trivet.cloud.serving.tenants_traffic import (
    ASSUMED_MODELS,
    WINDOW_S,
    Service,
    build_service,
    generate,
    generate_all,
    stream,
)
from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.interop.clients import read_clients

SAMPLE = range(0, 144, 12)  # two hours apart, over one day


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    return read_clients()


def window(service: Service, index: int, **more: float) -> Traffic:
    return next(stream(service, start_s=index * WINDOW_S, end_s=(index + 1) * WINDOW_S, **more))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sampled(services: dict[str, Service]) -> dict[str, list[Traffic]]:
    return {name: [window(services[name], w) for w in SAMPLE] for name in ("m-large", "deepseek-r1", "m-mid")}


def test_the_record(services: dict[str, Service]) -> None:
    assert set(services) == set(ASSUMED_MODELS)
    assert sum(len(s.clients) for s in services.values()) == 386
    assert sum(int((~s.measured_lengths).sum()) for s in services.values()) == 55
    day = sum(float(s.rate_per_s().mean()) for s in services.values()) * 86400
    assert day == pytest.approx(274e6, rel=0.01)
    assert services["deepseek-r1"].windows == 144


def test_every_client_has_its_requests(services: dict[str, Service], sampled: dict[str, list[Traffic]]) -> None:
    for name, parts in sampled.items():
        for w, part in zip(SAMPLE, parts, strict=True):
            assert part.client is not None
            counts = np.bincount(part.client, minlength=len(services[name].clients))
            np.testing.assert_array_equal(counts, services[name].requests[:, w])
            assert (part.arrival_s >= w * WINDOW_S).all()
            assert (part.arrival_s < (w + 1) * WINDOW_S).all()


def test_cv_of_clients_and_windows(services: dict[str, Service], sampled: dict[str, list[Traffic]]) -> None:
    """The median client-window has the source's CV within 4%, also the bursty ones; ranks agree."""
    rows = []
    for name, parts in sampled.items():
        service = services[name]
        for w, part in zip(SAMPLE, parts, strict=True):
            for c in np.flatnonzero(service.requests[:, w] >= 30):
                gaps = np.diff(part.arrival_s[part.client == c])
                rows.append((service.cv[c, w], gaps.std() / gaps.mean(), service.weibull[c, w]))
    source, made, weibull = np.array(rows).T
    assert len(rows) > 1000
    ratio = made / source
    for group in (source < 1.5, (source >= 1.5) & (source < 5), source >= 5, weibull > 0, weibull == 0):
        assert group.sum() > 100
        assert np.median(ratio[group]) == pytest.approx(1.0, abs=0.04)
    assert stats.spearmanr(source, made).statistic > 0.97


def _weighted_quantiles(tokens: np.ndarray, mass: np.ndarray, at: list[float]) -> np.ndarray:
    order = np.argsort(tokens)
    return tokens[order][np.searchsorted(np.cumsum(mass[order]) / mass.sum(), at)]


@pytest.mark.parametrize("name", ["m-large", "deepseek-r1", "m-mid"])
def test_length_quantiles(services: dict[str, Service], sampled: dict[str, list[Traffic]], name: str) -> None:
    service, parts = services[name], sampled[name]
    at = [0.1, 0.5, 0.9, 0.99]
    for half, table in (("input_tokens", service.inputs), ("output_tokens", service.outputs)):
        tokens, mass = [], []
        for w in SAMPLE:
            for c in range(len(service.clients)):
                row_tokens, row_mass = table.row(service.row[c, w // 36])
                tokens.append(row_tokens)
                mass.append(row_mass * service.requests[c, w])
        wanted = _weighted_quantiles(np.concatenate(tokens).astype(float), np.concatenate(mass), at)
        made = np.quantile(np.concatenate([getattr(p, half) for p in parts]), at)
        np.testing.assert_allclose(made, wanted, rtol=0.05)
        mean = np.average(np.concatenate(tokens), weights=np.concatenate(mass))
        assert np.concatenate([getattr(p, half) for p in parts]).mean() == pytest.approx(mean, rel=0.01)


def test_input_and_output_are_independent_within_a_client(sampled: dict[str, list[Traffic]]) -> None:
    part = sampled["m-mid"][6]
    assert part.client is not None
    mine = part.client == np.bincount(part.client).argmax()
    assert abs(stats.spearmanr(part.input_tokens[mine], part.output_tokens[mine]).statistic) < 0.02


def test_heavy_clients(services: dict[str, Service]) -> None:
    """Facts of the record: one client makes 16-52% of a service's rate, 9-39 clients make 90%."""
    for service in services.values():
        shares = np.sort(service.requests.sum(axis=1) / service.requests.sum())[::-1]
        assert 0.15 < shares[0] < 0.53
        assert 8 <= np.searchsorted(np.cumsum(shares), 0.9) + 1 <= 40


def test_any_window_comes_out_the_same_alone(services: dict[str, Service]) -> None:
    service = services["deepseek-r1"]
    whole = list(stream(service, end_s=6 * WINDOW_S, seed=5, block_windows=4))
    assert [len(b) for b in whole] == [int(service.requests[:, :4].sum()), int(service.requests[:, 4:6].sum())]
    alone = window(service, 5, seed=5)
    np.testing.assert_array_equal(whole[1].arrival_s[-len(alone) :], alone.arrival_s)
    np.testing.assert_array_equal(whole[1].output_tokens[-len(alone) :], alone.output_tokens)
    assert (window(service, 5, seed=6).arrival_s != alone.arrival_s).any()


def test_one_day_repeats_with_other_draws(services: dict[str, Service]) -> None:
    service = services["deepseek-r1"]
    first, next_day = window(service, 30), window(service, 30 + 144)
    assert len(first) == len(next_day)
    assert (first.arrival_s + 86400 != next_day.arrival_s).any()


def test_rate_scales_every_client(services: dict[str, Service]) -> None:
    service = services["m-large"]
    half = window(service, 3, rate=0.5)
    assert half.client is not None
    counts = np.bincount(half.client, minlength=len(service.clients))
    assert (np.abs(counts - service.requests[:, 3] / 2) < 1).all()


def test_a_block_does_not_grow_with_time(services: dict[str, Service]) -> None:
    import tracemalloc

    service = services["deepseek-r1"]
    tracemalloc.start()
    for i, _ in enumerate(stream(service)):
        if i == 20:
            tracemalloc.reset_peak()
            early = tracemalloc.get_traced_memory()[0]
    late = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert late < early + 2e6


def test_services_on_one_clock(services: dict[str, Service]) -> None:
    pair = {k: services[k] for k in ("deepseek-r1", "m-large")}
    both = generate_all(pair, end_s=600.0)
    assert both.model_names == ("deepseek-r1", "m-large")
    assert len(both) == sum(int(s.requests[:, 0].sum()) for s in pair.values())
    assert generate(pair["m-large"], start_s=1200.0, end_s=1800.0).arrival_s[0] < 600


def test_original_files_and_the_shipped_ones_agree(shared_data: Path, services: dict[str, Service]) -> None:
    for name, original in read_clients(shared_data / "traces").items():
        np.testing.assert_array_equal(original.requests, services[name].requests)
        np.testing.assert_allclose(original.cv, services[name].cv, rtol=1.1e-3)
        np.testing.assert_array_equal(original.inputs.tokens, services[name].inputs.tokens)
        assert original.mean_tokens() == pytest.approx(services[name].mean_tokens(), rel=1e-3)


def test_clear_errors(services: dict[str, Service], tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match=r"start_s: 100\.0 s is not a multiple of 600 s"):
        next(stream(services["m-mid"], start_s=100.0))
    with pytest.raises(TrivetError, match="rate: 0 is not"):
        next(stream(services["m-mid"], rate=0))
    with pytest.raises(TrivetError, match="no client statistics"):
        read_clients(tmp_path / "absent")
    (tmp_path / "bailian_clients_rates.parquet").write_bytes(b"PAR1")
    with pytest.raises(TrivetError, match=r"bailian_clients_rates.parquet: cannot be read"):
        read_clients(tmp_path)
    rates = {
        k: np.array([v]) for k, v in {"client": 0, "window": 0, "requests": 5, "cv": np.nan, "weibull": False}.items()
    }
    lengths = {"client": [0, 0], "window": [0, 0], "output": [0, 1], "tokens": [5, 6], "probability": [1.0, 1.0]}
    with pytest.raises(TrivetError, match="cv: x row 0: nan cannot be"):
        build_service("x", rates, {k: np.array(v) for k, v in lengths.items()})
