"""What a checkpoint stores its weights in, by component, from ``quantization_config`` in its many dialects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import translate
from typing import Any

from trivet.errors import Unsupported
from trivet.model.architecture import Quantisation

FLOATS = {
    "bfloat16": "bf16",
    "bf16": "bf16",
    "float16": "fp16",
    "fp16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "fp32": "fp32",
    "float": "fp32",
    "auto": "bf16",
}
# Names under which families keep the linear layers of a component in layer {i}.
_PROBES = {
    "attention": (
        "self_attn.q_proj",
        "self_attn.o_proj",
        "self_attn.q_b_proj",
        "linear_attn.out_proj",
        "attn.wq_b",
        "attn.wo_b",
        "mixer.in_proj",
        "attn.c_attn",
    ),
    "experts": (
        "mlp.experts.0.up_proj",
        "mlp.experts",
        "block_sparse_moe.experts.0.w1",
        "ffn.experts.0.w1",
        "ffn.experts",
        "feed_forward.experts.0.up_proj",
        "mixer.experts.0.up_proj",
        "experts",
        "moe.experts",
    ),
    "dense": (
        "mlp.up_proj",
        "mlp.gate_up_proj",
        "mlp.shared_experts.up_proj",
        "mlp.shared_expert.up_proj",
        "feed_forward.up_proj",
        "mlp.c_fc",
    ),
}
_ROOTS = (
    "model.layers.",
    "model.language_model.layers.",
    "language_model.model.layers.",
    "layers.",
    "backbone.layers.",
    "transformer.h.",
)
_HEADS = ("lm_head", "language_model.lm_head", "head")


class _Patterns:
    """Module patterns of one config, compiled: exact names and prefixes, globs, and regular expressions (``re:``)."""

    def __init__(self, patterns: Sequence[str], *, loose: bool):
        self.loose = loose  # a bare word matches that part of a name anywhere
        self.exact = frozenset(p for p in patterns if not p.startswith("re:") and "*" not in p and "?" not in p)
        globs = [
            translate(form)
            for p in patterns
            if "*" in p or "?" in p
            for form in (p, p + ".*")
            if not p.startswith("re:")
        ]
        expressions = [f"(?:{p[3:]})" for p in patterns if p.startswith("re:")]
        self.expression = re.compile("|".join(globs + expressions)) if globs or expressions else None

    def match(self, name: str) -> bool:
        parts = name.split(".")
        if any(".".join(parts[:i]) in self.exact for i in range(1, len(parts) + 1)):
            return True
        if self.loose and any(part in self.exact for part in parts):
            return True
        return self.expression is not None and self.expression.match(name) is not None


def _left_out(patterns: Sequence[str], component: str, layers: int, loose: bool) -> bool:
    """Whether most layers' linear maps of a component match the patterns."""
    if not patterns:
        return False
    compiled = _Patterns(patterns, loose=loose)
    if component == "head":
        return any(compiled.match(head) for head in _HEADS)
    hits = sum(
        any(compiled.match(f"{root}{i}.{probe}") for root in _ROOTS for probe in _PROBES[component])
        for i in range(layers)
    )
    return hits * 2 > layers


def _group_label(weights: Mapping[str, Any], activations: Any, block: bool, pack: str) -> str:
    bits, kind = weights.get("num_bits"), str(weights.get("type", "int"))
    if kind == "float" and bits == 8:
        return "fp8_block" if block or weights.get("strategy") == "block" else "fp8"
    if kind == "float" and bits == 4:
        return "mxfp4" if weights.get("group_size") == 32 or "mxfp4" in pack else "nvfp4"
    if kind == "int" and bits == 8:
        return "int8" if activations else "int8_wo"
    if kind == "int" and bits == 4:
        return "int4_wo"
    raise Unsupported(f"{bits}-bit {kind} weights are not understood", field="quantization_config.config_groups")


def _plain_label(raw: Mapping[str, Any]) -> str:
    method = str(raw.get("quant_method", "")).lower()
    algorithm = str(raw.get("quant_algo") or raw.get("moe_quant_algo") or "").upper()
    if method in ("mxfp4", "mxfp8"):
        return method
    if algorithm in ("NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8"):
        return "nvfp4"
    if algorithm.startswith("MXFP8"):
        return "mxfp8"
    if method in ("fp8", "fbgemm_fp8") or algorithm.startswith("FP8"):
        return "fp8_block" if raw.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq", "auto-round", "autoround", "gptq_marlin", "awq_marlin"):
        bits = raw.get("bits", raw.get("w_bit", 4))
        if bits in (4, 8):
            return "int4_wo" if bits == 4 else "int8_wo"
    if method in ("bitsandbytes", "bnb"):
        return "int8_wo" if raw.get("load_in_8bit") else "int4_wo"
    if "W4A16" in algorithm or "W4A8" in algorithm or "INT4" in algorithm:
        return "int4_wo"
    if "INT8" in algorithm or "W8A8" in algorithm:
        return "int8"
    raise Unsupported(
        f"method {method!r} {algorithm!r} is not understood",
        field="quantization_config",
        allowed="fp8, modelopt, compressed-tensors, mxfp4, awq, gptq, bitsandbytes",
    )


