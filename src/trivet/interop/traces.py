"""Trace files to ``Traffic`` and back.

Formats: Azure's CSV (2023 and 2024) and any CSV or Parquet with columns of time, input and output tokens;
Mooncake's JSON lines with prefix block ids (also with sessions, and the Bailian usage traces'
``chat_id``/``parent_chat_id``); the per-request logs of a vLLM run (``arrival_time input_toks
output_toks``); ``vllm bench serve --save-detailed`` results through ``bench_results``. All may be gzipped.
Three traces are shipped and read by name.

A file that is torn, or holds a value that cannot be, gives one error that names the row and the column.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.traffic import MAX_TIME_S, MAX_TOKENS, Traffic
from trivet.errors import TrivetError, UnknownName

SHIPPED = {
    "azure2023-conv": "azure2023_conv.csv.gz",
    "azure2023-code": "azure2023_code.csv.gz",
    "mooncake-conversation": "mooncake_conversation.jsonl.gz",
}
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16

# What others call our columns, lower case, without spaces, dashes and underscores.
_ALIASES = {
    "arrival_s": ("arrivals", "timestamp", "arrivaltime", "arrivedat", "time", "arrival", "startingtimestamp"),
    "input_tokens": (
        "inputtokens",
        "contexttokens",
        "inputlength",
        "inputtoks",
        "prompttokens",
        "requesttokens",
        "numprefilltokens",
        "inputlen",
        "promptlen",
    ),
    "output_tokens": (
        "outputtokens",
        "generatedtokens",
        "outputlength",
        "outputtoks",
        "completiontokens",
        "responsetokens",
        "numdecodetokens",
        "outputlen",
    ),
}
_PARQUET_EXTRAS = ("previous", "think_s", "priority", "client", "model", "adapter", "image_tokens", "reasoning_tokens")


def names() -> tuple[str, ...]:
    """The shipped traces."""
    return tuple(SHIPPED)


def read(source: str | Path, *, limit: int | None = None, block_tokens: int = 0, time_scale: float = 0.0) -> Traffic:
    """Read a trace.

    Args:
        source: the name of a shipped trace or a path; the ending (and ``.gz``) tells the format.
        limit: only the first so many requests.
        block_tokens: prompt tokens of one hash id; 0 = 512 (Mooncake), 16 where the rows have ``chat_id``
            (Bailian).
        time_scale: seconds of one unit of a numeric time; 0 = what the format uses (Mooncake milliseconds,
            else seconds).

    Returns:
        Requests in order of time from 0 on.

    Raises:
        UnknownName: no such shipped trace or file.
        TrivetError: naming file, row and column.
    """
    text = str(source)
    path = files("trivet.data") / "traces" / SHIPPED[text] if text in SHIPPED else Path(text)
    if not path.is_file():
        raise UnknownName(f"no trace {text!r}", field="trace", allowed=[*SHIPPED, "or the path of a file"])
    label = text if text in SHIPPED else Path(text).name
    plain = SHIPPED.get(text, text).removesuffix(".gz")
    ending = Path(plain).suffix.lower()
    if ending == ".parquet":
        traffic = _read_parquet(path, label)
    elif ending == ".csv":
        traffic = _read_csv(_bytes(path, label), label, time_scale or 1.0)
    elif ending in (".jsonl", ".ndjson"):
        traffic = _read_jsonl(_bytes(path, label), label, block_tokens, time_scale)
    else:
        raise TrivetError(
            f"{label}: unknown ending {ending!r}", field="trace", allowed=".csv .jsonl .parquet, also .gz"
        )
    return traffic if limit is None else traffic.head(limit)


def _bytes(path: Any, label: str) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else bytes(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise TrivetError(f"{label}: cannot be read: {error}", field="trace") from error


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _columns(present: list[str], label: str) -> dict[str, str]:
    """Our name -> the file's, for the three columns that every trace needs."""
    by_plain = {_plain(c): c for c in present}
    found = {}
    for ours, aliases in _ALIASES.items():
        match = next((by_plain[a] for a in aliases if a in by_plain), None)
        if match is None:
            raise TrivetError(
                f"{label}: no such column; the file has {', '.join(present)}", field=ours, allowed=aliases
            )
        found[ours] = match
    return found


