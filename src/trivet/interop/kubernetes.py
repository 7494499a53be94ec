"""A deployment as Kubernetes manifests: LeaderWorkerSet, Dynamo, llm-d, KServe. YAML text, nothing is applied.

| kind | API | engines |
|---|---|---|
| ``lws`` | LeaderWorkerSet ``leaderworkerset.x-k8s.io/v1`` | all; one set a role |
| ``dynamo`` | DynamoGraphDeployment ``nvidia.com/v1beta1`` | all |
| ``llm-d`` | values of the ``llm-d-modelservice`` chart | vLLM |
| ``kserve`` | LLMInferenceService ``serving.kserve.io/v1alpha1`` | vLLM |
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import Any

from trivet.cloud.deployment import Deployment
from trivet.errors import TrivetError, UnknownName, Unsupported
from trivet.interop.flags import Launch, launch

IMAGES = {
    "vllm": "vllm/vllm-openai:latest",
    "sglang": "lmsysorg/sglang:latest",
    "trtllm": "nvcr.io/nvidia/tensorrt-llm/release:latest",
}
# What the device plug-in of each maker calls a chip.
RESOURCES = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "t-head": "aliyun.com/ppu",
    "huawei": "huawei.com/Ascend910",
    "google": "google.com/tpu",
    "aws": "aws.amazon.com/neuron",
    "amazon": "aws.amazon.com/neuron",
    "intel": "habana.ai/gaudi",
}
PORT = 8000


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is to run.

    Args:
        name: of the Kubernetes object (lower case letters, digits, dashes).
        deployment: one replica; of the decode role where ``prefill`` is given.
        replicas: of it.
        chips_per_node: cards of one server; a larger replica spans several.
        prefill, prefill_replicas: the prefill role of disaggregated serving.
        model: name on the model hub; the architecture's name by default.
        image: container image; the engine's own by default.
        resource: extended resource of one card; by the chip's maker.
    """

    name: str
    deployment: Deployment
    replicas: int = 1
    chips_per_node: int = 8
    prefill: Deployment | None = None
    prefill_replicas: int = 0
    model: str = ""
    image: str = ""
    resource: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?", self.name):
            raise TrivetError(f"{self.name!r} cannot name an object", field="name", allowed="a-z, 0-9 and dashes")
        for field in ("replicas", "chips_per_node"):
            if getattr(self, field) < 1:
                raise TrivetError(f"{getattr(self, field)}", field=field, allowed="1 or more")
        if (self.prefill is None) != (self.prefill_replicas == 0):
            raise TrivetError("prefill and prefill_replicas come together", field="prefill")
        if self.prefill is not None and self.prefill.settings.engine != self.engine:
            raise TrivetError("prefill and decode run different engines", field="prefill")

    @property
    def engine(self) -> str:
        return self.deployment.settings.engine

    @property
    def model_name(self) -> str:
        return self.model or self.deployment.architecture.name

    def nodes(self, deployment: Deployment) -> int:
        return math.ceil(deployment.layout.chips / self.chips_per_node)

    def roles(self) -> list[tuple[str, Deployment, int]]:
        """(role, deployment, replicas); the role of aggregated serving is ""."""
        if self.prefill is None:
            return [("", self.deployment, self.replicas)]
        return [("prefill", self.prefill, self.prefill_replicas), ("decode", self.deployment, self.replicas)]


def manifest(kind: str, rollout: Rollout) -> str:
    """YAML of one ``kind`` of ``KINDS``. Raises Unsupported where the engine or layout has no place in it."""
    if kind not in KINDS:
        raise UnknownName(f"unknown {kind!r}", field="kind", allowed=KINDS)
    documents = KINDS[kind](rollout)
    return "---\n".join(_yaml(d) for d in documents)


def _yaml(document: dict[str, Any]) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.scalarstring import LiteralScalarString

    def literal(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: literal(v) for k, v in value.items()}
        if isinstance(value, list):
            return [literal(v) for v in value]
        return LiteralScalarString(value) if isinstance(value, str) and "\n" in value else value

    yaml, stream = YAML(), StringIO()
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.dump(literal(document), stream)
    return stream.getvalue()


def _resources(rollout: Rollout, deployment: Deployment) -> dict[str, Any]:
    cards = min(deployment.layout.chips, rollout.chips_per_node)
    maker = deployment.chip.maker.lower()
    name = rollout.resource or next((r for m, r in RESOURCES.items() if m in maker), "")
    if not name:
        raise TrivetError(
            f"no known device plug-in of {deployment.chip.maker!r}", field="resource", allowed="its resource name"
        )
    return {"limits": {name: str(cards)}, "requests": {name: str(cards)}}