def _groups(raw: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    found = []
    for group in (raw.get("config_groups") or {}).values():
        weights = group.get("weights")
        if weights:
            pack = str(group.get("format") or raw.get("format") or "")
            label = _group_label(weights, group.get("input_activations"), bool(raw.get("weight_block_size")), pack)
            found.append((label, [str(t) for t in group.get("targets") or ["Linear"]]))
    return found


def _kv_label(raw: Mapping[str, Any], base: str) -> str:
    scheme = raw.get("kv_cache_scheme") or raw.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        return {8: "fp8" if scheme.get("type") == "float" else "int8", 4: "nvfp4"}.get(scheme.get("num_bits", 16), base)
    if isinstance(scheme, str) and scheme.upper() in ("FP8", "NVFP4", "INT8"):
        return scheme.lower()
    return base


def read_quantisation(raw: Mapping[str, Any], layers: int) -> Quantisation:
    """Labels by component of a whole ``config.json`` (the text part of a composite one may hold them too).

    A component counts as left out when most of its layers are; the first and last layers that some recipes keep in
    higher precision are within that reading.
    """
    text = raw.get("text_config") if isinstance(raw.get("text_config"), Mapping) else {}
    assert isinstance(text, Mapping)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype") or "bfloat16"
    base = FLOATS.get(str(dtype).removeprefix("torch."), "bf16")
    cache = "bf16" if base == "fp32" else base
    config = raw.get("quantization_config") or text.get("quantization_config") or raw.get("compression_config")
    if config is not None and not isinstance(config, Mapping):
        raise Unsupported(f"{config!r} is not a mapping", field="quantization_config")
    if not config:
        return Quantisation(base, base, base, base, base, cache)
    ignored = [
        str(p)
        for key in (
            "ignore",
            "modules_to_not_convert",
            "ignored_layers",
            "exclude_modules",
            "llm_int8_skip_modules",
        )
        for p in (config.get(key) or [])
    ]
    groups = _groups(config)
    if config.get("quant_algo") == "MIXED_PRECISION" and config.get("moe_quant_algo"):
        experts = str(config["moe_quant_algo"]).lower()
        rest = "fp8_block" if config.get("weight_block_size") else base
        return Quantisation(rest, rest, experts, rest, base, _kv_label(config, cache))
    method = str(config.get("quant_method", "")).lower()
    loose = method not in ("modelopt", "compressed-tensors")
    label = groups[0][0] if groups else _plain_label(config)
    if not ignored and method == "mxfp4":
        return Quantisation(base, base, label, base, base, cache)
    labels = {}
    for component in ("attention", "experts", "dense", "head"):
        chosen = base if component == "head" else label
        for group_label, targets in groups:
            if "Linear" not in targets and _left_out(targets, component, layers, loose):
                chosen = group_label
                break
        else:
            if groups and component != "head" and all("Linear" not in targets for _, targets in groups):
                chosen = base
        labels[component] = base if _left_out(ignored, component, layers, loose) else chosen
    if raw.get("expert_dtype") == "fp4" or text.get("expert_dtype") == "fp4":
        labels["experts"] = "mxfp4"
    return Quantisation(
        label,
        labels["attention"],
        labels["experts"],
        labels["dense"],
        labels["head"],
        _kv_label(config, cache),
    )


def by_name(stored: Quantisation, name: str, *, latent_or_hybrid: bool) -> Quantisation:
    """The labels of a checkpoint whose config does not state them but whose name does (``-NVFP4``, ``-FP8``).

    Such checkpoints keep a quantiser's settings in a second file. What that tool does by default: all linear layers but
    the head and the router, and not the attention of latent-attention and hybrid models in 4 bits; cache in FP8.
    """
    match = re.search(r"-(nvfp4|fp4|fp8|mxfp4)\b", name.lower())
    if match is None:
        return stored
    label = {"fp4": "nvfp4"}.get(match.group(1), match.group(1))
    attention = stored.attention if latent_or_hybrid and label != "fp8" else label
    cache = "fp8" if label in ("nvfp4", "fp8") else stored.kv_cache
    return Quantisation(label, attention, label, label, stored.head, cache)
