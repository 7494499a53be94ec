"""Fit the training constants to measured runs, and judge them by leaving out whole models and whole chips."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.cloud.training.prepare import Prepared, prepare
from trivet.cloud.training.profile import Constants, shipped
from trivet.cloud.training.step import finish, sigma_class
from trivet.errors import TrivetError
from trivet.loop.predict_training import parse, text
from trivet.units import Z80

Floats = NDArray[np.float64]

# Constants that are fitted, with the spread of the prior around the default, in log. "a.b" is entry b of dict a.
FITTED: dict[str, float] = {
    "gemm.bf16": 0.15,
    "gemm.fp8": 0.15,
    "gemm.fp4": 0.15,
    "gemm_framework.fsdp": 0.15,
    "grouped": 0.4,
    "attention_forward": 0.2,
    "attention_backward": 0.2,
    "attention_framework.fsdp-2023": 0.4,
    "attention_framework.fsdp-2023.hopper": 0.4,
    "throttle.hopper": 0.1,
    "throttle.blackwell": 0.1,
    "scan": 0.3,
    "scan_passes": 0.5,
    "stream": 0.15,
    "stream_factor.fsdp": 0.5,
    "stream_factor.megatron": 0.4,
    "cast_factor.fp8": 0.4,
    "cast_factor.mxfp8": 0.4,
    "cast_factor.nvfp4": 0.4,
    "host_dense_s": 0.7,
    "host_expert_s": 0.7,
    "host_captured": 0.7,
    "host_scan_s": 0.7,
    "host_grace": 0.3,
    "host_power": 0.3,
    "exposed_tp": 0.6,
    "exposed_fsdp": 0.6,
    "exposed_pp": 0.6,
    "exposed_dp": 0.6,
    "drift": 1.0,
    "step_s": 0.7,
}
BOUNDED = {"grouped", "stream", "exposed_tp", "exposed_fsdp", "exposed_pp", "exposed_dp", "host_captured"}


@dataclass(frozen=True, slots=True)
class Sample:
    """A measured row, ready to be predicted under any constants."""

    id: str
    model: str
    chip: str
    source: str
    measured: float
    prepared: Prepared


def samples(rows: Sequence[Mapping[str, str | None]]) -> tuple[list[Sample], dict[str, str]]:
    """Measured rows that can be predicted, and the reasons of those that cannot."""
    found, failed = [], {}
    known: dict[object, Prepared] = {}
    for row in rows:
        try:
            parsed = parse(row)
            measured = text(row, "tokens_per_s_per_chip")
            if not measured:
                raise TrivetError("no measured tokens_per_s_per_chip", field="tokens_per_s_per_chip")
            key = tuple(
                text(row, c)
                for c in (
                    "chip",
                    "num_chips",
                    "model",
                    "seq_len",
                    "precision",
                    "global_batch",
                    "micro_batch",
                    "tp",
                    "pp",
                    "cp",
                    "vp",
                    "ep",
                    "sharding",
                    "recompute",
                    "task",
                    "source",
                    "params",
                )
            )
            if key not in known:
                known[key] = prepare(parsed.job)
            found.append(
                Sample(
                    parsed.id,
                    text(row, "model"),
                    parsed.job.chip.name,
                    text(row, "source"),
                    float(measured),
                    known[key],
                )
            )
        except TrivetError as error:
            failed[text(row, "id")] = str(error)
    return found, failed


def get(c: Constants, name: str) -> float:
    head, _, key = name.partition(".")
    value = getattr(c, head)
    return float(value.get(key, 1.0) if key else value)


def put(c: Constants, values: Mapping[str, float]) -> Constants:
    """The constants with entries replaced."""
    changes: dict[str, object] = {}
    for name, value in values.items():
        head, _, key = name.partition(".")
        if head not in {f.name for f in fields(Constants)}:
            raise TrivetError(f"unknown constant {name!r}", field="constants")
        if key:
            changes[head] = {**(changes.get(head) or getattr(c, head)), key: value}  # type: ignore[dict-item]  # a part's values
        else:
            changes[head] = value
    return c.with_(**changes)


def log_errors(found: Sequence[Sample], c: Constants) -> Floats:
    """log(predicted / measured) tokens per second and chip."""
    cache: dict[int, float] = {}
    out = []
    for s in found:
        key = id(s.prepared)
        if key not in cache:
            cache[key] = math.log(finish(s.prepared, c).tokens_per_s_per_chip)
        out.append(cache[key] - math.log(s.measured))
    return np.array(out)


def _weights(found: Sequence[Sample]) -> Floats:
    """Each model and chip counts as the square root of its rows, so that a long table does not drown a short one."""
    groups: dict[tuple[str, str], int] = {}
    for s in found:
        groups[s.model, s.chip] = groups.get((s.model, s.chip), 0) + 1
    raw = np.array([groups[s.model, s.chip] ** -0.25 for s in found])
    return np.asarray(raw / np.sqrt(np.mean(raw**2)))


def sustained(kernels_folder: Path) -> dict[str, dict[str, float]]:
    """What large kernels sustain on each chip, from measured ones: upper quartile over products of at least 8,192 x 4,096 x
    4,096 and over causal attention of 4,096 to 16,384 tokens with heads of 128; FLOP/s, and the peak that was assumed."""
    import polars as pl

    from trivet.chip.catalogue import chip
    from trivet.chip.point import chip_point

    def wide(*names: str) -> Any:
        product = pl.lit(1.0)
        for name in names:
            product = product * pl.col(name).cast(pl.Float64)
        return product

    labels = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8", "nvfp4": "fp4", "sq": "int8"}
    large = (
        (pl.col("m") >= 8192) & (pl.col("n") >= 4096) & (pl.col("k") >= 4096) & pl.col("gemm_dtype").is_in(list(labels))
    )
    products = pl.scan_parquet(kernels_folder / "gemm.parquet").filter(large)
    products = products.with_columns(
        pl.col("gemm_dtype").replace_strict(labels).alias("math"),
        (2e3 * wide("m", "n", "k") / pl.col("latency")).alias("rate"),
    )
    shape = (
        (pl.col("isl") >= 4096)
        & (pl.col("head_dim") == 128)
        & (pl.col("step") == 0)
        & (pl.col("kv_cache_dtype") == "bfloat16")
    )
    whole = (pl.col("window_size").is_null() | (pl.col("window_size") <= 0)) & (wide("batch_size", "num_heads") >= 16)
    cores = pl.scan_parquet(kernels_folder / "attention_context.parquet").filter(shape & whole)
    cores = cores.with_columns(
        pl.lit("attention").alias("math"),
        (2e3 * wide("batch_size", "num_heads", "isl", "isl", "head_dim") / pl.col("latency")).alias("rate"),
    )
    both = pl.concat([x.select("chip", "math", "rate") for x in (products, cores)])
    found: dict[str, dict[str, float]] = {}
    for name, math_, rate in (
        both.group_by("chip", "math").agg(pl.col("rate").quantile(0.75)).sort("chip", "math").collect().iter_rows()
    ):
        part = chip(name)
        dtype = {"attention": "bf16", "fp4": "nvfp4"}.get(math_, math_)
        point = chip_point(part, dtype)
        if point.math == {"attention": "bf16"}.get(math_, math_):
            found.setdefault(part.name, {}).update({math_: float(f"{rate:.4g}"), f"peak_{math_}": point.peak_flops})
    return found


def fit(found: Sequence[Sample], start: Constants | None = None, *, evaluations: int = 40) -> Constants:
    """Constants that minimise the weighted robust log error, pulled to the defaults by ``FITTED``'s priors."""
    from scipy.optimize import least_squares

    base = start or shipped()
    base = Constants(sustained=base.sustained)
    begin = start or base
    names = list(FITTED)
    prior = np.log([get(base, n) for n in names])
    width = np.array([FITTED[n] for n in names])
    x0 = np.log([get(begin, n) for n in names])
    top = np.array([math.log(0.98) if n.partition(".")[0] in BOUNDED else 6.0 for n in names])
    weights = _weights(found)

    def residual(x: Floats) -> Floats:
        c = put(base, dict(zip(names, np.exp(x), strict=True)))
        e = log_errors(found, c) * weights / 0.05
        # Student-like: an outlier (another software state) counts as a few sigmas, not as many
        robust = np.sign(e) * np.sqrt(2.0 * (np.sqrt(1.0 + e**2) - 1.0))
        return np.concatenate([robust, (x - prior) / width])

    done = least_squares(
        residual, np.minimum(x0, top - 1e-3), bounds=(-20.0, top), diff_step=1e-3, max_nfev=evaluations, x_scale=0.1
    )
    c = put(base, dict(zip(names, (float(v) for v in np.exp(done.x)), strict=True)))
    return c


