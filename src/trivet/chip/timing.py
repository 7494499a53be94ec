"""Seconds of an operator on a chip under a kernel library, with spread.

The physics is in ``terms.py``, what was learned from measured kernels in ``residual.py``; here they meet.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trivet.chip import residual
from trivet.chip.benchmarks import Update, benchmarks, update
from trivet.chip.centre import believed
from trivet.chip.features import features, floor_seconds
from trivet.chip.kernels import kind_of, precision_of, profile
from trivet.chip.makers import maker_profile
from trivet.chip.point import ChipPoint, chip_point
from trivet.chip.spec import Chip
from trivet.chip.terms import Terms, terms
from trivet.operators import Attention, Compute, Gemm, Number, Stream
from trivet.units import Z80

Floats: TypeAlias = NDArray[np.float64]
Kinds: TypeAlias = dict[str, residual.Kind]



@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """Duration of one call of an operator (not times its ``count``).

    ``value_s`` is the median, ``log_sigma`` the standard deviation of its logarithm, all causes together. ``compute``,
    ``bandwidth``, ``launch`` and ``link`` are the shares of the time that scale with the latent factor of that name (they sum
    to 1): a factor whose logarithm is off by ``e`` moves log time by ``share * e``. ``sigmas`` are the log spreads of the
    factors (compute, bandwidth, launch, link), common to all operators of the chip; ``own_sigma`` is this shape's alone, so
    that log_sigma^2 = own^2 + sum (share sigma)^2. ``floor_s`` is what launching costs, already inside ``value_s``. ``note``
    says what was assumed.
    """

    value_s: Number
    log_sigma: Number
    compute: Number = 0.0
    bandwidth: Number = 0.0
    launch: Number = 0.0
    link: Number = 0.0
    floor_s: Number = 0.0
    note: str = ""
    own_sigma: Number = 0.0
    sigmas: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def lo_s(self) -> Number:
        """Lower end of the 80% interval."""
        return self.value_s * np.exp(-Z80 * np.asarray(self.log_sigma))

    @property
    def hi_s(self) -> Number:
        """Upper end of the 80% interval."""
        return self.value_s * np.exp(Z80 * np.asarray(self.log_sigma))


def time(
    operator: Compute,
    chip: Chip,
    library: str = "vllm",
    version: str = "",
    *,
    isolated: bool = False,
    graph: bool = True,
    kind: str = "",
    coefficients: Kinds | None = None,
) -> Seconds:
    """Time of one call of ``operator`` on ``chip`` under the kernels of ``library``.

    Args:
        operator: its dimensions may be arrays; the answer has their common shape.
        chip: any chip of the catalogue, measured or known by its data sheet only.
        library: vllm, sglang or trtllm; another name takes the nearest profile and says so in ``note``.
        version: of the library (one version each is calibrated so far).
        isolated: as a kernel benchmark runs it, again and again on the same buffers, so that small ones stay in cache.
        graph: launched from a captured graph; else the host's launch cost is a lower bound.
        kind: the kind of kernel, where it is not the one that the operator's shape suggests.
        coefficients: instead of the shipped ones.

    Raises:
        Unsupported: a field without which the chip cannot be timed is neither published nor bounded.
    """
    if isinstance(operator, Stream):
        return _stream(operator, chip_point(chip, "bf16"), isolated, graph)
    point = chip_point(chip, operator.dtype)
    wanted = profile(library, version)
    widened = isinstance(operator, Gemm) and not point.native  # weights widened in the kernel: no activations to quantise
    kind = kind or ("gemm" if widened else kind_of(operator, wanted.library))
    kinds = coefficients or residual.shipped()
    origin = chip.like or chip
    model = point if chip.like is None else chip_point(origin, operator.dtype)
    precision = precision_of(operator)
    held, library = residual.with_kernel(kinds, kind, wanted.library, model.family, precision)
    belief = _belief(kinds, origin, model, held, library, precision)
    parts = predict_flat(
        kinds[held], operator, point, kind, library, belief.offset, isolated, model, power=belief.power
    )
    if not graph:
        host = point.host_launch_s or HOST_LAUNCH_S
        parts = (np.maximum(parts[0], host), *parts[1:4], np.maximum(parts[4], host))
    floor = floor_seconds(point, kind, library, precision)
    return _seconds(operator, point, kinds[held], belief, parts, wanted.note, floor)


# A CPU's kernels: 80% of the peak, 86% of the bandwidth, a call of about a microsecond.
CPU_OFFSET, CPU_SIGMA = np.array([0.22, 0.15, -1.0]), np.array([0.25, 0.15, 0.7])
HOST_LAUNCH_S = 5e-6  # what a launch costs an unhurried x86 host where it is not known


# Norms, activations and copies were not measured: share of the bandwidth, floor in cycles of the usual one, log spread.
STREAM_BANDWIDTH, STREAM_FLOOR, STREAM_SIGMA = 0.8, 0.8, 0.25


def _stream(operator: Stream, point: ChipPoint, isolated: bool, graph: bool) -> Seconds:
    ideal = terms(operator, point, isolated)
    floor = STREAM_FLOOR * floor_seconds(point)
    if not graph:
        floor = max(floor, point.host_launch_s or HOST_LAUNCH_S)
    memory = ideal.memory_s / STREAM_BANDWIDTH
    value = floor + np.maximum(memory, ideal.compute_s)
    bandwidth = (memory >= ideal.compute_s) * (1.0 - floor / value)
    compute = 1.0 - floor / value - bandwidth
    sheet = (compute * point.sigma_compute) ** 2 + (bandwidth * point.sigma_bandwidth) ** 2
    shape = np.shape(value)
    columns: list[Any] = [
        np.broadcast_to(v, shape) if shape else float(v)
        for v in (value, np.sqrt(STREAM_SIGMA**2 + sheet), compute, bandwidth, floor / value, floor, STREAM_SIGMA)
    ]
    sigmas = (point.sigma_compute, point.sigma_bandwidth, 0.0, 0.0)
    value_s, sigma, compute_share, bandwidth_share, launch, floor_s, own = columns
    return Seconds(value_s, sigma, compute_share, bandwidth_share, launch, 0.0, floor_s, "", own, sigmas)


@dataclass(frozen=True, eq=False)
class _Belief:
    """What is believed of a chip's kernels of one kind, library and precision."""

    offset: Floats  # [3] log offsets of (compute, memory, floor)
    sigma: Floats  # [3] their log spread, data sheet included
    how: str  # measured, family, new, benchmarked
    precision: str
    note: str
    power: float = residual.SOFT_MAX_POWER  # of the join of compute and memory
    library: str = ""


