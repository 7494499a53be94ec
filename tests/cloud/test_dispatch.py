"""Dispatch and combine: bytes, floors and fallbacks; the shipped constants follow from the tables; every table is answered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.cloud.dispatch import Exchange, shipped, terms, time, width
from trivet.errors import TrivetError
from trivet.loop.predict_operators import predict

NAMES = sorted(shipped())


def load(tokens: float, ranks: float = 8.0, hidden: float = 7168.0) -> Exchange:
    return Exchange(np.array([tokens]), hidden, 8.0, 256.0, ranks, 2.0)


def seconds(exchange: Exchange, backend: str, phase: str, bandwidth: float) -> float:
    return float(np.ravel(time(exchange, backend, phase, bandwidth).value_s)[0])


@given(st.sampled_from(NAMES), st.floats(1, 4096), st.floats(50e9, 2e12))
def test_more_tokens_take_longer_and_faster_links_less(name: str, tokens: float, bandwidth: float) -> None:
    backend, phase = name.split("|")
    one, twice = (seconds(load(t), backend, phase, bandwidth) for t in (tokens, 2 * tokens))
    assert 0 < one < twice
    assert seconds(load(tokens), backend, phase, 2 * bandwidth) < one
    found = time(load(tokens), backend, phase, bandwidth)
    assert np.asarray(found.launch) + found.link == pytest.approx(1.0)


def test_bytes_on_the_wire() -> None:
    _, _, copies = terms(load(100), "deepep_ll", 1e9)
    assert copies[0] == pytest.approx(8 * 100 * 7168 * 2 * 7 / 8 / 1e9)  # a copy for each expert
    _, _, ranks = terms(load(100), "deepep_ht", 1e9)
    assert ranks[0] == pytest.approx(8 * (1 - (7 / 8) ** 8) * 100 * 7168 * 2 * 7 / 8 / 1e9)  # one for each rank reached
    assert width("", "deepep_ll", "dispatch") == 1.0
    assert width("", "deepep_ll", "combine") == width("", "deepep_ht", "dispatch") == 2.0


def test_unknown_names() -> None:
    assert "taken like" in time(load(1), "pplx", "dispatch", 450e9).note
    with pytest.raises(TrivetError, match="phase"):
        time(load(1), "deepep_ll", "both", 450e9)


def test_shipped_constants_follow_from_the_tables(shared_data: Path) -> None:
    from trivet.loop.calibrate_dispatch import calibrate, scores

    fits = calibrate(shared_data / "kernels")
    assert sorted(fits) == NAMES
    for name, found in fits.items():
        for field in ("floor_s", "inefficiency", "log_sigma"):
            assert getattr(found.constants, field) == pytest.approx(getattr(shipped()[name], field), rel=2e-3)
    median = [row["median_error"] for row in scores(fits) if row["chips"] > 1]
    assert max(median) < 0.3
    assert np.median(median) < 0.21


def test_rows_of_both_tables_are_answered(shared_data: Path) -> None:
    import polars as pl

    folder = shared_data / "kernels"
    low = pl.read_parquet(folder / "deepep_low_latency.parquet").gather_every(40)
    wide = pl.read_parquet(folder / "moe_all_to_all.parquet").gather_every(97)
    rows, measured = [], []
    for row in low.iter_rows(named=True):
        for phase in ("dispatch", "combine"):
            rows.append({k: str(v) for k, v in row.items() if not k.endswith(("us", "gbps"))}
                        | {"op": "deepep_low_latency", "phase": phase})  # fmt: skip
            measured.append(row[f"{phase}_avg_t_us"] * 1e-6)
    for row in wide.iter_rows(named=True):
        rows.append({k: str(v) for k, v in row.items() if k not in ("latency", "transmit_us", "notify_us")}
                    | {"op": "moe_all_to_all"})  # fmt: skip
        measured.append(row["latency"] * 1e-6)
    answers = predict(rows)
    values = np.array([a.value_s or np.nan for a in answers])
    assert np.isfinite(values).all(), [a.note for a in answers if a.value_s is None][:3]
    assert np.median(np.abs(values / np.array(measured) - 1)) < 0.25
    inside = [a.lo_s <= m <= a.hi_s for a, m in zip(answers, measured, strict=True) if a.lo_s and a.hi_s]
    assert np.mean(inside) > 0.75
    (both,) = predict([{**rows[0], "phase": ""}])
    assert both.value_s == pytest.approx(values[0] + values[1])
    assert "together" in both.note
