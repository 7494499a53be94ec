"""What engines cost beyond their kernels on chips of other makers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trivet.chip import catalogue as chips
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.cloud.engine import compile_components
from trivet.cloud.engine.components import KINDS
from trivet.cloud.engine.ported import ATOM, QUICK, behind, launched_s, quick_reduced
from trivet.model import config as models
from trivet.model.parallel import Layout
from trivet.operators import Transfer

ROUTED, DENSE = "openai/gpt-oss-120b", "meta-llama/Meta-Llama-3.1-8B"


def deployment(chip: str, engine: str = "sglang", model: str = ROUTED, version: str = "", all_reduce: str = "") -> Deployment:
    settings = EngineSettings(engine=engine, version=version, all_reduce=all_reduce)
    return Deployment(models.read(model), chips.chip(chip), Layout(tp=2, moe_tp=2, moe_ep=1), settings)


def test_engines_run_behind_amds_kernels_and_atom_does_not() -> None:
    assert behind(deployment("mi300x")) > behind(deployment("mi355x")) > behind(deployment("mi355x", "vllm")) > 1.0
    assert behind(deployment("mi300x", "vllm", DENSE)) == 1.0
    assert behind(deployment("mi300x", "vllm", version=ATOM)) == 1.0
    assert behind(deployment("h200")) == 1.0


def test_decode_slows_but_prompts_and_collectives_do_not() -> None:
    slow, own = (compile_components(deployment("mi300x", "vllm", version=version)) for version in ("", ATOM))
    factor, sent = behind(deployment("mi300x", "vllm")), KINDS.index("all_reduce")
    others = np.arange(len(KINDS)) != sent
    np.testing.assert_allclose(slow.decode[others], factor * own.decode[others])
    np.testing.assert_allclose(slow.decode_attention, factor * own.decode_attention)
    np.testing.assert_allclose(slow.decode[sent], own.decode[sent])
    np.testing.assert_allclose(slow.mixed, own.mixed)


def test_ascend_launches_every_layer() -> None:
    small = deployment("ascend-910b", "vllm", DENSE)
    assert launched_s(small) == pytest.approx(0.27e-3 * small.architecture.num_layers)
    assert launched_s(deployment("mi300x", "vllm", DENSE)) == 0.0


def test_quick_reduce_spares_large_messages_alone() -> None:
    sizes = np.array([2.0**16, 2.0**26])
    own = np.array([10e-6, 1400e-6])
    found = quick_reduced(Transfer("all-reduce", "all_reduce", sizes, 2, "tp"), own)
    assert found[0] == own[0]
    assert found[1] == pytest.approx(460e-6, rel=0.05)  # aiter pull 801: 64 MiB by two MI300X in INT4
    assert quick_reduced(Transfer("all-reduce", "all_reduce", sizes, 3, "tp"), own) is own
    assert quick_reduced(Transfer("all-gather", "all_gather", sizes, 2, "tp"), own) is own


def test_quick_reduce_shortens_prompts() -> None:
    usual = compile_components(deployment("mi300x", "vllm"))
    quick = compile_components(replace(deployment("mi300x", "vllm"), settings=EngineSettings(all_reduce=QUICK)))
    sent = KINDS.index("all_reduce")
    assert quick.mixed[sent, -1] < 0.5 * usual.mixed[sent, -1]
    np.testing.assert_allclose(quick.mixed[sent, 0], usual.mixed[sent, 0])


@pytest.mark.parametrize(("version", "slower"), [("0.5.5.post3", -0.25), ("0.5.7", 0.30), ("0.5.9", 0.0), ("", 0.0)])
def test_block_scaled_products_by_sglangs_version(version: str, slower: float) -> None:
    usual, found = (deployment("mi325x", model="deepseek-ai/DeepSeek-R1", version=v) for v in ("", version))
    assert behind(found) / behind(usual) == pytest.approx(np.exp(slower))
    assert behind(deployment("mi355x", model="deepseek-ai/DeepSeek-R1", version=version)) == behind(
        deployment("mi355x", model="deepseek-ai/DeepSeek-R1")
    )
    assert behind(deployment("mi325x", version=version)) == behind(deployment("mi325x"))