def _refuse(label: str, row: int, column: str, value: object, what: str) -> TrivetError:
    shown = repr(value) if len(repr(value)) < 60 else repr(value)[:57] + "..."
    return TrivetError(f"{label} row {row}: {shown} {what}", field=column)


def _check(
    values: NDArray[np.float64], raw: Any, bad: NDArray[Any], label: str, column: str, what: str, first: int
) -> None:
    if bad.any():
        at = int(np.argmax(bad))
        raise _refuse(label, at + first, column, raw[at], what)


def _build(
    columns: Mapping[str, NDArray[np.float64]],
    heads: Mapping[str, str],
    raw: Mapping[str, Any],
    label: str,
    first_row: int,
    more: Mapping[str, Any] | None = None,
) -> Traffic:
    """Check every value against the row it came from, shift time to 0, put rows in order of time."""
    for ours, values in columns.items():
        head = heads.get(ours, ours)
        _check(values, raw[ours], ~np.isfinite(values), label, head, "is not a finite number", first_row)
        if ours == "arrival_s":
            _check(values, raw[ours], values < 0, label, head, "is negative", first_row)
            _check(values, raw[ours], np.abs(values) > MAX_TIME_S, label, head, "is out of range", first_row)
            continue
        _check(values, raw[ours], values < 1, label, head, "is below 1", first_row)
        _check(values, raw[ours], values > MAX_TOKENS, label, head, f"is above {MAX_TOKENS}", first_row)
        _check(values, raw[ours], values != np.floor(values), label, head, "is not a whole number", first_row)
    arrival = columns["arrival_s"]
    order = np.argsort(arrival, kind="stable")
    start = arrival[order[0]] if arrival.size else 0.0
    fields: dict[str, Any] = dict(more or {})
    if "previous" in fields:
        rank = np.full(arrival.size + 1, -1, np.int64)
        rank[order] = np.arange(arrival.size)
        fields["previous"] = rank[fields["previous"]][order]
    if "hash_sizes" in fields:
        sizes, ids = fields.pop("hash_sizes"), fields.pop("hash_ids")
        begins = np.concatenate(([0], np.cumsum(sizes)))
        offsets = np.concatenate(([0], np.cumsum(sizes[order])))
        source = np.repeat(begins[order] - offsets[:-1], sizes[order]) + np.arange(offsets[-1])
        fields |= {"hash_offsets": offsets, "hash_ids": ids[source]}
    for name in _PARQUET_EXTRAS[1:]:
        if name in fields:
            fields[name] = fields[name][order]
    fields |= {k: columns[k][order] for k in ("input_tokens", "output_tokens")}
    return Traffic(arrival[order] - start, **fields, name=label)


def _read_csv(raw: bytes, label: str, time_scale: float) -> Traffic:
    import polars as pl

    try:
        frame = pl.read_csv(raw, infer_schema=False, truncate_ragged_lines=False)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise TrivetError(f"{label}: not a CSV file: {str(error).splitlines()[0]}", field="trace") from error
    heads = _columns(frame.columns, label)
    text = {ours: frame[theirs] for ours, theirs in heads.items()}
    columns = {}
    for ours, series in text.items():
        numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
        if ours == "arrival_s" and numbers.null_count() == numbers.len() and numbers.len():
            dates = series.str.strip_chars().str.slice(0, 29).str.replace("T", " ").str.replace(r"[Z+].*$", "")
            moments = dates.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ns", strict=False)
            ticks = moments.cast(pl.Int64).to_numpy()
            bad = moments.is_null().to_numpy()
            _check(np.zeros(0), series, bad, label, heads[ours], "is not a time", 2)
            columns[ours] = (np.asarray(ticks, np.int64) - (int(np.min(ticks)) if bad.size else 0)) / 1e9
        else:
            columns[ours] = numbers.fill_null(np.nan).to_numpy().astype(float) * (
                time_scale if ours == "arrival_s" else 1
            )
    return _build(columns, heads, text, label, 2)