def leave_out(
    found: Sequence[Sample], by: Callable[[Sample], str], start: Constants, *, evaluations: int = 6
) -> Floats:
    """Log errors of every row, predicted by constants fitted without its group."""
    errors = np.full(len(found), np.nan)
    for group in dict.fromkeys(by(s) for s in found):
        inside = [i for i, s in enumerate(found) if by(s) == group]
        rest = [s for s in found if by(s) != group]
        c = fit(rest, start, evaluations=evaluations)
        errors[inside] = log_errors([found[i] for i in inside], c)
    return errors


def _sigma(errors: Floats) -> float:
    """Standard deviation whose 80% interval holds 80% of the errors."""
    return float(np.quantile(np.abs(errors), 0.8)) / Z80


@dataclass(frozen=True, slots=True)
class Calibration:
    """Fitted constants and the log errors of rows left out by model and by chip."""

    constants: Constants
    samples: tuple[Sample, ...]
    by_model: Floats
    by_chip: Floats


def calibrate(
    rows: Sequence[Mapping[str, str | None]],
    kernel_rates: dict[str, dict[str, float]],
    *,
    evaluations: int = 12,
    report: Callable[[str, int, int], None] | None = None,
) -> Calibration:
    """Fit all, then leave out each model and each chip; the intervals' widths come from what was left out."""
    found, _ = samples(rows)
    say = report or (lambda what, done, total: None)
    say("fit", 0, 3)
    c = fit(found, Constants(sustained=kernel_rates), evaluations=evaluations)
    say("leave out models", 1, 3)
    by_model = leave_out(found, lambda s: s.model.lower(), c)
    say("leave out chips", 2, 3)
    by_chip = leave_out(found, lambda s: s.chip, c)
    classes = np.array([sigma_class(s.prepared.job) for s in found])
    sigma = {kind: _sigma(by_model[classes == kind]) for kind in dict.fromkeys(classes.tolist())}
    base = np.array([sigma[kind] for kind in classes])
    # a chip without measured runs: what its own left-out errors show beyond that
    wide = _sigma(by_chip / base)
    sigma["chip"] = float(np.mean(base)) * math.sqrt(max(wide**2 - 1.0, 0.0))
    sigma["framework"] = sigma["chip"]
    return Calibration(c.with_(sigma=sigma, log_sigma=sigma["dense"]), tuple(found), by_model, by_chip)


def to_json(done: Calibration) -> dict[str, Any]:
    """What ``data/calibration/training.json`` holds."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {
        "source": "fitted to training_measured.csv (mosaicml/llm-foundry benchmarking README and NVIDIA Megatron-Bridge "
        "performance summary, both Apache-2.0); sustained rates from NVIDIA aiconfigurator-core 0.12.0 kernels (Apache-2.0)",
        "rows": len(done.samples),
        "left_out_by_model": {
            "median": rounded(float(np.median(np.abs(done.by_model)))),
            "p90": rounded(float(np.quantile(np.abs(done.by_model), 0.9))),
        },
        "left_out_by_chip": {
            "median": rounded(float(np.median(np.abs(done.by_chip)))),
            "p90": rounded(float(np.quantile(np.abs(done.by_chip), 0.9))),
        },
        "constants": rounded(done.constants.to_dict()),
    }


def replace_measured(sample: Sample, c: Constants) -> Sample:
    """The sample as if it had run with these constants: for checking that a fit finds what made its data."""
    return replace(sample, measured=finish(sample.prepared, c).tokens_per_s_per_chip)
