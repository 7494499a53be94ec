"""One step of an engine as sums over kinds of operators, on small grids: what the step table is made of.

Grids: decode sequences S, mean context C, tokens of a prompt step T (and chunk sizes, the same), cached tokens P. An
operator whose time depends on the context goes to the attention sums, any other to the token sums. Calibration changes
only the weights of the kinds, so a deployment is compiled once and re-weighted in microseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trivet.chip import timing
from trivet.cloud import collectives
from trivet.cloud.deployment import Deployment
from trivet.cloud.engine.ported import QUICK, behind, launched_s, quick_reduced
from trivet.cloud.engine.versions import kernel_changes
from trivet.model.layers import operators
from trivet.model.parallel import Batch, Layout
from trivet.operators import Attention, Gemm, GroupedGemm, Operator, Scan, Stream, Transfer

Floats = NDArray[np.float64]

SEQUENCES = np.array([1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024], float)
CONTEXT = np.array([128, 1024, 4096, 16384, 65536, 262144], float)
TOKENS = np.array([8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], float)
PAST = np.array([0, 2048, 8192, 32768, 131072], float)

# Kinds of work that a calibration may weigh: busy time of each, and launches.
KINDS = ("gemm", "head", "experts", "attention", "scan", "stream", "all_reduce", "exchange", "block_gemm", "latent")
_COLLECTIVE = np.array([kind in ("all_reduce", "exchange") for kind in KINDS])


@dataclass(frozen=True, slots=True, eq=False)
class Components:
    """Seconds by kind [K, ...] without launch floors, and the floors by kind."""

    decode: Floats  # [K, S]
    decode_floor: Floats  # [K] launch floors of all kernels of a kind
    decode_attention: Floats  # [S, C]
    mixed: Floats  # [K, T]
    mixed_floor: Floats  # [K]
    prefill_attention: Floats  # [T, P]
    kernels: float  # launches of one step
    layers: int
    log_sigma: float  # of the operators' times together
    core: str = "attention"  # kind of the attention surfaces: "latent" where the cache holds latents
    routed_layers: float = 0.0  # layers of experts that one stage runs
    latent_layers: float = 0.0  # layers of attention over latents
    launched_s: float = 0.0  # seconds of a decode step for launches that no graph hides


def kind_index(operator: Operator) -> int:
    """Row of ``KINDS``."""
    if isinstance(operator, Transfer):
        return 6 if operator.axis in ("tp", "pp", "dcp", "cp") else 7
    if isinstance(operator, GroupedGemm):
        return 2
    if isinstance(operator, Gemm):
        return 1 if operator.name == "lm_head" else 8 if operator.dtype == "fp8_block" else 0
    if isinstance(operator, Scan):
        return 4
    if isinstance(operator, Stream):
        return 5
    return 9 if isinstance(operator, Attention) and operator.kind == "mla" else 3


# Format of experts -> stand-ins of the same width: where the chip has its units, and where it widens the weights. MXFP4 weights
# meet 8-bit activations on Blackwell (vLLM, SGLang: FlashInfer's generated kernels; TensorRT-LLM: ``backend: TRTLLM``).
_OTHER_EXPERTS = {"fp8": ("fp8_block", "int8_wo"), "mxfp4": ("w4a8_mxfp4", "int4_wo")}
_UNITS = {"fp8_block": "fp8", "w4a8_mxfp4": "fp4"}


def _faster(found: Any, rival: Any) -> Any:
    """``found`` with the lesser of the two times, batch by batch."""
    return replace(found, value_s=np.minimum(np.asarray(found.value_s, float), np.asarray(rival.value_s, float)))


FUSED = ("fp8", "nvfp4")  # formats into which TensorRT-LLM's fused kernels write


class Clock:
    """Times operators for one deployment and sums them by kind."""

    def __init__(self, deployment: Deployment):
        self.deployment = deployment
        self.levels: dict[int, list[collectives.Level]] = {}
        self.library = deployment.settings.engine
        self.changes = kernel_changes(deployment.settings.engine, deployment.settings.version)

    def seconds(self, operator: Operator) -> Any:
        if isinstance(operator, GroupedGemm):
            layout = self.deployment.layout
            stated = layout.expert_zipf is not None or layout.expert_skew > 1.0
            operator = hottest(operator, 1 if stated else layout.moe_ep)
        if isinstance(operator, Transfer):
            group = operator.group
            if group not in self.levels:
                self.levels[group] = collectives.levels_of(self.deployment.chip, group, self.deployment.server)
            asked = self.deployment.settings.all_reduce
            library = self.library if asked in ("", QUICK) else asked
            sent = collectives.time(operator, self.levels[group], self.deployment.chip, library)
            return replace(sent, value_s=quick_reduced(operator, sent.value_s)) if asked == QUICK else sent
        found = timing.time(operator, self.deployment.chip, self.kernels(operator))
        if isinstance(operator, GroupedGemm) and self.deep_gemm(operator):
            found = _faster(found, timing.time(operator, self.deployment.chip, "trtllm"))
        generated = self.generated(operator) if isinstance(operator, GroupedGemm) else ""
        if generated:
            found = _faster(found, timing.time(operator, self.deployment.chip, generated))
        if isinstance(operator, GroupedGemm) and operator.dtype in _OTHER_EXPERTS:
            other = self.stand_in(operator)
            found = found if other is None else _faster(found, other)
        return found

    def kernels(self, operator: Operator) -> str:
        """The library whose measured kernels an engine runs. vLLM's block-scaled products were timed with what their launch
        costs the host (tens to hundreds of microseconds), which a captured graph does not pay: SGLang's stand for them, the
        same kernels (DeepGEMM) timed on the device. TensorRT-LLM's products were timed with the pass that quantises their input:
        where a fused kernel has done that before, SGLang's stand for them, timed alone."""
        if self.library == "vllm" and isinstance(operator, GroupedGemm) and self.triton(operator):
            return "vllm/triton"
        hosted = self.library == "vllm" and isinstance(operator, Gemm) and operator.dtype in ("fp8_block", "mxfp8")
        return "sglang" if hosted or (isinstance(operator, Gemm) and self.fused(operator)) else self.library

    def fused(self, operator: Gemm) -> bool:
        """Whether TensorRT-LLM quantises this product's input in the kernel before it: under static scales attention writes
        8 bits (``out_scale`` in its attention module), and SwiGLU does from 1.1 on (pull 6540); Llama's all-reduces add the
        residual, norm and quantise (``RESIDUAL_RMS_NORM_QUANT_FP8``), from a hidden size above 4,096 on."""
        if self.library != "trtllm" or operator.dtype not in FUSED:
            return False
        if operator.dtype == "fp8" and operator.name == "attention_out":
            return True
        if operator.dtype == "fp8" and operator.name == "ffn_down":
            return "1.1" in self.changes
        model, layout = self.deployment.architecture, self.deployment.layout
        return "llama" in model.model_type and layout.tp > 1 and model.hidden > 4096 and operator.name in ("qkv", "ffn_gate_up")

    def triton(self, operator: GroupedGemm) -> bool:
        """Whether vLLM runs Triton's kernels for 16-bit experts on Blackwell, measured with FlashInfer's: before 0.20 always
        (``select_unquantized_moe_backend``: only ``VLLM_USE_FLASHINFER_MOE_FP16`` changes it), later over data-parallel ranks
        where FlashInfer has CUTLASS's alone."""
        layout, family = self.deployment.layout, self.deployment.chip.family
        if operator.dtype not in ("bf16", "fp16") or family not in ("blackwell", "blackwell-gddr"):
            return False
        return "0.20" not in self.changes or (family == "blackwell-gddr" and layout.attention_dp > 1)

    def deep_gemm(self, operator: GroupedGemm) -> bool:
        """Whether SGLang leaves its Triton kernels for DeepGEMM's, which TensorRT-LLM was measured with: block-scaled experts
        spread over attention-data-parallel ranks."""
        return self.library == "sglang" and operator.dtype == "fp8_block" and self.deployment.layout.attention_dp > 1

    def generated(self, operator: GroupedGemm) -> str:
        """The library that was measured with TensorRT-LLM's generated kernels (``moe_config.backend: TRTLLM``) where it runs
        them, "" where it does not: on Blackwell, without attention data parallelism (CUTLASS and DeepGEMM exchange tokens
        there); for block-scaled FP8 since 1.2, before that DeepGEMM. vLLM's block-scaled experts are these kernels too, through
        FlashInfer."""
        deployment = self.deployment
        if self.library != "trtllm" or deployment.chip.family != "blackwell" or deployment.layout.attention_dp > 1:
            return ""
        if operator.dtype == "nvfp4":
            return "trtllm_min"
        return "vllm" if operator.dtype == "fp8_block" and "1.2" in self.changes else ""

    def stand_in(self, operator: GroupedGemm) -> Any:
        """An expert kernel's time in another format of the same width: the measured kernels of some formats are in part untuned
        ones that an engine passes over. None where it has no others: TensorRT-LLM widens MXFP4 with the kernels of Triton, which
        are those measured, and has no Marlin ones."""
        native, weight_only = _OTHER_EXPERTS[operator.dtype]
        own = self.deployment.chip.supports(_UNITS[native])
        if not own and operator.dtype == "mxfp4" and self.library == "trtllm":
            return None
        other = replace(operator, dtype=native if own else weight_only)
        return timing.time(other, self.deployment.chip, self.library)

    def sums(self, found: tuple[Operator, ...], rows: int, columns: int) -> tuple[Floats, Floats, Floats, float, float]:
        """(busy by kind [K, rows], floors by kind [K], context part [rows, columns], launches, log sigma at the middle)."""
        busy, floors = np.zeros((len(KINDS), rows)), np.zeros(len(KINDS))
        surface = np.zeros((rows, columns))
        launches, total, variance = 0.0, 0.0, 0.0
        for kind, stack, counts in _stacked(found, self.kernels):
            time = self.seconds(stack)
            shape = (len(counts), rows, columns)
            value = (
                np.atleast_3d(np.asarray(time.value_s, float)) if len(counts) > 1 else np.asarray(time.value_s, float)
            )
            value = np.broadcast_to(value, shape) * counts[:, None, None]
            floor = np.broadcast_to(np.asarray(time.floor_s, float), np.shape(time.value_s) or (1,))
            least = np.broadcast_to(floor, shape).min(axis=(1, 2)) * counts
            floors[kind] += least.sum()
            launches += counts.sum()
            work = np.maximum(value - least[:, None, None], 0.0).sum(axis=0)
            if _by_context(stack):
                surface += work
            else:
                busy[kind] += work[:, 0]
            middle = float(value.sum(axis=0).mean())
            total += middle
            variance += (middle * float(np.mean(time.log_sigma))) ** 2
        return busy, floors, surface, launches, float(np.sqrt(variance)) / max(total, 1e-12)


