"""Trace files: published statistics, round trips, one clear error for whatever is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trivet.cloud.serving.traffic import Traffic
from trivet.errors import TrivetError
from trivet.interop.traces import names, read, write


@pytest.mark.parametrize(
    ("name", "requests", "cv", "mean_in", "mean_out"),
    [
        ("azure2023-conv", 19366, 1.09, 1155, 211),
        ("azure2023-code", 8819, 13.15, 2048, 28),
        ("mooncake-conversation", 12031, 3.03, 12035, 343),
    ],
)
def test_shipped_traces_have_their_published_statistics(
    name: str, requests: int, cv: float, mean_in: int, mean_out: int
) -> None:
    traffic = read(name)
    assert name in names()
    assert len(traffic) == requests
    assert traffic.interarrival_cv == pytest.approx(cv, rel=0.005)
    assert traffic.input_tokens.mean() == pytest.approx(mean_in, rel=0.001)
    assert traffic.output_tokens.mean() == pytest.approx(mean_out, rel=0.005)
    assert traffic.arrival_s[0] == 0


def test_mooncake_prefix_hits_with_an_infinite_cache() -> None:
    traffic = read("mooncake-conversation")
    assert traffic.hash_offsets is not None
    assert traffic.hash_ids is not None
    seen: set[int] = set()
    hits = 0
    for i in range(len(traffic)):
        ids = traffic.hash_ids[traffic.hash_offsets[i] : traffic.hash_offsets[i + 1]].tolist()
        for block in ids:
            if block not in seen:
                break
            hits += 1
        seen.update(ids)
    assert hits / traffic.hash_ids.size == pytest.approx(0.366, abs=0.005)
    assert np.quantile(traffic.input_tokens, 0.5) == pytest.approx(6909, rel=0.001)


def test_vllm_request_log(shared_data: Path) -> None:
    traffic = read(shared_data / "requests" / "vllm_rtx4090_llama-3.1-8b.jsonl")
    assert len(traffic) == 300
    assert traffic.input_tokens[0] == 2358
    assert traffic.arrival_s[1] == pytest.approx(0.2650914, abs=1e-5)


GOOD = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}


def jsonl(*changes: dict[str, object]) -> bytes:
    return "\n".join(json.dumps(GOOD | c) for c in changes).encode()


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("a.jsonl", b'{"timestamp": 0, "input_le', r"a.jsonl row 1: torn or not JSON"),
        ("a.jsonl", b"[1]", r"row 1: not a JSON object"),
        ("a.jsonl", b"", r"no request"),
        ("a.jsonl", b"\xff\xfe\x00", r"row 1: torn or not JSON"),
        ("a.jsonl", jsonl({}, {"input_length": -5}), r"input_length: a.jsonl row 2: -5 is below 1"),
        ("a.jsonl", jsonl({}, {"output_length": 0}), r"output_length: a.jsonl row 2: 0 is below 1"),
        ("a.jsonl", jsonl({}, {"output_length": float("nan")}), r"output_length: .* row 2: nan is not a finite"),
        ("a.jsonl", jsonl({"timestamp": 1e300}), r"timestamp: "),
        ("a.jsonl", jsonl({}, {"timestamp": 1e15}), r"timestamp: .* row 2: .* is out of range"),
        ("a.jsonl", jsonl({"input_length": 10**400}), r"input_length: .* row 1: 1000"),
        ("a.jsonl", jsonl({"input_length": "many"}), r"input_length: .* row 1: 'many' is not a number"),
        ("a.jsonl", jsonl({"input_length": 10.5}), r"input_length: .* row 1: 10.5 is not a whole number"),
        ("a.jsonl", jsonl({"hash_ids": [1, 2, 3]}), r"hash_ids: .* row 1: 3 ids are more"),
        ("a.jsonl", jsonl({"hash_ids": ["x"]}), r"hash_ids: .* row 1: .*whole numbers"),
        ("a.jsonl", b'{"time": 1}', r"input_tokens: a.jsonl: no such column"),
        ("a.jsonl", jsonl({}) + b'\n{"timestamp": 1}', r"input_length: a.jsonl row 2: missing"),
        ("a.csv", b"TIMESTAMP,ContextTokens\n1,2\n", r"output_tokens: a.csv: no such column"),
        (
            "a.csv",
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,x,3\n",
            r"ContextTokens: a.csv row 3: 'x' is not a fin",
        ),
        (
            "a.csv",
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,-4,3\n",
            r"ContextTokens: a.csv row 3: '-4' is below 1",
        ),
        ("a.csv", b"TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,4\n", r"a.csv"),
        (
            "a.csv",
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n1,2,3\n2,1e30,4\n",
            r"ContextTokens: a.csv row 3: .* is above",
        ),
        (
            "a.csv",
            b"TIMESTAMP,ContextTokens,GeneratedTokens\nmonday,2,3\n",
            r"TIMESTAMP: a.csv row 2: 'monday' is not a time",
        ),
        ("a.csv", b"\x00\x01\x02", r"a.csv"),
        ("a.csv.gz", gzip.compress(b"TIMESTAMP,ContextTokens\n" * 999)[:-20], r"cannot be read"),
        ("a.parquet", b"PAR1 torn", r"a.parquet: not a Parquet file"),
        ("a.txt", b"x", r"unknown ending"),
    ],
)
def test_one_clear_error(tmp_path: Path, name: str, body: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(body)
    with pytest.raises(TrivetError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_unknown_name_lists_the_shipped() -> None:
    with pytest.raises(TrivetError, match="azure2023-conv"):
        read("azure2029")


def test_rows_out_of_order_are_sorted_with_their_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl({"timestamp": 9000, "hash_ids": [7, 8]}, {"timestamp": 4000, "hash_ids": [7]}))
    traffic = read(path)
    assert traffic.arrival_s.tolist() == [0, 5]
    assert traffic.hash_ids is not None
    assert traffic.hash_ids.tolist() == [0, 0, 1]


def test_sessions(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        jsonl(
            {"session_id": "s"}, {"session_id": "t", "timestamp": 1}, {"session_id": "s", "timestamp": 2, "delay": 1500}
        )
    )
    traffic = read(path)
    assert traffic.previous is not None
    assert traffic.think_s is not None
    assert traffic.previous.tolist() == [-1, -1, 0]
    assert traffic.think_s.tolist() == [0, 0, 1.5]
    path.write_bytes(
        jsonl({"chat_id": 5, "parent_chat_id": -1, "hash_ids": []}, {"chat_id": 6, "parent_chat_id": 5, "timestamp": 2})
    )
    traffic = read(path)
    assert traffic.previous is not None
    assert traffic.previous.tolist() == [-1, 0]
    assert traffic.block_tokens == 16
    assert traffic.duration_s == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 20), st.booleans(), st.booleans(), st.sampled_from(["parquet", "jsonl.gz", "jsonl", "csv", "csv.gz"])
)
def test_round_trip(tmp_path: Path, count: int, hashes: bool, sessions: bool, ending: str) -> None:
    if ending.startswith("jsonl") and not count:
        return
    rng = np.random.default_rng(count)
    arrival = np.sort(rng.integers(0, 5_000_000, count)) / 1e6
    arrival -= arrival[0] if count else 0
    tokens = rng.integers(1, 99, count)
    more: dict[str, object] = {}
    if hashes:
        sizes = -(-tokens // 512)
        ids = np.unique(rng.integers(0, 9, int(sizes.sum())), return_inverse=True)[1]
        more |= {"hash_offsets": np.concatenate(([0], np.cumsum(sizes))), "hash_ids": ids, "block_tokens": 512}
    if sessions:
        more |= {
            "previous": np.arange(-1, count - 1),
            "think_s": rng.random(count),
            "priority": np.arange(count),
            "max_concurrency": 3,
        }
    traffic = Traffic(arrival, tokens, tokens, **more)  # type: ignore[arg-type]
    path = tmp_path / f"t.{ending}"
    write(traffic, path)
    back = read(path)
    fields = ["input_tokens", "output_tokens"]
    fields += ["hash_ids", "hash_offsets"] if hashes and not ending.startswith("csv") else []
    fields += ["previous", "think_s", "priority"] if sessions and ending == "parquet" else []
    np.testing.assert_allclose(back.arrival_s, traffic.arrival_s, atol=1e-9)
    for field in fields:
        np.testing.assert_array_equal(getattr(back, field), getattr(traffic, field))
    if ending == "parquet":
        assert back.max_concurrency == traffic.max_concurrency


def test_a_negative_time_is_refused_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n3,10,10\n-5,10,10\n")
    with pytest.raises(TrivetError, match=r"TIMESTAMP: .*row 3: .*negative"):
        read(path)
