"""Cut the golden samples out of the calibration data: ``python tests/golden/sample.py FOLDER_OF_SHARED_DATA``.

The cut is fixed (every so many rows of a sorted table, a seeded draw of kernels), so that the samples change only with the
data. ``trivet validate golden tests/golden --record`` then records the accuracy on them.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import polars as pl

from trivet.loop.operator_tables import FILES, read

HERE = Path(__file__).resolve().parent
KERNELS = 8  # rows for each chip, engine and precision
COLLECTIVES, EVERY = ("nccl", "allreduce_custom"), 12  # one of so many rows
LOG = ("request_id", "input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")
CHIPS = {"rtx4090": "rtx-4090", "rtxpro6000": "rtx-pro-6000"}
META = ("model", "vllm_version", "engine_kwargs", "kv_cache", "resolved_config")


def main(source: Path) -> None:
    _rows(source / "serving_measured.csv", "serving.csv", ("engine", "mode", "chip", "model", "id"), 8, "layout_known")
    _rows(source / "training_measured.csv", "training.csv", ("chip", "model", "id"), 3, "")
    (HERE / "kernels").mkdir(exist_ok=True)
    for op in (name for names in FILES.values() for name in names):
        frame = read(source / "kernels", op, KERNELS).drop("power", "power_limit", strict=False)
        frame.write_parquet(HERE / "kernels" / f"{op}.parquet", compression="zstd")
    for op in COLLECTIVES:
        frame = pl.read_parquet(source / "kernels" / f"{op}.parquet").gather_every(EVERY)
        frame.write_parquet(HERE / "kernels" / f"{op}.parquet", compression="zstd")
    for log in sorted((source / "requests").glob("*.jsonl")):
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        text = "".join(json.dumps({name: line[name] for name in LOG}) + "\n" for line in lines)
        (HERE / "requests").mkdir(exist_ok=True)
        (HERE / "requests" / log.name).write_text(text, encoding="utf-8")
        name = log.name.removesuffix(".jsonl") + ".meta.json"
        meta = json.loads((source / "requests" / name).read_text("utf-8"))
        kept = {"chip": CHIPS[log.name.split("_")[1]], **{key: meta[key] for key in META if key in meta}}
        (HERE / "requests" / name).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _rows(source: Path, name: str, order: tuple[str, ...], every: int, known: str) -> None:
    with source.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if not known or row[known] == "1"]
    rows = sorted(rows, key=lambda row: [row[column] for column in order])[::every]
    columns = [column for column in rows[0] if any(row[column] for row in rows)]
    with (HERE / name).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
