"""Names, quantisation labels, files and third-party families."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from trivet.errors import TrivetError, UnknownName
from trivet.model import catalogue, config
from trivet.model.architecture import Architecture, FeedForward, Mixer
from trivet.model.blueprint import Block, Blueprint
from trivet.model.fields import Fields

# Totals as the checkpoints' own safetensors indexes state them.
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6738415616,
    "meta-llama/Llama-2-13b-hf": 13015864320,
    "meta-llama/Llama-2-70b-hf": 68976648192,
    "meta-llama/Meta-Llama-3-8B": 8030261248,
    "meta-llama/Meta-Llama-3-70B": 70553706496,
    "meta-llama/Llama-3.2-1B": 1235814400,
    "meta-llama/Llama-3.2-3B": 3212749824,
    "meta-llama/Llama-3.3-70B-Instruct": 70553706496,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70553706496,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8030261248,
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": 32763876352,
    "Qwen/Qwen2.5-0.5B": 494032768,
    "Qwen/Qwen2.5-1.5B": 1543714304,
    "Qwen/Qwen2.5-3B": 3085938688,
    "Qwen/Qwen2.5-7B": 7615616512,
    "Qwen/Qwen2.5-14B": 14770033664,
    "Qwen/Qwen2.5-32B": 32763876352,
    "Qwen/Qwen2.5-72B": 72706203648,
    "Qwen/QwQ-32B": 32763876352,
    "Qwen/Qwen3-4B": 4022468096,
    "Qwen/Qwen3-14B": 14768307200,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": 79674391296,
    "mistralai/Mistral-7B-v0.1": 7241732096,
    "mistralai/Mistral-7B-v0.3": 7248023552,
    "mistralai/Mistral-Nemo-Base-2407": 12247782400,
    "mistralai/Mistral-Small-24B-Base-2501": 23572403200,
    "google/gemma-2-2b": 2614341888,
    "google/gemma-2-9b": 9241705984,
    "google/gemma-2-27b": 27227128320,
    "google/gemma-3-4b-it": 4300079472,
    "google/gemma-3-12b-it": 12187325040,
    "google/gemma-3-27b-it": 27432406640,
    "microsoft/phi-4": 14659507200,
    "microsoft/Phi-3-mini-4k-instruct": 3821079552,
    "deepseek-ai/DeepSeek-V2-Lite": 15706484224,
    "deepseek-ai/DeepSeek-V2": 235741434880,
    "mosaicml/mpt-7b": 6649286656,
    "tiiuae/falcon-7b": 6921720704,
    "openai-community/gpt2": 124439808,
    "openai-community/gpt2-xl": 1557611200,
    "facebook/opt-6.7b": 6658473984,
    "facebook/opt-13b": 12853473280,
    "zai-org/GLM-4.5-Air": 106852245504,
    "BAAI/bge-m3": 567754752,
    "google-bert/bert-base-uncased": 109514298,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_of_checkpoints(name: str) -> None:
    assert config.read(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-32B"),
        ("qwen3-32b", "Qwen/Qwen3-32B"),
        ("QWEN/QWEN3-32B-FP8", "Qwen/Qwen3-32B-FP8"),
        ("Qwen/Qwen3-235B-A22B-Instruct-2507", "Qwen/Qwen3-235B-A22B"),
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-ai/DeepSeek-R1"),
        ("zhipuai/GLM-5", "zai-org/GLM-5"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B"),
        ("Llama-3.1-405B", "meta-llama/Meta-Llama-3.1-405B"),
        ("mixtral-8x7b-instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("openai/gpt-oss-120b", "openai/gpt-oss-120b"),
        ("someone-else/gpt-oss-20b", "openai/gpt-oss-20b"),
        ("meta-llama/Llama-3.3-70B-Instruct-FP8", "meta-llama/Llama-3.3-70B-Instruct"),
        ("Qwen2.5-72B-Instruct-AWQ", "Qwen/Qwen2.5-72B"),
        ("qwen3-14b", "Qwen/Qwen3-14B"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-8B"),
    ],
)
def test_names(written: str, meant: str) -> None:
    found = catalogue.find(written)
    assert found is not None
    assert found[0] == meant


def test_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(UnknownName, match="Qwen3-32B"):
        config.read("Qwen3-33B")


def test_every_name_of_the_catalogue_is_read_or_refused() -> None:
    refused = []
    for name in catalogue.names():
        try:
            architecture = config.read(name)
        except TrivetError:
            refused.append(name)
            continue
        assert architecture.name == name
        assert sum(architecture.components.values()) == architecture.parameters
        assert sum(layer.count for layer in architecture.layers) == len(architecture.stack)
    assert len(catalogue.names()) >= 87
    assert refused == ["moonshotai/Kimi-K3"]


def test_the_catalogue_is_small() -> None:
    folder = Path(catalogue.__file__).parents[1] / "data" / "models"
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) < 1_000_000


@pytest.mark.parametrize(
    ("name", "attention", "experts", "dense", "head", "cache"),
    [
        ("Qwen/Qwen3-32B", "bf16", "bf16", "bf16", "bf16", "bf16"),
        ("Qwen/Qwen3-32B-FP8", "fp8_block", "fp8_block", "fp8_block", "bf16", "bf16"),
        ("Qwen/Qwen3-32B-FP8-Static-PerTensor", "fp8", "fp8", "fp8", "bf16", "fp8"),
        ("deepseek-ai/DeepSeek-R1", "fp8_block", "fp8_block", "fp8_block", "bf16", "bf16"),
        ("openai/gpt-oss-120b", "bf16", "mxfp4", "mxfp4", "bf16", "bf16"),
        ("moonshotai/Kimi-K2.5", "bf16", "int4_wo", "bf16", "bf16", "bf16"),
        ("nvidia/Kimi-K2.5-NVFP4", "bf16", "nvfp4", "nvfp4", "bf16", "fp8"),
        ("nvidia/MiniMax-M2.5-NVFP4", "bf16", "nvfp4", "nvfp4", "bf16", "fp8"),
        ("nvidia/GLM-5.2-NVFP4", "bf16", "nvfp4", "bf16", "bf16", "fp8"),
        ("deepseek-ai/DeepSeek-V4-Flash", "fp8_block", "mxfp4", "fp8_block", "bf16", "bf16"),
        ("nvidia/DeepSeek-V4-Flash-NVFP4", "fp8_block", "nvfp4", "fp8_block", "bf16", "bf16"),
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "fp8", "nvfp4", "nvfp4", "nvfp4", "bf16"),
        ("nvidia/Qwen3-235B-A22B-NVFP4", "nvfp4", "nvfp4", "nvfp4", "bf16", "fp8"),
        ("nvidia/DeepSeek-V3.1-NVFP4", "bf16", "nvfp4", "nvfp4", "bf16", "fp8"),
        ("nvidia/Llama-3.1-70B-Instruct-FP8", "fp8", "fp8", "fp8", "bf16", "fp8"),
    ],
)  # fmt: skip
def test_what_checkpoints_store(name: str, attention: str, experts: str, dense: str, head: str, cache: str) -> None:
    stored = config.read(name).quantisation
    assert (stored.attention, stored.experts, stored.dense, stored.head, stored.kv_cache) == (
        attention, experts, dense, head, cache,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("quantisation", "label"),
    [
        ({"quant_method": "awq", "bits": 4}, "int4_wo"),
        ({"quant_method": "gptq", "bits": 8}, "int8_wo"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "int4_wo"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {
            "targets": ["Linear"], "weights": {"num_bits": 8, "type": "int"}, "input_activations": {"num_bits": 8}}}}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
    ],
)  # fmt: skip
def test_dialects_of_quantisation(quantisation: dict, label: str) -> None:
    architecture = config.from_mapping({"model_type": "llama", "quantization_config": quantisation})
    assert architecture.quantisation.dense == label
    assert architecture.quantisation.head == "bf16"


def test_an_unknown_quantisation_is_refused() -> None:
    with pytest.raises(TrivetError, match="quantization_config"):
        config.from_mapping({"model_type": "llama", "quantization_config": {"quant_method": "magic"}})


def test_files_and_folders(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    by_folder, by_file = config.read(folder), Architecture.from_config(str(folder / "config.json"))
    assert by_folder.parameters == by_file.parameters == 124439808
    assert by_folder.name == by_file.name == "my-model"


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "{}", '{"model_type": 3}', "\x00"])
def test_broken_files_are_one_clear_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(TrivetError) as caught:
        config.read(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrivetError, match=r"absent\.json"):
        config.read(tmp_path / "absent.json")


def test_a_family_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package adds a family through the entry point group ``trivet.models``."""
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda group: [EntryPoint("tiny", f"{__name__}:tiny_family", group)] if group == "trivet.models" else [],
    )
    config.families.cache_clear()
    try:
        architecture = config.from_mapping(
            {"model_type": "tiny", "hidden_size": 8, "vocab_size": 10, "num_hidden_layers": 3}
        )
    finally:
        config.families.cache_clear()
    assert architecture.num_layers == 3
    assert architecture.parameters == 10 * 8 + 3 * (4 * 8 * 8 + 3 * 8 * 16 + 16)


def tiny_family(f: Fields) -> Blueprint:
    hidden = f.positive("hidden_size")
    block = Block(Mixer("attention", 2, 2, hidden // 2), FeedForward("dense", 2 * hidden), norms=2 * hidden)
    return Blueprint(hidden, f.positive("vocab_size"), [block] * f.positive("num_hidden_layers"), tied=True)
