"""Client statistics (ServeGen's) to services of ``cloud.serving.tenants_traffic`` and to a compact pair of files."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.serving.tenants_traffic import Service, build_service
from trivet.errors import TrivetError, UnknownName

SHIPPED = "bailian"
_RATES, _LENGTHS = "bailian_clients_rates.parquet", "bailian_clients_lengths.parquet"
_MANTISSA_BITS = 9  # of CV and probability in the shipped files: 0.1%


def read_clients(source: str | Path = SHIPPED) -> dict[str, Service]:
    """Services by name: "bailian" (shipped: Alibaba Cloud Model Studio, Apache-2.0) or a folder with both
    files.

    Raises TrivetError naming the file or column that is wrong.
    """
    folder: Any = files("trivet.data") / "traces" if str(source) == SHIPPED else Path(source)
    if not folder.is_dir():
        raise UnknownName(f"no client statistics {str(source)!r}", field="clients", allowed=f"{SHIPPED} or a folder")
    rates, lengths = _rates(_frame(folder / _RATES)), _lengths(_frame(folder / _LENGTHS))
    found = {}
    for name in sorted(set(rates["service"].to_list())):
        found[name] = build_service(
            name,
            _arrays(rates, name, ("client", "window", "requests", "cv", "weibull")),
            _arrays(lengths, name, ("client", "window", "output", "tokens", "probability")),
        )
    return found


def _frame(path: Any) -> Any:
    import polars as pl

    try:
        return pl.read_parquet(path.read_bytes())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise TrivetError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}", field="clients") from error


def _rates(frame: Any) -> Any:
    """Either layout: ours, or the original with ``workload window_start_s rate_per_s arrival_process``."""
    import polars as pl

    if "rate_per_s" in frame.columns:
        kinds = frame["arrival_process"].unique().to_list()
        if set(kinds) - {"Gamma", "Weibull"}:
            raise TrivetError(f"unknown {sorted(kinds)}", field="arrival_process", allowed="Gamma, Weibull")
        frame = frame.select(
            pl.col("workload").alias("service"),
            "client",
            (pl.col("window_start_s") // 600).alias("window"),
            (pl.col("rate_per_s").cast(pl.Float64) * 600).round().cast(pl.Int32).alias("requests"),
            "cv",
            (pl.col("arrival_process") == "Weibull").alias("weibull"),
        )
    return frame.with_columns(pl.col("service").cast(pl.String)).sort("service", "client", "window")


def _lengths(frame: Any) -> Any:
    import polars as pl

    if "field" in frame.columns:
        frame = frame.filter(pl.col("field").is_in(["input_tokens", "output_tokens"])).select(
            pl.col("workload").alias("service"),
            "client",
            (pl.col("window_start_s") // 600).alias("window"),
            (pl.col("field") == "output_tokens").alias("output"),
            "tokens",
            "probability",
        )
    return frame.with_columns(pl.col("service").cast(pl.String)).sort("service", "client", "window", "output", "tokens")


def _arrays(frame: Any, service: str, columns: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise TrivetError(f"{service}: missing", field=missing[0])
    part = frame.filter(frame["service"] == service)
    return {c: np.ascontiguousarray(part[c].to_numpy()) for c in columns}


def compact(source: str | Path, target: str | Path) -> None:
    """Rewrite the original pair of files as the shipped one: whole requests a window, 0.1% in CV and probability."""
    import polars as pl

    folder, out = Path(source), Path(target)
    rates, lengths = _rates(_frame(folder / _RATES)), _lengths(_frame(folder / _LENGTHS))
    small = [pl.col("service").cast(pl.Categorical), pl.col("client").cast(pl.Int16), pl.col("window").cast(pl.Int16)]
    rates = rates.with_columns(*small, pl.Series("cv", _rounded(rates["cv"].to_numpy())))
    lengths = lengths.with_columns(*small, pl.Series("probability", _rounded(lengths["probability"].to_numpy())))
    out.mkdir(parents=True, exist_ok=True)
    rates.write_parquet(out / _RATES, compression="zstd", compression_level=22)
    lengths.write_parquet(out / _LENGTHS, compression="zstd", compression_level=22)


def _rounded(values: NDArray[Any]) -> NDArray[np.float32]:
    """float32 with a short mantissa, which compresses."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    half = np.uint32(1 << (22 - _MANTISSA_BITS))
    mask = np.uint32((0xFFFFFFFF << (23 - _MANTISSA_BITS)) & 0xFFFFFFFF)
    return np.asarray((bits + half) & mask, np.uint32).view(np.float32)
