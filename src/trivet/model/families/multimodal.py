"""Composite models: a language model of another family with vision or audio towers."""

from __future__ import annotations

from collections.abc import Callable

from trivet.errors import Unsupported
from trivet.model.blueprint import Blueprint
from trivet.model.families import experts, hybrid, latent, special, towers
from trivet.model.families.dense import qwen3
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


def text_only(name: str, reader: Reader) -> Reader:
    """A composite config of which the text model alone is counted, as its published count is."""

    def read(f: Fields) -> Blueprint:
        f.ignore("vision_config", "audio_config")
        text = f.sub("text_config", name)
        if f.given("tie_word_embeddings"):
            f.get("tie_word_embeddings")
        blueprint = reader(text)
        blueprint.notes.append("the text model alone is counted")
        return blueprint

    return read


def _tied(f: Fields, blueprint: Blueprint) -> None:
    """The outer config's ``tie_word_embeddings`` decides for the whole model."""
    blueprint.tied = f.flag("tie_word_embeddings", blueprint.tied)


def qwen3_vl(f: Fields) -> Blueprint:
    blueprint = qwen3(f.sub("text_config", "qwen3_vl_text"))
    blueprint.add("vision", towers.qwen3_vl(f.sub("vision_config", "qwen3_vl_vision")))
    _tied(f, blueprint)
    return blueprint


def qwen3_vl_moe(f: Fields) -> Blueprint:
    blueprint = experts.qwen3_moe(f.sub("text_config", "qwen3_vl_moe_text"))
    blueprint.add("vision", towers.qwen3_vl(f.sub("vision_config", "qwen3_vl_moe_vision")))
    _tied(f, blueprint)
    return blueprint


def kimi_k25(f: Fields) -> Blueprint:
    blueprint = latent.deepseek_v3(f.sub("text_config", "deepseek_v3"))
    vision = f.sub("vision_config", "kimi_k25_vision")
    blueprint.add("vision", towers.kimi_vision(vision))
    merge = vision.many("merge_kernel_size")
    inner = (
        (vision.positive("vt_hidden_size") if "vt_hidden_size" in vision.raw else vision.positive("hidden_size"))
        * merge[0]
        * merge[1]
    )
    width = f.optional("projection_hidden_size") or vision.positive("mm_hidden_size")
    blueprint.add("projector", 2 * width + towers.linear(inner, inner) + towers.linear(inner, blueprint.hidden))
    _tied(f, blueprint)
    f.ignore("use_unified_vision_chunk", "video_placeholder", "ignore_index")
    return blueprint


def gemma4(f: Fields) -> Blueprint:
    blueprint = special.gemma4_text(f.sub("text_config", "gemma4_text"))
    for part, name, tower in (
        ("vision", "gemma4_vision", towers.gemma4_vision),
        ("audio", "gemma4_audio", towers.gemma4_audio),
    ):
        if f.get(f"{part}_config", None) is None:
            continue
        child = f.sub(f"{part}_config", name)
        blueprint.add(part, tower(child))
        width = child.positive("output_proj_dims") if part == "audio" else child.positive("hidden_size")
        blueprint.add("projector", width * blueprint.hidden)
    _tied(f, blueprint)
    return blueprint


def kimi_k3(f: Fields) -> Blueprint:
    raise Unsupported(
        "residuals that attend over blocks (attn_res_block_size) and the gated latent experts of Kimi K3 are not documented well "
        "enough to count",
        field=f.name("text_config.attn_res_block_size"),
    )


FAMILIES: dict[str, Reader] = {
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "kimi_k25": kimi_k25,
    "gemma4": gemma4,
    "kimi_k3": kimi_k3,
    "qwen3_5": text_only("qwen3_5_text", hybrid.qwen3_5_text),
    "qwen3_5_moe": text_only("qwen3_5_moe_text", hybrid.qwen3_5_moe_text),
    "qwen3_vl_text": qwen3,
    "qwen3_vl_moe_text": experts.qwen3_moe,
    "gemma4_text": special.gemma4_text,
    "gemma4_unified_text": special.gemma4_text,
}