# Coefficients of variation of a router's load on prompts of a benchmark: over the experts, and over the experts of a layer
# as they count for the sum of a chip's (deployments place popular experts apart).
POPULARITY, PLACED = 1.2, 0.6


def hottest(operator: GroupedGemm, ways: int) -> GroupedGemm:
    """The experts of the chip that has most to do, as a router fills them: a step of an expert-parallel group ends with it. A
    layout that states its skew has it in the operator already: ``ways`` is 1 then.

    Experts are not equally popular. With popularity spread as a gamma distribution of variation ``POPULARITY``, fewer of them
    are met by a batch than if tokens chose evenly (the zero class of a negative binomial). Copies fall on the ``ways`` chips by
    chance and by popularity; the largest of as many normal deviates is Blom's.
    """
    tokens, local = np.asarray(operator.tokens, float), np.asarray(operator.local_experts, float)
    share = np.minimum(np.asarray(operator.top_k, float) / operator.experts, 1.0)
    further = np.maximum(tokens - 1.0, 0.0) * share / max(1.0 - float(np.min(share)), 1e-9)
    met = share + (1.0 - share) * (1.0 - (1.0 + POPULARITY**2 * further) ** (-1.0 / POPULARITY**2))
    even = np.asarray(operator.active_experts, float) / local
    load: Any = 1.0
    if ways > 1:
        copies = tokens * operator.top_k / ways
        spread = np.sqrt((1.0 - 1.0 / ways) / copies + PLACED**2 / local)
        load = np.minimum(1.0 + NormalDist().inv_cdf((ways - 0.375) / (ways + 0.25)) * spread, float(ways))
    more = np.minimum(met * load, 1.0) / even
    return replace(operator, local_experts=local * more, skew=operator.skew * load / more)