def _lines(raw: bytes, label: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, line in enumerate(raw.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise TrivetError(f"{label} row {row}: torn or not JSON: {error}", field="trace") from error
        if not isinstance(item, dict):
            raise TrivetError(f"{label} row {row}: not a JSON object", field="trace")
        yield row, item


def _read_jsonl(raw: bytes, label: str, block_tokens: int, time_scale: float) -> Traffic:
    rows = list(_lines(raw, label))
    if not rows:
        raise TrivetError(f"{label}: no request in it", field="trace")
    first = rows[0][1]
    heads = _columns(list(first), label)
    bailian = "chat_id" in first
    if not time_scale:
        time_scale = 1e-3 if heads["arrival_s"] == "timestamp" and not bailian else 1.0
    texts: dict[str, list[Any]] = {}
    columns = {}
    for ours, theirs in heads.items():
        texts[ours] = [_field(label, row, item, theirs) for row, item in rows]
        columns[ours] = np.array(
            [_number(label, row, theirs, v) for (row, _), v in zip(rows, texts[ours], strict=True)]
        )
    if np.isfinite(columns["arrival_s"]).all():
        columns["arrival_s"] = (columns["arrival_s"] - columns["arrival_s"].min()) * time_scale
    more = _sessions(rows, label, bailian) | _hashes(rows, label, columns, block_tokens, bailian)
    return _build(columns, heads, texts, label, 1, more)


def _field(label: str, row: int, item: dict[str, Any], name: str) -> Any:
    if name not in item:
        raise TrivetError(f"{label} row {row}: missing", field=name)
    return item[name]


def _number(label: str, row: int, column: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(label, row, column, value, "is not a number")
    return float(value) if abs(value) < 1e300 else np.inf


def _sessions(rows: list[tuple[int, dict[str, Any]]], label: str, bailian: bool) -> dict[str, Any]:
    """Links between the requests of a conversation, by row."""
    if bailian:
        place = {item.get("chat_id"): at for at, (_, item) in enumerate(rows)}
        links = [place.get(item.get("parent_chat_id"), -1) for _, item in rows]
    elif any("session_id" in item for _, item in rows):
        last: dict[Any, int] = {}
        links = []
        for at, (_, item) in enumerate(rows):
            session = item.get("session_id")
            links.append(last.get(session, -1) if session is not None else -1)
            last[session] = at
    else:
        return {}
    links = [link if link < at else -1 for at, link in enumerate(links)]
    found: dict[str, Any] = {"previous": np.array(links, np.int64)}
    if any("delay" in item for _, item in rows):
        found["think_s"] = np.array([_number(label, row, "delay", item.get("delay", 0)) / 1e3 for row, item in rows])
    return found


def _hashes(
    rows: list[tuple[int, dict[str, Any]]],
    label: str,
    columns: Mapping[str, NDArray[np.float64]],
    block: int,
    bailian: bool,
) -> dict[str, Any]:
    if not any("hash_ids" in item for _, item in rows):
        return {}
    block = block or (BAILIAN_BLOCK if bailian else MOONCAKE_BLOCK)
    sizes, flat = [], []
    for at, (row, item) in enumerate(rows):
        ids = item.get("hash_ids", [])
        if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise _refuse(label, row, "hash_ids", ids, "is not a list of whole numbers")
        tokens = columns["input_tokens"][at]
        if tokens >= 1 and tokens.is_integer() and len(ids) > -(-tokens // block):  # else refused with its own name
            raise _refuse(
                label, row, "hash_ids", len(ids), f"ids are more than the prompt has blocks of {block} tokens"
            )
        sizes.append(len(ids))
        flat += ids
    _, dense = np.unique(
        np.array(flat, dtype=object if flat and max(map(abs, flat)) > 2**62 else np.int64), return_inverse=True
    )
    return {"hash_sizes": np.array(sizes, np.int64), "hash_ids": dense.astype(np.int64), "block_tokens": block}


def _read_parquet(path: Any, label: str) -> Traffic:
    import polars as pl

    try:
        raw = path.read_bytes()
        frame = pl.read_parquet(raw)
        notes = json.loads(pl.read_parquet_metadata(raw).get("trivet", "{}"))
    except (OSError, pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise TrivetError(f"{label}: not a Parquet file: {str(error).splitlines()[0]}", field="trace") from error
    heads = _columns(frame.columns, label)
    columns = {}
    for ours, theirs in heads.items():
        series = frame[theirs]
        if series.dtype == pl.Datetime or not series.dtype.is_numeric():
            if ours != "arrival_s" or not series.dtype.is_temporal():
                raise TrivetError(f"{label}: of type {series.dtype}", field=theirs, allowed="numbers")
            series = series.dt.epoch("ns") / 1e9
        columns[ours] = series.cast(pl.Float64).fill_null(np.nan).to_numpy().astype(float)
    more: dict[str, Any] = {}
    for name in _PARQUET_EXTRAS:
        if name in frame.columns:
            more[name] = frame[name].cast(pl.Float64 if name == "think_s" else pl.Int64).fill_null(-1).to_numpy()
    if "hash_ids" in frame.columns:
        lists = frame["hash_ids"]
        sizes = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        ids = lists.list.explode().drop_nulls().cast(pl.Int64).to_numpy() if sizes.sum() else np.zeros(0, np.int64)
        more |= {"hash_sizes": sizes, "hash_ids": ids, "block_tokens": int(notes.get("block_tokens", MOONCAKE_BLOCK))}
    for name in ("model_names", "client_names"):
        if notes.get(name):
            more[name] = tuple(notes[name])
    more["max_concurrency"] = int(notes.get("max_concurrency", 0))
    return _build(columns, heads, {k: frame[v] for k, v in heads.items()}, label, 0, more)


def write(traffic: Traffic, path: str | Path) -> None:
    """Write a trace as ``.parquet`` (everything), ``.jsonl`` (Mooncake) or ``.csv`` (Azure); ``.gz`` for
    the last two.

    Raises TrivetError for another ending.
    """
    target = Path(path)
    plain = target.name.removesuffix(".gz")
    writers: dict[str, Callable[[Traffic], bytes]] = {
        ".jsonl": _jsonl_bytes,
        ".csv": _csv_bytes,
        ".parquet": _parquet_bytes,
    }
    writer = writers.get(Path(plain).suffix)
    if writer is None:
        raise TrivetError(f"unknown ending of {target.name!r}", field="path", allowed=writers)
    body = writer(traffic)
    target.write_bytes(gzip.compress(body, mtime=0) if target.name.endswith(".gz") else body)


def _jsonl_bytes(traffic: Traffic) -> bytes:
    lines = []
    for i in range(len(traffic)):
        item: dict[str, Any] = {
            "timestamp": round(float(traffic.arrival_s[i]) * 1e3, 6),
            "input_length": int(traffic.input_tokens[i]),
            "output_length": int(traffic.output_tokens[i]),
        }
        if traffic.hash_offsets is not None and traffic.hash_ids is not None:
            item["hash_ids"] = traffic.hash_ids[traffic.hash_offsets[i] : traffic.hash_offsets[i + 1]].tolist()
        lines.append(json.dumps(item))
    return ("\n".join(lines) + "\n").encode()


def _csv_bytes(traffic: Traffic) -> bytes:
    import polars as pl

    frame = pl.DataFrame(
        {"arrival_s": traffic.arrival_s, "input_tokens": traffic.input_tokens, "output_tokens": traffic.output_tokens}
    )
    return frame.write_csv().encode()


def _parquet_bytes(traffic: Traffic) -> bytes:
    from io import BytesIO

    import polars as pl

    columns: dict[str, Any] = {
        n: getattr(traffic, n)
        for n in ("arrival_s", "input_tokens", "output_tokens", *_PARQUET_EXTRAS)
        if getattr(traffic, n) is not None
    }
    frame = pl.DataFrame(columns)
    if traffic.hash_offsets is not None and traffic.hash_ids is not None:
        parts = [p.tolist() for p in np.split(traffic.hash_ids, traffic.hash_offsets[1:-1])]
        frame = frame.with_columns(pl.Series("hash_ids", parts if len(traffic) else [], dtype=pl.List(pl.Int64)))
    notes = {"block_tokens": traffic.block_tokens, "max_concurrency": traffic.max_concurrency}
    notes |= {k: getattr(traffic, k) for k in ("model_names", "client_names")}
    out = BytesIO()
    frame.write_parquet(out, compression="zstd", metadata={"trivet": json.dumps(notes)})
    return out.getvalue()
