"""A third party's package adds a chip, a model family, a placement policy and a router; nothing of Trivet is touched."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trivet.chip import catalogue
from trivet.cloud.cluster.nodes import uniform_cluster
from trivet.cloud.cluster.placement import schedule
from trivet.cloud.cluster.tasks import Task
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import step_table
from trivet.model.config import read
from trivet.model.parallel import Layout

CHIP = """
title: "Our chip"
maker: Us
family: ours
role: accelerator
dtypes: [fp32, bf16, fp16]
server: hgx-h100
aliases: [oc1]
facts:
  - source: "Our data sheet"
    status: published
    date: "2026-10"
    values:
      peak_flops_bf16: 500e12
      peak_flops_fp16: 500e12
      peak_flops_fp32: 30e12
      memory_bytes: 96e9
      memory_bandwidth_bytes_per_s: 3.2e12
      l2_bytes: 50e6
      compute_units: 100
      clock_hz: 1.7e9
      link_bandwidth_bytes_per_s: 400e9
      host_bandwidth_bytes_per_s: 63e9
      launch_s: 2.5e-6
      host_launch_s: 5e-6
      tdp_w: 500
      idle_w: 60
"""
CODE = '''
from pathlib import Path

chip = Path(__file__).parent / "our-chip.yaml"


def emptiest(node, task, context):
    return float(node.total_left)


def last_up(request, time_s, load):
    return int(len(load.up) - 1 - load.up[::-1].argmax())
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, as pip leaves it: a module and its metadata with entry points."""
    code = tmp_path / "third_party"
    code.mkdir()
    (code / "__init__.py").write_text(CODE)
    (code / "our-chip.yaml").write_text(CHIP)
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[trivet.chips]\nours = third_party:chip\n"
        "[trivet.placement]\nemptiest = third_party:emptiest\n"
        "[trivet.router]\nlast_up = third_party:last_up\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    catalogue._registered.cache_clear()
    yield tmp_path
    catalogue._registered.cache_clear()


def test_a_chip_from_a_package_serves_a_model(package: Path) -> None:
    ours = catalogue.chip("our-chip")
    assert catalogue.chip("OC1").name == ours.name
    table = step_table(Deployment(read("Qwen/Qwen3-8B"), ours, Layout(tp=1), EngineSettings()))
    assert table.kv_blocks > 0
    assert (np.diff(table.mixed_s) >= 0).all()


def test_a_model_from_a_folder(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
        "tie_word_embeddings": False, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    # By hand: 2 x 100 x 64 embeddings, and a layer of q, o (64 x 64), k, v (64 x 32), 3 x 64 x 128, two norms; a last norm.
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    assert read(str(tmp_path)).parameters == 2 * 100 * 64 + 2 * layer + 64


def test_a_placement_policy_from_a_package(package: Path) -> None:
    nodes = uniform_cluster(4, 8, "h100")
    tasks = [Task(f"t{i}", 1000, 1000, 1, 1000) for i in range(8)]
    placed = schedule(nodes, tasks, "emptiest", seed=1)
    assert sorted(np.bincount(placed.node, minlength=4)) == [2, 2, 2, 2]


def test_a_router_from_a_package(package: Path) -> None:
    from trivet.cloud.serving.fleet import Fleet, ReplicaKind, simulate
    from trivet.cloud.serving.traffic import Traffic

    table = step_table(Deployment(read("Qwen/Qwen3-8B"), catalogue.chip("h100"), Layout(tp=1), EngineSettings()))
    traffic = Traffic(np.linspace(0, 5, 20), np.full(20, 100), np.full(20, 10))
    result = simulate(traffic, Fleet((ReplicaKind(table, EngineSettings(), 3),), router="last_up"))
    assert set(result.replica) == {2}