_BELIEFS: dict[tuple[int, int, str, str, str, str], tuple[object, object, _Belief]] = {}


def _belief(kinds: Kinds, chip: Chip, point: ChipPoint, kind: str, library: str, precision: str) -> _Belief:
    key = (id(kinds), id(chip), point.math, kind, library, precision)
    held = _BELIEFS.get(key)
    if held is not None and held[0] is kinds and held[1] is chip:
        return held[2]
    offset, kernels, how, note = _prior(kinds[kind], chip, point, kind, library, precision)
    sheet = np.array([point.sigma_compute, point.sigma_bandwidth, 0.0])
    sigma = np.hypot(sheet, kernels)
    measured = benchmarks(chip)
    if measured and how != "measured":
        found = _update(kinds, chip, library.partition("/")[0], measured)
        benched = chip_point(chip, measured[0][0].dtype).math
        same = kind == "gemm" and (point.math == benched or {point.math, benched} == {"bf16", "fp16"})
        shift, sigma = found.apply(same, sheet, kernels, kind == "gemm_narrow")
        offset = offset + shift
        how = "benchmarked" if same else how
        note = "; ".join(n for n in (note, "calibrated by the chip's microbenchmarks") if n)
    power = maker_profile(chip, kind, library, precision).power if how == "new" else residual.SOFT_MAX_POWER
    belief = _Belief(
        offset, sigma, how, residual.HOST if library == "vllm_host" else precision, note, power, library
    )
    if len(_BELIEFS) > 4096:
        _BELIEFS.clear()
    _BELIEFS[key] = (kinds, chip, belief)
    return belief


def _prior(
    learned: residual.Kind, chip: Chip, point: ChipPoint, kind: str, library: str, precision: str
) -> tuple[Floats, Floats, str, str]:
    if point.fine_grained:
        return CPU_OFFSET, CPU_SIGMA, "new", ""
    offset, kernels, how, note = believed(learned, point, point, kind, library, precision)
    if how == "new":
        maker = maker_profile(chip, kind, library, precision)
        offset, kernels = offset + maker.offset, maker.sigma if maker.fitted else np.hypot(kernels, maker.sigma)
    return offset, kernels, how, note


