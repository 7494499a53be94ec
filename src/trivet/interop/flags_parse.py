"""The way back: from a launch command to layout and engine settings."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trivet.cloud.deployment import EngineSettings
from trivet.errors import TrivetError, UnknownName
from trivet.interop.flags import _SGLANG_KV, _TRTLLM_KV, _VLLM_KV, Parsed
from trivet.model.parallel import Layout

_SWITCHES = {
    "enable-expert-parallel",
    "no-enable-expert-parallel",
    "enable-prefix-caching",
    "no-enable-prefix-caching",
    "enable-chunked-prefill",
    "no-enable-chunked-prefill",
    "async-scheduling",
    "no-async-scheduling",
    "enforce-eager",
    "trust-remote-code",
    "enable-dp-attention",
    "disable-radix-cache",
    "disable-cuda-graph",
    "disable-log-requests",
    "enable-dp-lm-head",
    "disable-overlap-schedule",
    "enable-hierarchical-cache",
    "enable-eplb",
    "enable-dbo",
}
_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "ep": "expert-parallel",
    "dcp": "decode-context-parallel-size",
    "pcp": "prefill-context-parallel-size",
}
_SGLANG_ALIASES = {
    "tensor-parallel-size": "tp-size",
    "tp": "tp-size",
    "data-parallel-size": "dp-size",
    "dp": "dp-size",
    "pipeline-parallel-size": "pp-size",
    "pp": "pp-size",
    "expert-parallel-size": "ep-size",
    "ep": "ep-size",
    "model": "model-path",
}


class _Flags:
    """The flags of one command, taken one by one; what is left is reported as ignored."""

    def __init__(self, words: Sequence[str], aliases: Mapping[str, str]):
        self.free: list[str] = []
        self.values: dict[str, str | None] = {}
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if not word.startswith("-") or word == "-":
                self.free.append(word)
                continue
            name, equals, value = word.lstrip("-").partition("=")
            name = name.replace("_", "-")
            name = aliases.get(name, name)
            if equals:
                self.values[name] = value
            elif name in _SWITCHES:
                self.values[name] = None
            elif at < len(words) and (
                not words[at].startswith("-") or re.fullmatch(r"-\d+(\.\d+)?", words[at])
            ):
                self.values[name] = words[at]
                at += 1
            else:
                self.values[name] = None

    def text(self, name: str, default: str = "") -> str:
        if name not in self.values:
            return default
        value = self.values.pop(name)
        if value is None:
            raise TrivetError("has no value", field=f"--{name}")
        return value

    def number(self, name: str, default: float, kind: Callable[[str], float] = int) -> Any:
        raw = self.text(name, "")
        if not raw:
            return default
        try:
            return kind(raw)
        except ValueError as error:
            raise TrivetError(f"{raw!r} is not a number", field=f"--{name}") from error

    def switch(self, on: str, off: str = "", default: bool = False) -> bool:
        """True, False or the default by which of the two flags stands there."""
        if off and off in self.values:
            self.values.pop(off)
            return False
        if on in self.values:
            return (self.values.pop(on) or "true").lower() not in ("false", "0", "no")
        return default

    def document(self, name: str) -> dict[str, Any]:
        raw = self.text(name, "")
        try:
            document = json.loads(raw) if raw else {}
        except json.JSONDecodeError as error:
            raise TrivetError(f"not JSON: {error}", field=f"--{name}") from error
        if not isinstance(document, dict):
            raise TrivetError("not a JSON object", field=f"--{name}")
        return document


def parse(
    command: str | Sequence[str], *, files: Mapping[str, str] | None = None, moe: bool = True
) -> Parsed:
    """Read a launch command of any of the three engines.

    Args:
        command: shell line (comments and here-documents of ``flags.launch_command`` included) or words.
        files: text of a ``--config`` file by the name that the command uses.
        moe: whether the model has experts (a dense model has ``moe_tp = moe_ep = 1``).

    Raises:
        TrivetError: no known engine, a flag without value, a value that is no number.
    """
    texts = dict(files or {})
    if isinstance(command, str):
        texts |= dict(re.findall(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF$", command, re.S | re.M))
        command = re.sub(r"^cat > \S+ <<'EOF'\n.*?^EOF$", "", command, flags=re.S | re.M)
        try:
            words = shlex.split(command.replace("\\\n", " "), comments=True)
        except ValueError as error:
            raise TrivetError(f"not a shell command: {error}", field="command") from error
    else:
        words = list(command)
    for at, word in enumerate(words):
        if word == "vllm" and words[at + 1 : at + 2] == ["serve"]:
            return _vllm(_Flags(words[at + 2 :], _SHORT), moe)
        if word.endswith("vllm.entrypoints.openai.api_server"):
            return _vllm(_Flags(words[at + 1 :], _SHORT), moe)
        if word == "sglang.launch_server":
            return _sglang(_Flags(words[at + 1 :], _SGLANG_ALIASES), moe)
        if word == "sglang" and words[at + 1 : at + 2] == ["serve"]:
            return _sglang(_Flags(words[at + 2 :], _SGLANG_ALIASES), moe)
        if word.endswith("trtllm-serve"):
            rest = words[at + 1 :]
            nodes = int(words[words.index("-N") + 1]) if "-N" in words[:at] else 1
            return _trtllm(_Flags(rest[1:] if rest[:1] == ["serve"] else rest, {}), texts, moe, nodes)
    raise UnknownName(
        "no engine in it", field="command", allowed="vllm serve, sglang.launch_server, trtllm-serve"
    )


_DEFAULT = EngineSettings()


def _experts(moe: bool, stage: int, ep: int) -> tuple[int, int]:
    """(moe_tp, moe_ep)"""
    if not moe:
        return 1, 1
    if ep < 1 or stage % ep:
        raise TrivetError(f"{ep} does not divide the {stage} chips of a stage", field="ep_size")
    return stage // ep, ep


def _dtype(names: Mapping[str, str], value: str) -> str:
    if value in ("", "auto"):
        return ""
    back = {v: k for k, v in names.items() if v != "auto"} | {
        "fp8_e4m3": "fp8",
        "fp8": "fp8",
        "bfloat16": "bf16",
    }
    if value not in back:
        raise UnknownName(f"unknown cache type {value!r}", field="kv-cache-dtype", allowed=sorted(back))
    return back[value]


def _vllm(flags: _Flags, moe: bool) -> Parsed:
    model = flags.text("model", flags.free[0] if flags.free else "")
    tp, dp = flags.number("tensor-parallel-size", 1), flags.number("data-parallel-size", 1)
    cp = flags.number("prefill-context-parallel-size", 1)
    stage = tp * dp * cp
    by_expert = flags.switch("enable-expert-parallel", "no-enable-expert-parallel")
    moe_tp, moe_ep = _experts(moe, stage, stage if by_expert else 1)
    layout = Layout(
        tp=tp,
        pp=flags.number("pipeline-parallel-size", 1),
        attention_dp=dp,
        cp=cp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
        dcp=flags.number("decode-context-parallel-size", 1),
    )
    transfer = flags.document("kv-transfer-config").get("kv_role", "")
    settings = EngineSettings(
        engine="vllm",
        max_num_seqs=flags.number("max-num-seqs", _DEFAULT.max_num_seqs),
        max_num_batched_tokens=flags.number("max-num-batched-tokens", _DEFAULT.max_num_batched_tokens),
        max_model_len=flags.number("max-model-len", 0),
        memory_utilization=flags.number("gpu-memory-utilization", 0.9, float),
        block_size=flags.number("block-size", 16),
        num_kv_blocks=flags.number("num-gpu-blocks-override", 0),
        kv_dtype=_dtype(_VLLM_KV, flags.text("kv-cache-dtype")),
        weight_dtype=_weights(flags.text("quantization")),
        prefix_caching=flags.switch("enable-prefix-caching", "no-enable-prefix-caching", True),
        chunked_prefill=flags.switch("enable-chunked-prefill", "no-enable-chunked-prefill", True),
        speculative_tokens=int(flags.document("speculative-config").get("num_speculative_tokens", 0)),
    )
    nodes = flags.number("nnodes", 1)
    role = {"kv_producer": "prefill", "kv_consumer": "decode"}.get(transfer, "")
    return Parsed(model, layout, settings, role, nodes, _ignored(flags))


def _sglang(flags: _Flags, moe: bool) -> Parsed:
    model = flags.text("model-path")
    stage, dp = flags.number("tp-size", 1), flags.number("dp-size", 1)
    attention_dp = dp if flags.switch("enable-dp-attention") else 1
    if attention_dp < 1 or stage % attention_dp:
        raise TrivetError(f"{attention_dp} does not divide --tp-size {stage}", field="--dp-size")
    moe_tp, moe_ep = _experts(moe, stage, flags.number("ep-size", 1))
    layout = Layout(
        tp=stage // attention_dp,
        pp=flags.number("pp-size", 1),
        attention_dp=attention_dp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
    )
    page = flags.number("page-size", 1)
    chunk = flags.number("chunked-prefill-size", 8192 * attention_dp)
    budget = flags.number("max-prefill-tokens", 16384)
    flags.text("moe-a2a-backend")
    for implied in ("speculative-eagle-topk", "speculative-num-draft-tokens", "speculative-algorithm"):
        flags.text(implied)
    settings = EngineSettings(
        engine="sglang",
        max_num_seqs=flags.number("max-running-requests", 256 * attention_dp) // attention_dp,
        max_num_batched_tokens=chunk // attention_dp if chunk > 0 else budget,
        max_model_len=flags.number("context-length", 0),
        memory_utilization=flags.number("mem-fraction-static", 0.9, float),
        block_size=page,
        num_kv_blocks=flags.number("max-total-tokens", 0) // page,
        kv_dtype=_dtype(_SGLANG_KV, flags.text("kv-cache-dtype")),
        weight_dtype=_weights(flags.text("quantization")),
        prefix_caching=not flags.switch("disable-radix-cache"),
        chunked_prefill=chunk > 0,
        speculative_tokens=flags.number("speculative-num-steps", 0),
    )
    role = flags.text("disaggregation-mode").replace("null", "")
    return Parsed(model, layout, settings, role, flags.number("nnodes", 1), _ignored(flags))


def _trtllm(flags: _Flags, texts: Mapping[str, str], moe: bool, nodes: int) -> Parsed:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    name = flags.text("config") or flags.text("extra-llm-api-options")
    config: Any = {}
    if name:
        if name not in texts:
            raise TrivetError(f"the text of {name!r} is not given", field="--config")
        try:
            config = YAML(typ="safe").load(texts[name]) or {}
        except YAMLError as error:
            raise TrivetError(f"not YAML: {str(error).splitlines()[0]}", field="--config") from error
    cache, draft = config.get("kv_cache_config", {}), config.get("speculative_config", {})
    model = flags.free[0] if flags.free else ""
    stage, cp = flags.number("tp-size", 1), flags.number("cp-size", 1)
    spread = bool(config.get("enable_attention_dp", False))
    moe_tp, moe_ep = _experts(moe, stage * cp, flags.number("ep-size", 1))
    layout = Layout(
        tp=1 if spread else stage,
        attention_dp=stage if spread else 1,
        pp=flags.number("pp-size", 1),
        cp=cp,
        moe_tp=moe_tp,
        moe_ep=moe_ep,
    )
    block = int(cache.get("tokens_per_block", 32))
    settings = EngineSettings(
        engine="trtllm",
        max_num_seqs=flags.number("max-batch-size", 2048),
        max_num_batched_tokens=flags.number("max-num-tokens", 8192),
        max_model_len=flags.number("max-seq-len", 0),
        memory_utilization=flags.number(
            "free-gpu-memory-fraction", cache.get("free_gpu_memory_fraction", 0.9), float
        ),
        block_size=block,
        num_kv_blocks=int(cache.get("max_tokens", 0)) // block,
        kv_dtype=_dtype(_TRTLLM_KV, str(cache.get("dtype", ""))),
        prefix_caching=bool(cache.get("enable_block_reuse", True)),
        chunked_prefill=flags.switch("enable-chunked-prefill"),
        speculative_tokens=int(draft.get("num_nextn_predict_layers", draft.get("max_draft_len", 0))),
    )
    return Parsed(model, layout, settings, "", nodes, _ignored(flags))


def _weights(quantisation: str) -> str:
    return quantisation if quantisation in ("fp8", "mxfp8") else ""


def _ignored(flags: _Flags) -> tuple[str, ...]:
    known = {"node-rank", "master-addr", "dist-init-addr", "speculative-draft-model-path"}
    return tuple(f"--{name}" for name in flags.values if name not in known)
