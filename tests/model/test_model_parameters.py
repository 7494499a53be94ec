"""Parameter counts, exact to the last one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trivet.errors import TrivetError, Unsupported
from trivet.model.config import families, from_mapping, read
from trivet.model.fields import class_defaults

GOLDEN = json.loads((Path(__file__).parent / "golden_parameters.json").read_text())["models"]


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{i}-{c['config']['model_type']}" for i, c in enumerate(GOLDEN)])
def test_counts_of_the_classes(case: dict) -> None:
    """Defaults and variants of configuration classes, counted by building the model class on the meta device."""
    architecture = from_mapping(case["config"])
    assert architecture.parameters == case["parameters"]
    assert sum(architecture.components.values()) == case["parameters"]
    assert 0 < architecture.active_parameters <= case["parameters"]


def test_golden_covers_most_families() -> None:
    covered = {case["config"]["model_type"] for case in GOLDEN}
    assert len(covered) >= 130
    assert len(covered) / len(families()) > 0.85


def test_counts_of_published_checkpoints(shared_data: Path) -> None:
    folder = shared_data / "configs"
    known = json.loads((folder / "parameters.json").read_text())
    wrong = {
        name: read(folder / name).parameters - entry["parameters"]
        for name, entry in known.items()
        if read(folder / name).parameters != entry["parameters"]
    }
    assert len(known) == 80
    assert not wrong


def test_other_checkpoints_are_understood_or_refused_by_name(shared_data: Path) -> None:
    folder = shared_data / "configs"
    known = json.loads((folder / "parameters.json").read_text())
    others = [path for path in folder.glob("*_config.json") if path.name not in known]
    assert len(others) == 7
    refused = {}
    for path in others:
        try:
            assert read(path).parameters > 1e9
        except Unsupported as error:
            refused[path.name] = error.field
    assert refused == {"moonshotai--Kimi-K3_config.json": "text_config.attn_res_block_size"}


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen/Qwen3-235B-A22B", 235093634560, 22.2e9),
        ("deepseek-ai/DeepSeek-V3", 671026404352, 37.6e9),
        ("openai/gpt-oss-120b", 116829156672, 5.7e9),
        ("Qwen/Qwen3-30B-A3B", 30532122624, 3.35e9),
        ("mistralai/Mixtral-8x7B-v0.1", 46702792704, 12.9e9),
        ("meta-llama/Meta-Llama-3.1-8B", 8030261248, 8030261248),
    ],
)
def test_active_parameters(name: str, total: int, active: float) -> None:
    """Against the active sizes that the makers state (embedding and head included)."""
    architecture = read(name)
    assert architecture.parameters == total
    assert architecture.active_parameters == pytest.approx(active, rel=0.01)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "intermediate_size": 128,
}


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_size_is_named(field: str) -> None:
    with pytest.raises(TrivetError) as caught:
        from_mapping({name: value for name, value in LLAMA.items() if name != field})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hidden_size": "many"}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"attention_bias": "perhaps"}, "attention_bias"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ({"model_type": "no_such_family"}, "model_type"),
    ],
)
def test_a_bad_field_is_named(change: dict, field: str) -> None:
    with pytest.raises(TrivetError) as caught:
        from_mapping({**LLAMA, **change})
    assert caught.value.field == field


def test_a_structural_field_that_is_not_understood_is_refused() -> None:
    """Never a number that is wrong: a switch of the class that no reader looked at."""
    base = {"model_type": "gpt2"}
    assert from_mapping(base).parameters == 124439808
    with pytest.raises(Unsupported, match="add_cross_attention"):
        from_mapping({**base, "add_cross_attention": True})


def test_fields_of_no_consequence_are_ignored() -> None:
    assert from_mapping({**LLAMA, "rope_theta": 5e5, "my_note": "x"}).parameters == from_mapping(LLAMA).parameters


def test_an_embedding_model_has_no_head() -> None:
    whole = from_mapping({**LLAMA, "architectures": ["LlamaForCausalLM"]})
    bare = from_mapping({**LLAMA, "architectures": ["LlamaModel"]})
    assert whole.parameters - bare.parameters == 100 * 64


GARBAGE = st.sampled_from(
    [None, "x", -1, 0, [], {}, 1e300, True, float("nan"), float("inf"), 3.7, [1], {"a": 1}, "", 10**9, [None], 10**30]
)


@settings(max_examples=400, deadline=None)
@given(case=st.sampled_from(GOLDEN), data=st.data())
def test_a_damaged_config_is_read_or_refused_in_one_line(case: dict, data: st.DataObject) -> None:
    """Whatever one field holds: an architecture whose parts add up, or a TrivetError; nothing else."""
    config = json.loads(json.dumps(case["config"]))
    known = class_defaults().get(config["model_type"], {}).get("defaults", {})
    field = data.draw(
        st.sampled_from(sorted({*config, *known, "quantization_config", "architectures", "dtype"} - {"model_type"}))
    )
    config[field] = data.draw(GARBAGE)
    try:
        architecture = from_mapping(config)
    except TrivetError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert sum(architecture.components.values()) == architecture.parameters >= 0
    assert all(amount > 0 for amount in architecture.components.values())