def _update(kinds: Kinds, chip: Chip, library: str, measured: tuple[tuple[Gemm, float], ...]) -> Update:
    point = chip_point(chip, measured[0][0].dtype)
    prior, kernels, _, _ = _prior(kinds["gemm"], chip, point, "gemm", library, "bf16")

    def predict(operator: Gemm, delta: Floats) -> tuple[float, Floats]:
        parts = predict_flat(kinds["gemm"], operator, point, "gemm", library, prior + delta, True, bounded=False)
        return float(parts[0][0]), np.array([parts[1][0], parts[2][0], parts[3][0]])

    return update(measured, predict, np.array([point.sigma_compute, point.sigma_bandwidth, 0.0]), kernels)


def predict_flat(
    learned: residual.Kind,
    operator: Compute,
    point: ChipPoint,
    kind: str,
    library: str,
    offset: Floats,
    isolated: bool,
    origin: ChipPoint | None = None,
    bounded: bool = True,
    power: float = residual.SOFT_MAX_POWER,
) -> tuple[Floats, ...]:
    """Flat (seconds, compute, bandwidth, launch shares, floor seconds). A variant is corrected as its ``origin`` is; not
    ``bounded`` by the data sheet, the seconds follow every change of ``offset``; ``power`` joins compute and memory."""
    ideal = terms(operator, point, isolated, library)
    known = point if origin is None else origin
    parts = ideal if known is point else terms(operator, known, isolated, library)
    matrix = features(kind, operator, parts, known, library)
    ones = residual.indicators(learned.precisions, library, precision_of(operator), learned.kernels)
    correction = residual.network(learned, np.hstack([matrix, np.broadcast_to(ones, (len(matrix), len(ones)))]))
    if point.fine_grained:
        correction = np.zeros_like(correction)  # what accelerators' kernels taught does not hold for a CPU
    usual = floor_seconds(point, kind, library, precision_of(operator))
    value, *shares, floor = residual.combine(
        ideal.compute_s.ravel(), ideal.memory_s.ravel(), usual, correction + offset, power
    )
    return (np.maximum(value, _physical_bound(kind, ideal, point)) if bounded else value, *shares, floor)


def _physical_bound(kind: str, ideal: Terms, point: ChipPoint) -> Floats:
    """No kernel is faster than the peak, nor reads what is not in cache faster than the memory gives it (for experts and
    scans the bytes are an expectation, not a bound). A bounded rate counts at the upper end of its interval."""
    bound = ideal.flops / point.peak_flops * np.exp(-Z80 * point.sigma_compute)
    if kind in ("gemm", "gemm_narrow", "prefill", "decode"):
        cold = ideal.bytes * (1.0 - ideal.warm) / point.bandwidth * np.exp(-Z80 * point.sigma_bandwidth)
        bound = np.maximum(bound, cold)
    return np.broadcast_to(bound, np.shape(ideal.compute_s)).ravel()


def _seconds(
    operator: Compute,
    point: ChipPoint,
    learned: residual.Kind,
    belief: _Belief,
    parts: tuple[Floats, ...],
    note: str,
    usual: float,
) -> Seconds:
    value, compute, bandwidth, launch, floor = parts
    shares = np.column_stack([compute, bandwidth, launch])
    size = np.log(np.maximum(value / usual, 1e-3))
    own = residual.own_sigma(learned, shares, size, belief.how, belief.precision, belief.library)
    total = np.sqrt(own**2 + ((shares * belief.sigma) ** 2).sum(1))
    said = [n for n in (note, belief.note, _widened(operator, point)) if n]
    shape = operator_shape(operator)
    columns: list[Any] = [
        v.reshape(shape) if shape else float(v[0]) for v in (value, total, compute, bandwidth, launch, floor, own)
    ]
    a, b, c = (float(s) for s in belief.sigma)
    value_s, log_sigma, *each, floor_s, own_sigma = columns
    return Seconds(
        value_s, log_sigma, each[0], each[1], each[2], 0.0, floor_s, "; ".join(said), own_sigma, (a, b, c, 0.0)
    )


def operator_shape(operator: Compute) -> tuple[int, ...]:
    """Common shape of an operator's dimensions."""
    found = [np.shape(getattr(operator, f.name)) for f in fields(operator) if f.name not in ("name", "dtype")]
    return np.broadcast_shapes(*found)


def _widened(operator: Compute, point: ChipPoint) -> str:
    if point.native or isinstance(operator, Stream | Attention):
        return ""
    return f"{point.name} has no {operator.dtype} units: computed in {point.math}, weights widened on the way in"
