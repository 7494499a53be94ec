"""Launch commands: exact names, and a round trip through every engine."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.chip.spec import Chip
from trivet.cloud.deployment import Deployment, EngineSettings
from trivet.errors import TrivetError, UnknownName, Unsupported
from trivet.interop.flags import launch, launch_command
from trivet.interop.flags_parse import parse
from trivet.model.architecture import Architecture, FeedForward, Layer, Mixer, Quantisation
from trivet.model.parallel import Layout

CHIP = Chip("h100", "H100", "NVIDIA", "hopper", "accelerator")


def architecture(moe: bool, mtp: int = 0) -> Architecture:
    feed = FeedForward("moe", experts=128, top_k=8, expert_intermediate=768) if moe else FeedForward("dense", 4096)
    layer = Layer(Mixer("attention", 32, 8, 128), feed, 4)
    name = "org/moe" if moe else "org/dense"
    return Architecture(name, "x", 4096, 1000, (layer,), False, 4096, Quantisation(), 1, 1, mtp_layers=mtp)


def deployment(
    engine: str = "vllm", *, moe: bool = True, mtp: int = 0, layout: Layout | None = None, **more: object
) -> Deployment:
    chosen = EngineSettings(engine=engine, **more)  # type: ignore[arg-type]
    return Deployment(architecture(moe, mtp), CHIP, layout or Layout(), chosen)


def test_vllm_names() -> None:
    layout = Layout(tp=2, pp=2, attention_dp=4, moe_ep=8)
    words = shlex.split(
        launch_command(deployment(layout=layout, mtp=1, kv_dtype="fp8", max_model_len=9000, speculative_tokens=3))
    )
    assert words[:3] == ["vllm", "serve", "org/moe"]
    pairs = dict(pairwise(words))
    assert pairs["--tensor-parallel-size"] == "2"
    assert pairs["--pipeline-parallel-size"] == "2"
    assert pairs["--data-parallel-size"] == "4"
    assert pairs["--max-model-len"] == "9000"
    assert pairs["--kv-cache-dtype"] == "fp8"
    assert pairs["--speculative-config"] == '{"method": "mtp", "num_speculative_tokens": 3}'
    assert "--enable-expert-parallel" in words


def test_sglang_counts_the_whole_server() -> None:
    layout = Layout(tp=2, attention_dp=4, moe_tp=2, moe_ep=4)
    words = shlex.split(
        launch_command(deployment("sglang", layout=layout, max_num_seqs=64, max_num_batched_tokens=2048))
    )
    pairs = dict(pairwise(words))
    assert pairs["--tp-size"] == "8"
    assert pairs["--dp-size"] == "4"
    assert pairs["--ep-size"] == "4"
    assert pairs["--max-running-requests"] == "256"
    assert pairs["--chunked-prefill-size"] == "8192"


def test_trtllm_writes_its_config() -> None:
    start = launch(
        deployment("trtllm", layout=Layout(attention_dp=8, moe_ep=8), kv_dtype="fp8", num_kv_blocks=10, block_size=32)
    )
    (body,) = start.files.values()
    assert "enable_attention_dp: true" in body
    assert "dtype: fp8" in body
    assert "max_tokens: 320" in body
    assert start.argv[:4] == ("trtllm-serve", "org/moe", "--tp_size", "8")


def test_disaggregated_and_many_nodes() -> None:
    assert "--disaggregation-mode prefill" in launch_command(deployment("sglang"), role="prefill")
    assert "kv_producer" in launch_command(deployment(), role="prefill")
    assert '--nnodes 2 --node-rank "$NODE_RANK"' in launch_command(deployment(), nodes=2)
    assert parse(launch_command(deployment("sglang"), nodes=2)).nodes == 2
    assert launch_command(deployment("trtllm"), nodes=2, role="decode").count("srun") == 1


def test_refusals() -> None:
    with pytest.raises(Unsupported, match="layout: vLLM splits experts"):
        launch(deployment(layout=Layout(tp=8, moe_tp=2, moe_ep=4)))
    with pytest.raises(Unsupported, match="layout: moe_tp 2 x moe_ep 2 is not the 8 chips"):
        launch(deployment("sglang", layout=Layout(tp=8, moe_tp=2, moe_ep=2)))
    with pytest.raises(Unsupported, match="over all chips or over none"):
        launch(deployment("trtllm", layout=Layout(tp=2, attention_dp=2, moe_ep=4)))
    with pytest.raises(UnknownName, match="engine"):
        launch(deployment("llama.cpp"))
    with pytest.raises(UnknownName, match="role"):
        launch(deployment(), role="both")
    with pytest.raises(UnknownName, match="command"):
        parse("ollama serve")
    with pytest.raises(TrivetError, match="--max-num-seqs: 'many' is not a number"):
        parse("vllm serve m --max-num-seqs many")
    with pytest.raises(TrivetError, match="not JSON"):
        parse("vllm serve m --speculative-config '{'")
    with pytest.raises(TrivetError, match="not a shell command"):
        parse("vllm serve 'm")
    with pytest.raises(TrivetError, match="does not divide"):
        parse("python -m sglang.launch_server --model-path m --tp-size 6 --ep-size 4")


def test_reads_what_people_write() -> None:
    got = parse(
        "CUDA_VISIBLE_DEVICES=0,1 vllm serve Qwen/Qwen3-32B -tp 2 --max_num_seqs=64 "
        "--no-enable-prefix-caching --uvloop x"
    )
    assert got.model == "Qwen/Qwen3-32B"
    assert got.layout.tp == 2
    assert got.settings.max_num_seqs == 64
    assert not got.settings.prefix_caching
    assert got.ignored == ("--uvloop",)
    got = parse("python3 -m sglang.launch_server --model m --tp 8 --trust-remote-code", moe=False)
    assert got.layout == Layout(tp=8)
    assert got.ignored == ("--trust-remote-code",)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Deployment, str, bool]:
    engine = draw(st.sampled_from(["vllm", "sglang", "trtllm"]))
    moe = draw(st.booleans())
    tp, ranks = draw(st.sampled_from([(1, 1), (8, 1), (1, 8), (2, 4)]))
    if engine == "trtllm" and ranks > 1:
        tp = 1
    stage = tp * ranks
    ep = (
        draw(st.sampled_from([1, stage] if engine == "vllm" else [d for d in (1, 2, 4, 8) if stage % d == 0]))
        if moe
        else 1
    )
    layout = Layout(
        tp=tp,
        pp=draw(st.sampled_from([1, 4])),
        attention_dp=ranks,
        moe_ep=ep,
        moe_tp=stage // ep if moe else 1,
    )
    chunked = draw(st.booleans())
    chosen = EngineSettings(
        engine=engine,
        max_num_seqs=draw(st.integers(1, 4096)),
        max_num_batched_tokens=draw(st.integers(1, 65536)),
        max_model_len=draw(st.sampled_from([0, 8192])),
        memory_utilization=draw(st.sampled_from([0.8, 0.95])),
        block_size=draw(st.sampled_from([16, 32, 64])),
        num_kv_blocks=draw(st.sampled_from([0, 2588])),
        kv_dtype=draw(st.sampled_from(["", "fp8"])),
        weight_dtype="" if engine == "trtllm" else draw(st.sampled_from(["", "fp8"])),
        prefix_caching=draw(st.booleans()),
        chunked_prefill=chunked,
        speculative_tokens=draw(st.integers(0, 4)),
    )
    return (
        Deployment(architecture(moe, draw(st.integers(0, 1))), CHIP, layout, chosen),
        draw(st.sampled_from(["", "prefill", "decode"])),
        moe,
    )


@settings(max_examples=300, deadline=None)
@given(cases())
def test_round_trip(case: tuple[Deployment, str, bool]) -> None:
    original, role, moe = case
    got = parse(launch_command(original, role=role), moe=moe)
    assert got.model == original.architecture.name
    assert got.layout == original.layout
    assert got.settings == replace(original.settings, version="", acceptance=0.0)
    assert got.ignored == ()
    if original.settings.engine != "trtllm":  # there the role is told by the orchestrator
        assert got.role == role