def _by_context(operator: Operator) -> bool:
    """Whether the second axis of the grid (context, or cached tokens) enters the operator."""
    for name in operator.__dataclass_fields__:
        value = getattr(operator, name)
        if isinstance(value, np.ndarray) and value.ndim >= 2 and value.shape[-1] > 1:
            return True
    return False


def _stacked(
    found: tuple[Operator, ...], kernels: Callable[[Operator], str]
) -> list[tuple[int, Operator, Floats]]:
    """Operators as (kind, operator, counts): products of one format and one library's ``kernels`` and passes over memory whose
    shape does not depend on the context are stacked along a leading axis, so that one call times them all."""
    groups: dict[Any, list[Operator]] = {}
    for number, operator in enumerate(found):
        alike = isinstance(operator, Gemm | Stream) and not _by_context(operator)
        key = (kind_index(operator), type(operator), operator.dtype, kernels(operator)) if alike else number
        groups.setdefault(key, []).append(operator)
    out: list[tuple[int, Operator, Floats]] = []
    for members in groups.values():
        first = members[0]
        counts = np.array([operator.count for operator in members], float)
        if len(members) > 1:
            names = ("m", "n", "k", "batch") if isinstance(first, Gemm) else ("bytes", "flops")
            dimensions: dict[str, Any] = {
                name: _stack([getattr(operator, name) for operator in members]) for name in names
            }
            first = replace(first, **dimensions)
        out.append((kind_index(members[0]), first, counts))
    return out


