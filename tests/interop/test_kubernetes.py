"""Manifests: they parse, hold the fields that each API has, and carry the deployment."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML

from trivet.chip.spec import Chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.errors import TrivetError, Unsupported
from trivet.interop.flags_parse import parse
from trivet.interop.kubernetes import KINDS, Rollout, manifest
from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer, Quantisation
from trivet.model.parallel import Layout

MOE = Architecture(
    "Qwen/Qwen3-30B-A3B", "qwen3_moe", 2048, 151936,
    (Layer(Mixer("attention", 32, 4, 128), FeedForward("moe", experts=128, top_k=8, expert_intermediate=768), 48),),
    False, 40960, Quantisation(), 30_532_122_624, 3_350_000_000,
)  # fmt: skip


def deployment(engine: str = "vllm", maker: str = "NVIDIA", **layout: int) -> Deployment:
    chip = Chip("h20", "H20", maker, "hopper", "accelerator")
    return Deployment(MOE, chip, Layout(**layout), EngineSettings(engine=engine))


def load(text: str) -> list[dict[str, Any]]:
    return list(YAML(typ="safe").load_all(text))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("split", [False, True])
def test_every_kind_is_yaml_or_refused(kind: str, engine: str, split: bool) -> None:
    one = deployment(engine, tp=4, moe_tp=4)
    rollout = Rollout("qwen", one, 3, prefill=one if split else None, prefill_replicas=2 if split else 0)
    if kind in ("llm-d", "kserve") and engine != "vllm":
        with pytest.raises(Unsupported, match="engine"):
            manifest(kind, rollout)
        return
    documents = load(manifest(kind, rollout))
    assert len(documents) == (2 if kind == "lws" and split else 1)


def test_leader_worker_set_spans_servers() -> None:
    (document,) = load(manifest("lws", Rollout("big", deployment(tp=8, pp=2, moe_tp=8), 2)))
    template = document["spec"]["leaderWorkerTemplate"]
    assert document["apiVersion"] == "leaderworkerset.x-k8s.io/v1"
    assert document["spec"]["replicas"] == 2
    assert template["size"] == 2
    script = template["leaderTemplate"]["spec"]["containers"][0]["command"][2]
    assert "NODE_RANK=$LWS_WORKER_INDEX" in script
    assert '"$NODE_RANK"' in script
    parsed = parse(script)
    assert (parsed.layout.tp, parsed.layout.pp, parsed.nodes) == (8, 2, 2)
    worker = template["workerTemplate"]["spec"]["containers"][0]
    assert worker["command"][2].rstrip().endswith("--headless")
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_dynamo_components() -> None:
    one = deployment("sglang", attention_dp=16, moe_ep=16)
    (document,) = load(manifest("dynamo", Rollout("r1", one, 1, prefill=one, prefill_replicas=2)))
    parts = {c["name"]: c for c in document["spec"]["components"]}
    assert set(parts) == {"Frontend", "PrefillWorker", "DecodeWorker"}
    assert parts["PrefillWorker"]["replicas"] == 2
    assert parts["DecodeWorker"]["multinode"] == {"nodeCount": 2}
    (container,) = parts["DecodeWorker"]["podTemplate"]["spec"]["containers"]
    assert container["name"] == "main"
    assert "--disaggregation-mode decode" in container["command"][2]
    assert "--node-rank" not in container["command"][2]
    (document,) = load(manifest("dynamo", Rollout("t", deployment("trtllm", tp=4, moe_tp=4))))
    assert (
        "tensor_parallel_size: 4"
        in document["spec"]["components"][1]["podTemplate"]["spec"]["containers"][0]["command"][2]
    )


def test_llm_d_and_kserve_parallelism() -> None:
    one = deployment(attention_dp=16, moe_ep=16)
    (values,) = load(manifest("llm-d", Rollout("q", one, 2)))
    assert values["multinode"] is True
    assert values["decode"]["parallelism"] == {"tensor": 1, "data": 16, "dataLocal": 8, "workers": 2}
    assert values["modelArtifacts"]["uri"] == "hf://Qwen/Qwen3-30B-A3B"
    assert values["prefill"]["replicas"] == 0
    (document,) = load(manifest("kserve", Rollout("q", one, 2)))
    assert document["spec"]["parallelism"]["expert"] is True
    assert document["spec"]["worker"]["containers"]
    argument = document["spec"]["template"]["containers"][0]["env"][0]["value"]
    assert "--enable-expert-parallel" in argument
    assert "--data-parallel-size" not in argument


def test_the_ppu_has_its_resource_name() -> None:
    text = manifest("kserve", Rollout("q", deployment(maker="T-Head", tp=4, moe_tp=4)))
    assert "aliyun.com/ppu" in text


def test_refusals() -> None:
    with pytest.raises(TrivetError, match="name: 'Big One'"):
        Rollout("Big One", deployment())
    with pytest.raises(TrivetError, match="replicas: 0"):
        Rollout("q", deployment(), 0)
    with pytest.raises(TrivetError, match="come together"):
        Rollout("q", deployment(), prefill=deployment())
    with pytest.raises(TrivetError, match="resource: no known device plug-in of 'Nobody'"):
        manifest("lws", Rollout("q", deployment(maker="Nobody")))
    with pytest.raises(TrivetError, match="kind: unknown 'helm'"):
        manifest("helm", Rollout("q", deployment()))
    with pytest.raises(Unsupported, match="MPI"):
        manifest("lws", Rollout("q", deployment("trtllm", tp=8, pp=2, moe_tp=8)))