def _start(rollout: Rollout, role: str, deployment: Deployment) -> Launch:
    return launch(deployment, model=rollout.model_name, role=role, nodes=rollout.nodes(deployment))


def _container(rollout: Rollout, deployment: Deployment, name: str, script: str, ready: bool) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": rollout.image or IMAGES[rollout.engine],
        "command": ["/bin/sh", "-c", script],
        "resources": _resources(rollout, deployment),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if ready:
        container["ports"] = [{"containerPort": PORT}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
    return container


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    return {"spec": {"containers": [container], "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]}}


def leader_worker_set(rollout: Rollout) -> list[dict[str, Any]]:
    """One LeaderWorkerSet a role; a group is a replica, its members are the servers that it spans."""
    documents = []
    for role, deployment, replicas in rollout.roles():
        start, size = _start(rollout, role, deployment), rollout.nodes(deployment)
        text = start.text
        if rollout.engine == "trtllm" and size > 1:
            raise Unsupported(
                "TensorRT-LLM over several servers is started by MPI, not by a LeaderWorkerSet", field="engine"
            )
        script = (
            f"export NODE_RANK=$LWS_WORKER_INDEX LEADER_ADDRESS=$LWS_LEADER_ADDRESS\n{text}\n"
            if size > 1
            else f"{text}\n"
        )
        template: dict[str, Any] = {
            "size": size,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": _pod(_container(rollout, deployment, "main", script, True)),
            "workerTemplate": _pod(_container(rollout, deployment, "main", script, False)),
        }
        if size > 1 and rollout.engine == "vllm":  # workers of vLLM serve no HTTP
            headless = script.rstrip("\n") + " --headless\n"
            template["workerTemplate"] = _pod(_container(rollout, deployment, "main", headless, False))
        documents.append(
            {
                "apiVersion": "leaderworkerset.x-k8s.io/v1",
                "kind": "LeaderWorkerSet",
                "metadata": {"name": f"{rollout.name}-{role}" if role else rollout.name},
                "spec": {"replicas": replicas, "startupPolicy": "LeaderCreated", "leaderWorkerTemplate": template},
            }
        )
    return documents


def dynamo(rollout: Rollout) -> list[dict[str, Any]]:
    """A DynamoGraphDeployment: a frontend that routes by KV, and one component a role."""
    engine = rollout.engine
    frontend = {"name": "main", "image": rollout.image or IMAGES[engine], "command": ["/bin/sh", "-c", _FRONTEND]}
    components: list[dict[str, Any]] = [
        {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": {"containers": [frontend]}}}
    ]
    for role, deployment, replicas in rollout.roles():
        start, nodes = _start(rollout, role, deployment), rollout.nodes(deployment)
        container = _container(rollout, deployment, "main", _dynamo_script(rollout, role, deployment, start), False)
        component: dict[str, Any] = {
            "name": {"": "Worker", "prefill": "PrefillWorker", "decode": "DecodeWorker"}[role],
            "type": role or "worker",
            "replicas": replicas,
        }
        if nodes > 1:
            component["multinode"] = {"nodeCount": nodes}
        components.append(component | {"podTemplate": _pod(container)})
    return [{
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": rollout.name},
        "spec": {"backendFramework": engine, "components": components},
    }]  # fmt: skip


_FRONTEND = "exec python3 -m dynamo.frontend --router-mode kv\n"
# The operator itself tells ranks and addresses; the engine's own flags for them do not belong here.
_NODE_FLAGS = (
    "--nnodes",
    "--node-rank",
    "--master-addr",
    "--dist-init-addr",
    "--kv-transfer-config",
    "--disaggregation-mode",
)


def _without_nodes(words: tuple[str, ...]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in _NODE_FLAGS:
            skip = True
        else:
            kept.append(word)
    return kept


def _dynamo_script(rollout: Rollout, role: str, deployment: Deployment, start: Launch) -> str:
    layout, s = deployment.layout, deployment.settings
    mode = ("--disaggregation-mode", role) if role else ()
    if rollout.engine == "vllm":
        words = ("python3", "-m", "dynamo.vllm", "--model", rollout.model_name, *_without_nodes(start.argv[3:]), *mode)
        return Launch(words).text + "\n"
    if rollout.engine == "sglang":
        return Launch(("python3", "-m", "dynamo.sglang", *_without_nodes(start.argv[3:]), *mode)).text + "\n"
    from trivet.interop.flags import CONFIG_FILE

    body = start.files[CONFIG_FILE]
    more = {
        "tensor_parallel_size": layout.tp * layout.attention_dp,
        "pipeline_parallel_size": layout.pp,
        "moe_expert_parallel_size": layout.moe_ep,
        "max_batch_size": s.max_num_seqs,
        "max_num_tokens": s.max_num_batched_tokens,
        "enable_chunked_prefill": s.chunked_prefill,
    } | ({"max_seq_len": s.max_model_len} if s.max_model_len else {})
    config = body + _yaml(more)
    words = (
        "python3",
        "-m",
        "dynamo.trtllm",
        "--model-path",
        rollout.model_name,
        "--extra-engine-args",
        CONFIG_FILE,
        *mode,
    )
    return Launch(words, {CONFIG_FILE: config}).text + "\n"


def _vllm_only(rollout: Rollout, kind: str) -> None:
    if rollout.engine != "vllm":
        raise Unsupported(f"{kind} runs vLLM, not {rollout.engine}", field="engine", allowed="vllm")


def _arguments(rollout: Rollout, role: str, deployment: Deployment) -> list[str]:
    """vLLM's flags without those that the chart or operator sets itself."""
    owned = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")
    words = launch(deployment, model=rollout.model_name, role=role).argv[3:]
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in owned:
            skip = True
        else:
            kept.append(word)
    return kept


def llm_d(rollout: Rollout) -> list[dict[str, Any]]:
    """Values of the llm-d-modelservice chart."""
    _vllm_only(rollout, "llm-d")
    size = rollout.deployment.architecture.parameters * 2 * 1.25 / 2**30
    values: dict[str, Any] = {
        "multinode": any(rollout.nodes(d) > 1 for _, d, _ in rollout.roles()),
        "modelArtifacts": {
            "name": rollout.model_name,
            "uri": f"hf://{rollout.model_name}",
            "size": f"{max(1, math.ceil(size))}Gi",
        },
        "accelerator": {"type": rollout.deployment.chip.maker.lower()},
    }
    for role, deployment, replicas in rollout.roles():
        layout, nodes = deployment.layout, rollout.nodes(deployment)
        container = {
            "name": "vllm",
            "image": rollout.image or IMAGES["vllm"],
            "modelCommand": "vllmServe",
            "args": _arguments(rollout, role, deployment),
            "resources": _resources(rollout, deployment),
            "mountModelVolume": True,
        }
        parallelism = {
            "tensor": layout.tp,
            "data": layout.attention_dp,
            "dataLocal": max(1, layout.attention_dp // nodes),
            "workers": nodes,
        }
        values[role or "decode"] = {"replicas": replicas, "parallelism": parallelism, "containers": [container]}
    if rollout.prefill is None:
        values["prefill"] = {"create": False, "replicas": 0}
    return [values]


def kserve(rollout: Rollout) -> list[dict[str, Any]]:
    """A KServe LLMInferenceService."""
    _vllm_only(rollout, "LLMInferenceService")
    spec: dict[str, Any] = {"model": {"uri": f"hf://{rollout.model_name}", "name": rollout.model_name}}
    for role, deployment, replicas in rollout.roles():
        layout, nodes = deployment.layout, rollout.nodes(deployment)
        container = {
            "name": "main",
            "image": rollout.image or IMAGES["vllm"],
            "env": [
                {"name": "VLLM_ADDITIONAL_ARGS", "value": Launch(tuple(_arguments(rollout, role, deployment))).text}
            ],
            "resources": _resources(rollout, deployment),
        }
        part: dict[str, Any] = {
            "replicas": replicas,
            "parallelism": {
                "tensor": layout.tp,
                "pipeline": layout.pp,
                "data": layout.attention_dp,
                "dataLocal": max(1, layout.attention_dp // nodes),
                "expert": layout.moe_ep > 1,
            },
            "template": {"containers": [container]},
        }
        if nodes > 1:
            part["worker"] = {"containers": [container]}
        if role == "prefill":
            spec["prefill"] = part
        else:
            spec |= part
    spec["router"] = {"scheduler": {}, "route": {}, "gateway": {}}
    return [{
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": rollout.name},
        "spec": spec,
    }]  # fmt: skip


KINDS: dict[str, Callable[[Rollout], list[dict[str, Any]]]] = {
    "lws": leader_worker_set, "dynamo": dynamo, "llm-d": llm_d, "kserve": kserve,
}  # fmt: skip