def _stack(values: list[Any]) -> Floats:
    """[operators, rows or 1, 1] of numbers and columns."""
    columns = [np.asarray(value, float).reshape(-1, 1) for value in values]
    rows = max(len(column) for column in columns)
    return np.stack([np.broadcast_to(column, (rows, 1)) for column in columns])


def compile_components(deployment: Deployment) -> Components:
    """Operators of the deployment's decode and prompt steps, timed on the grids.

    With pipeline stages a decode step of ``B`` sequences is ``pp`` passes of ``B / pp`` in flight at once, and a prompt
    step of ``T`` tokens leaves every ``1/pp`` of its full pass. Raises DoesNotFit when the layout does not divide the model.
    """
    architecture, settings = deployment.architecture, deployment.settings
    layout: Layout = deployment.layout
    names = {"weight_dtype": settings.weight_dtype, "moe_dtype": settings.moe_dtype, "kv_dtype": settings.kv_dtype}
    clock = Clock(deployment)
    pp = float(layout.pp)
    decode = Batch(
        decode_sequences=np.maximum(SEQUENCES[:, None] / pp, 1.0),
        decode_context=CONTEXT[None, :],
        decode_tokens=1.0 + settings.speculative_tokens,
    )
    prompt = Batch(
        prefill_sequences=1.0,
        prefill_tokens=TOKENS[:, None],
        prefill_past=PAST[None, :],
        logits=np.minimum(TOKENS[:, None], 64.0),
    )
    a = clock.sums(operators(architecture, decode, layout, **names), len(SEQUENCES), len(CONTEXT))
    slower = behind(deployment)
    kinds = np.where(_COLLECTIVE, 1.0, slower)
    b = clock.sums(operators(architecture, prompt, layout, **names), len(TOKENS), len(PAST))
    return Components(
        a[0] * kinds[:, None],
        a[1] * kinds,
        a[2] * slower,
        b[0] / pp,
        b[1] / pp,
        b[2] / pp,
        a[3],
        architecture.num_layers,
        float(np.hypot(a[4], b[4]) / 2**0.5),
        "latent" if any(layer.mixer.kind == "mla" for layer in architecture.layers) else "attention",
        sum(layer.count for layer in architecture.layers if layer.feed_forward.kind == "moe") / pp,
        sum(layer.count for layer in architecture.layers if layer.mixer.kind == "mla") / pp,
        launched_s(deployment),
    )
