"""A deployment as the command that starts it in vLLM, SGLang or TensorRT-LLM, and back.

Names are those of vLLM 0.33 (``vllm/engine/arg_utils.py``), SGLang 0.5.23 (``srt/arg_groups/fields``) and
TensorRT-LLM (``tensorrt_llm/commands/serve.py``). What differs between the engines beyond the names:

- vLLM: ``--max-num-seqs`` and ``--max-num-batched-tokens`` hold for one data-parallel rank; the experts are
  split over all chips of the stage, by expert with ``--enable-expert-parallel``, else by columns.
- SGLang: ``--tp-size`` counts all chips of a stage, ``--dp-size`` the attention ranks among them;
  ``--max-running-requests`` and ``--chunked-prefill-size`` hold for the whole server and are divided by the
  ranks.
- TensorRT-LLM: ``--tp_size`` counts all chips of a stage; attention is either split over all or, with
  ``enable_attention_dp`` in the ``--config`` file, not at all.

``memory_utilization`` is each engine's own fraction: of the whole memory in vLLM, of the whole memory for
weights and cache in SGLang, of the memory left after loading in TensorRT-LLM.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from trivet.cloud.deployment import ENGINES, Deployment, EngineSettings
from trivet.errors import TrivetError, UnknownName, Unsupported
from trivet.model.parallel import Layout

ROLES = ("", "prefill", "decode")
CONFIG_FILE = "trtllm-config.yaml"
DRAFT_MODEL = "DRAFT_MODEL"  # to be replaced by the user: which draft model is not part of a deployment

_VLLM_KV = {"fp8": "fp8", "bf16": "bfloat16", "fp16": "float16", "nvfp4": "nvfp4"}
_SGLANG_KV = {"fp8": "fp8_e4m3", "bf16": "bf16", "fp16": "fp16", "nvfp4": "fp4_e2m1"}
_TRTLLM_KV = {"fp8": "fp8", "nvfp4": "nvfp4", "bf16": "auto", "fp16": "auto"}
# Formats that an engine makes from a 16-bit checkpoint while loading; every other one must be in the
# checkpoint.
_ONLINE = {"fp8": "fp8", "mxfp8": "mxfp8"}


def _word(word: str) -> str:
    """Quoted for a shell; a variable stays one."""
    return f'"{word}"' if re.fullmatch(r"\$[A-Z_]+(:\d+)?", word) else shlex.quote(word)


@dataclass(frozen=True, slots=True)
class Launch:
    """``argv`` to run, ``files`` (name -> text) to write next to it, ``notes`` for the reader."""

    argv: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What to paste into a shell; files become here-documents."""
        notes = [f"# {note}" for note in self.notes]
        files = [f"cat > {name} <<'EOF'\n{body}EOF" for name, body in self.files.items()]
        return "\n".join([*notes, *files, " ".join(map(_word, self.argv))])


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a launch command says; ``ignored`` are flags that Trivet does not model."""

    model: str
    layout: Layout
    settings: EngineSettings
    role: str = ""
    nodes: int = 1
    ignored: tuple[str, ...] = ()


def launch_command(deployment: Deployment, *, model: str = "", role: str = "", nodes: int = 1) -> str:
    """Shell text that starts one replica; see :func:`launch`."""
    return launch(deployment, model=model, role=role, nodes=nodes).text


def launch(deployment: Deployment, *, model: str = "", role: str = "", nodes: int = 1) -> Launch:
    """How to start one replica.

    Args:
        deployment: model, chip, layout and engine settings.
        model: name or path for the engine; the architecture's name by default.
        role: "prefill" or "decode" in disaggregated serving, "" otherwise.
        nodes: servers that one replica spans; node rank and leader address are then read from ``$NODE_RANK``
        and
            ``$LEADER_ADDRESS``.

    Raises:
        Unsupported: the engine cannot be started in this layout.
    """
    if role not in ROLES:
        raise UnknownName(f"unknown role {role!r}", field="role", allowed=[r or '""' for r in ROLES])
    if nodes < 1:
        raise TrivetError(f"{nodes} nodes", field="nodes", allowed="1 or more")
    writer = _WRITERS.get(deployment.settings.engine)
    if writer is None:
        raise UnknownName(f"unknown engine {deployment.settings.engine!r}", field="engine", allowed=ENGINES)
    return writer(deployment, model or deployment.architecture.name, role, nodes)


def _is_moe(deployment: Deployment) -> bool:
    return any(layer.feed_forward.kind in ("moe", "both") for layer in deployment.architecture.layers)


def _quantisation(deployment: Deployment) -> tuple[str, tuple[str, ...]]:
    """Value of the quantisation flag ("" = none needed) and what the reader must know."""
    wanted, stored = deployment.settings.weight_dtype, deployment.architecture.quantisation.default
    if not wanted or wanted == stored or wanted in ("bf16", "fp16"):
        return "", ()
    if wanted in _ONLINE and stored in ("bf16", "fp16"):
        return _ONLINE[wanted], ()
    return "", (_stored(wanted),)


def _stored(dtype: str) -> str:
    return f"the weights must already be stored as {dtype} in the checkpoint"


def _kv(names: Mapping[str, str], dtype: str) -> str:
    if dtype not in names:
        raise Unsupported(f"no cache of {dtype!r} in this engine", field="kv_dtype", allowed=names)
    return names[dtype]


def _experts_by_expert(deployment: Deployment) -> int:
    """``moe_ep`` of the layout, checked; 1 for a dense model."""
    layout = deployment.layout
    if not _is_moe(deployment) or layout.moe_tp * layout.moe_ep == 1:
        return 1
    if layout.moe_tp * layout.moe_ep != layout.chips_per_stage:
        split = f"moe_tp {layout.moe_tp} x moe_ep {layout.moe_ep}"
        raise Unsupported(f"{split} is not the {layout.chips_per_stage} chips of a stage", field="layout")
    return layout.moe_ep


def _vllm(deployment: Deployment, model: str, role: str, nodes: int) -> Launch:
    layout, s = deployment.layout, deployment.settings
    argv = ["vllm", "serve", model]
    argv += ["--tensor-parallel-size", str(layout.tp)]
    for name, value in (
        ("--pipeline-parallel-size", layout.pp),
        ("--data-parallel-size", layout.attention_dp),
        ("--prefill-context-parallel-size", layout.cp),
        ("--decode-context-parallel-size", layout.dcp),
    ):
        if value > 1:
            argv += [name, str(value)]
    if _experts_by_expert(deployment) > 1:
        if layout.moe_tp > 1:
            raise Unsupported("vLLM splits experts either all by expert or all by column", field="layout")
        argv += ["--enable-expert-parallel"]
    if s.max_model_len:
        argv += ["--max-model-len", str(s.max_model_len)]
    argv += ["--max-num-seqs", str(s.max_num_seqs), "--max-num-batched-tokens", str(s.max_num_batched_tokens)]
    argv += ["--gpu-memory-utilization", f"{s.memory_utilization:g}", "--block-size", str(s.block_size)]
    if s.num_kv_blocks:
        argv += ["--num-gpu-blocks-override", str(s.num_kv_blocks)]
    if s.kv_dtype:
        argv += ["--kv-cache-dtype", _kv(_VLLM_KV, s.kv_dtype)]
    quantisation, notes = _quantisation(deployment)
    if quantisation:
        argv += ["--quantization", quantisation]
    argv += ["--enable-prefix-caching" if s.prefix_caching else "--no-enable-prefix-caching"]
    argv += ["--enable-chunked-prefill" if s.chunked_prefill else "--no-enable-chunked-prefill"]
    if s.speculative_tokens:
        mtp = deployment.architecture.mtp_layers > 0
        method: dict[str, Any] = {"method": "mtp"} if mtp else {"method": "eagle3", "model": DRAFT_MODEL}
        argv += [
            "--speculative-config",
            json.dumps(method | {"num_speculative_tokens": s.speculative_tokens}),
        ]
    if role:
        side = "kv_producer" if role == "prefill" else "kv_consumer"
        transfer = {"kv_connector": "NixlConnector", "kv_role": side}
        argv += ["--kv-transfer-config", json.dumps(transfer)]
    if nodes > 1:
        argv += ["--nnodes", str(nodes), "--node-rank", "$NODE_RANK", "--master-addr", "$LEADER_ADDRESS"]
    return Launch(tuple(argv), {}, notes)


def _sglang(deployment: Deployment, model: str, role: str, nodes: int) -> Launch:
    layout, s = deployment.layout, deployment.settings
    if layout.cp > 1 or layout.dcp > 1:
        raise Unsupported("context parallelism is not written for SGLang", field="layout", allowed="cp = dcp = 1")
    ranks = layout.attention_dp
    argv = ["python", "-m", "sglang.launch_server", "--model-path", model]
    argv += ["--tp-size", str(layout.chips_per_stage)]
    if layout.pp > 1:
        argv += ["--pp-size", str(layout.pp)]
    if ranks > 1:
        argv += ["--dp-size", str(ranks), "--enable-dp-attention"]
    experts = _experts_by_expert(deployment)
    if experts > 1:
        argv += ["--ep-size", str(experts)]
        if ranks > 1 and layout.moe_tp == 1:
            argv += ["--moe-a2a-backend", "deepep"]
    if s.max_model_len:
        argv += ["--context-length", str(s.max_model_len)]
    argv += ["--max-running-requests", str(s.max_num_seqs * ranks)]
    argv += ["--chunked-prefill-size", str(s.max_num_batched_tokens * ranks if s.chunked_prefill else -1)]
    if not s.chunked_prefill:
        argv += ["--max-prefill-tokens", str(s.max_num_batched_tokens)]
    argv += ["--mem-fraction-static", f"{s.memory_utilization:g}", "--page-size", str(s.block_size)]
    if s.num_kv_blocks:
        argv += ["--max-total-tokens", str(s.num_kv_blocks * s.block_size)]
    if s.kv_dtype:
        argv += ["--kv-cache-dtype", _kv(_SGLANG_KV, s.kv_dtype)]
    quantisation, notes = _quantisation(deployment)
    if quantisation:
        argv += ["--quantization", quantisation]
    if not s.prefix_caching:
        argv += ["--disable-radix-cache"]
    if s.speculative_tokens:
        mtp = deployment.architecture.mtp_layers > 0
        argv += ["--speculative-algorithm", "EAGLE" if mtp else "EAGLE3", "--speculative-eagle-topk", "1"]
        argv += ["--speculative-num-steps", str(s.speculative_tokens)]
        argv += ["--speculative-num-draft-tokens", str(s.speculative_tokens + 1)]
        if not mtp:
            argv += ["--speculative-draft-model-path", DRAFT_MODEL]
    if role:
        argv += ["--disaggregation-mode", role]
    if nodes > 1:
        argv += [
            "--nnodes",
            str(nodes),
            "--node-rank",
            "$NODE_RANK",
            "--dist-init-addr",
            "$LEADER_ADDRESS:20000",
        ]
    return Launch(tuple(argv), {}, notes)


def _trtllm(deployment: Deployment, model: str, role: str, nodes: int) -> Launch:
    layout, s = deployment.layout, deployment.settings
    if layout.attention_dp > 1 and layout.tp > 1:
        raise Unsupported(
            "TensorRT-LLM has attention split over all chips or over none",
            field="layout",
            allowed="tp = 1 with attention_dp",
        )
    if layout.dcp > 1:
        raise Unsupported("decode-context parallelism is not written for TensorRT-LLM", field="dcp", allowed="1")
    argv = ["trtllm-serve", model, "--tp_size", str(layout.tp * layout.attention_dp)]
    for name, value in (("--pp_size", layout.pp), ("--cp_size", layout.cp)):
        if value > 1:
            argv += [name, str(value)]
    experts = _experts_by_expert(deployment)
    if experts > 1:
        argv += ["--ep_size", str(experts)]
    argv += ["--max_batch_size", str(s.max_num_seqs), "--max_num_tokens", str(s.max_num_batched_tokens)]
    if s.max_model_len:
        argv += ["--max_seq_len", str(s.max_model_len)]
    argv += ["--free_gpu_memory_fraction", f"{s.memory_utilization:g}"]
    if s.chunked_prefill:
        argv += ["--enable_chunked_prefill"]
    cache: dict[str, Any] = {"enable_block_reuse": s.prefix_caching, "tokens_per_block": s.block_size}
    if s.num_kv_blocks:
        cache["max_tokens"] = s.num_kv_blocks * s.block_size
    if s.kv_dtype:
        cache["dtype"] = _kv(_TRTLLM_KV, s.kv_dtype)
    config: dict[str, Any] = {"enable_attention_dp": layout.attention_dp > 1, "kv_cache_config": cache}
    if s.speculative_tokens:
        draft: dict[str, Any]
        if deployment.architecture.mtp_layers > 0:
            draft = {"decoding_type": "MTP", "num_nextn_predict_layers": s.speculative_tokens}
        else:
            draft = {"decoding_type": "Eagle", "max_draft_len": s.speculative_tokens}
            draft["speculative_model_dir"] = DRAFT_MODEL
        config["speculative_config"] = draft
    if role:
        config["cache_transceiver_config"] = {"backend": "DEFAULT"}
    wanted, stored = s.weight_dtype, deployment.architecture.quantisation.default
    notes = (_stored(wanted),) if wanted and wanted != stored else ()
    argv += ["--config", CONFIG_FILE]
    if nodes > 1:
        argv = [
            "srun",
            "--mpi=pmix",
            "-N",
            str(nodes),
            "-n",
            str(layout.chips),
            "trtllm-llmapi-launch",
            *argv,
        ]
    return Launch(tuple(argv), {CONFIG_FILE: _yaml(config)}, notes)


_WRITERS = {"vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm}


def _yaml(document: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml, stream = YAML(), StringIO()
    yaml.default_flow_style = False
    yaml.dump(document, stream)
    return stream.getvalue()
