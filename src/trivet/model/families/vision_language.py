"""Vision-language and audio-language models: a language model of any family, a tower of any kind, and what joins them."""

from __future__ import annotations

from collections.abc import Callable

from trivet.errors import Unsupported
from trivet.model.blueprint import Block, Blueprint, attention, decoder, dense
from trivet.model.families.dense import qwen2
from trivet.model.families.mixtures import glm4_moe
from trivet.model.families.plain import Style, read_style
from trivet.model.families.towers import TOWERS, linear
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


def language_model(f: Fields, field: str, default: str, prefix: tuple[str, ...] = ()) -> tuple[Fields, Blueprint]:
    """Read the nested language model by its own ``model_type``; ``prefix``: fields that stand at the top in old configs."""
    from trivet.model.families import FAMILIES

    if f.raw.get(field) is None and any(name in f.raw for name in prefix):
        text = Fields(f.raw, default, f.path)
        text.read.update(("vision_config", "audio_config", "tie_word_embeddings"))
        f.read.update(f.raw)
        text.children = []
    else:
        text = f.sub(field, default)
    reader = FAMILIES.get(text.model_type)
    if reader is None:
        raise Unsupported(f"{text.model_type!r} is a family that is not understood", field=text.name("model_type"))
    return text, reader(text)


def tower(f: Fields, field: str, default: str, *, only: bool = False) -> tuple[Fields, int]:
    """Read a nested tower; ``only``: whatever type it names, it is the default one (old configs name others)."""
    child = f.sub(field, default)
    if only or (child.model_type not in TOWERS and child.model_type == f.model_type):
        child = Fields(child.raw, default, child.path)
        f.children[-1] = child
    if child.model_type not in TOWERS:
        raise Unsupported(
            f"{child.model_type!r} is a tower that is not understood", field=child.name("model_type"), allowed=TOWERS
        )
    return child, TOWERS[child.model_type](child)


def seeing(
    f: Fields, language: str, eye: str, prefix: tuple[str, ...] = (), *, only: bool = False
) -> tuple[Fields, Fields, Blueprint]:
    """A language model with one vision tower: the fields of both, and the model with the tower's parameters added."""
    text, blueprint = language_model(f, "text_config", language, prefix)
    vision, size = tower(f, "vision_config", eye, only=only)
    blueprint.add("vision", size)
    return text, vision, blueprint


def tie(f: Fields, text: Fields, blueprint: Blueprint, *, forwards: bool = False) -> None:
    """The outer config says whether head and table are one; some classes take over a ``true`` of the nested one."""
    outer = f.flag("tie_word_embeddings", False)
    inner = text.flag("tie_word_embeddings", False)
    blueprint.tied = outer or (forwards and inner)


def _two_linear(f: Fields, inputs: int, hidden: int) -> int:
    bias = f.flag("multimodal_projector_bias", True)
    return linear(inputs, hidden, bias) + linear(hidden, hidden, bias)


def llava(f: Fields) -> Blueprint:
    """LLaVA and its successors: one tower, two linear layers, perhaps a learned end of line."""
    text, vision, blueprint = seeing(f, "llama", "clip_vision_model")
    taken = f.get("vision_feature_layer", None)
    width = vision.positive("hidden_size") * (len(taken) if isinstance(taken, list) else 1)
    blueprint.add("projector", _two_linear(f, width, blueprint.hidden))
    if f.model_type != "llava":
        blueprint.add("projector", blueprint.hidden)
    f.ignore(
        "image_grid_pinpoints",
        "vision_aspect_ratio",
        "projector_hidden_act",
        "use_image_newline_parameter",
        "ignore_index",
    )
    tie(f, text, blueprint, forwards=f.model_type != "llava_next")
    return blueprint


_FLAT = ("hidden_size", "num_hidden_layers")


def qwen2_vl(f: Fields) -> Blueprint:
    kind = "qwen2_5_vl" if f.model_type.startswith("qwen2_5") else "qwen2_vl"
    text, vision, blueprint = seeing(f, f"{kind}_text", f"{kind}_vision", _FLAT, only=True)
    vision.finish()
    tie(f, text, blueprint, forwards=True)
    return blueprint


def mistral3(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "mistral", "pixtral")
    inner, bias = vision.positive("hidden_size"), f.flag("multimodal_projector_bias", False)
    taken = f.get("vision_feature_layer", None)
    wide = inner * (len(taken) if isinstance(taken, list) else 1)
    merge = inner * inner * f.positive("spatial_merge_size") ** 2
    hidden = blueprint.hidden
    blueprint.add("projector", inner + merge + linear(wide, hidden, bias) + linear(hidden, hidden, bias))
    f.ignore("projector_hidden_act")
    tie(f, text, blueprint)
    return blueprint


def gemma3(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "gemma3_text", "siglip_vision_model")
    width = vision.positive("hidden_size")
    blueprint.add("projector", width * blueprint.hidden + width)
    f.ignore("mm_tokens_per_image")
    tie(f, text, blueprint)
    return blueprint


def paligemma(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "gemma", "siglip_vision_model")
    vision.ignore("projection_dim")
    blueprint.add("projector", linear(vision.positive("hidden_size"), f.positive("projection_dim")))
    f.ignore("hidden_size", "vocab_size", "ignore_index")
    text.ignore("num_image_tokens")
    tie(f, text, blueprint)
    return blueprint


def internvl(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "qwen2", "internvl_vision")
    merged = vision.positive("hidden_size") * int(1 / f.get("downsample_ratio")) ** 2
    hidden = blueprint.hidden
    blueprint.add("projector", 2 * merged + linear(merged, hidden) + linear(hidden, hidden))
    f.ignore("projector_hidden_act")
    tie(f, text, blueprint)
    return blueprint


def idefics2(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "mistral", "idefics2_vision", only=True)
    perceiver, hidden = f.sub("perceiver_config", "idefics2_perceiver"), blueprint.hidden
    perceiver.model_type = "idefics2_perceiver"
    heads, dim, kv = (perceiver.positive(n) for n in ("resampler_n_heads", "resampler_head_dim", "num_key_value_heads"))
    width = text.positive("intermediate_size")
    joined = 2 * vision.positive("hidden_size") * width + width * hidden
    block = 3 * hidden + 2 * hidden * dim * (heads + kv) + 12 * hidden * hidden
    latents = perceiver.positive("resampler_n_latents") * hidden
    blueprint.add("projector", joined + latents + perceiver.positive("resampler_depth") * block + hidden)
    perceiver.read.update(perceiver.raw)
    tie(f, text, blueprint)
    return blueprint


def idefics3(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "llama", "smolvlm_vision" if f.model_type == "smolvlm" else "idefics3_vision")
    blueprint.add("projector", vision.positive("hidden_size") * f.positive("scale_factor") ** 2 * blueprint.hidden)
    text.ignore("pixel_shuffle_factor", "use_resampler", "perceiver_config", "neftune_noise_alpha", "qk_layer_norms")
    tie(f, text, blueprint)
    return blueprint


def downsampled(f: Fields) -> Blueprint:
    """Aya Vision, Command A Vision: patches merged by ``downsample_factor``, a gated projector."""
    text, vision, blueprint = seeing(f, "cohere2", "siglip_vision_model")
    merged, hidden = vision.positive("hidden_size") * f.positive("downsample_factor") ** 2, blueprint.hidden
    inner = f.optional("alignment_intermediate_size") or hidden
    norm = 2 * merged if f.model_type == "aya_vision" else 0
    blueprint.add("projector", norm + linear(merged, inner) + linear(inner // 2, hidden))
    tie(f, text, blueprint)
    return blueprint


def glm4v(f: Fields) -> Blueprint:
    kind = "glm4v_moe" if f.model_type == "glm4v_moe" else "glm4v"
    text, _, blueprint = seeing(f, f"{kind}_text", f"{kind}_vision")
    tie(f, text, blueprint, forwards=True)
    return blueprint


def mllama_text(f: Fields) -> Blueprint:
    """Llama 3.2's text model: some layers attend to the image (their products run once an image, not once a token)."""
    base, ff, hidden = attention(f), dense(f), f.positive("hidden_size")
    chosen = f.many("cross_attention_layers") or [3, 8, 13, 18, 23, 28, 33, 38]
    cross = hidden * base.head_dim * 2 * (base.heads + base.kv_heads) + 2 * base.head_dim + 2
    blueprint = decoder(f, mixer=base, feed_forward=ff)
    for index in chosen:
        if index < len(blueprint.blocks):
            blueprint.blocks[index] = Block(feed_forward=ff, norms=2 * hidden, other=cross)
    table = (blueprint.vocab + 8) * hidden
    blueprint.embedding = table
    blueprint.notes.append("no operators for the attention to the image")
    return blueprint


def mllama(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "mllama_text_model", "mllama_vision_model")
    blueprint.add("projector", linear(vision.positive("vision_output_dim"), blueprint.hidden))
    tie(f, text, blueprint)
    return blueprint


def lfm2_vl(f: Fields) -> Blueprint:
    text, vision, blueprint = seeing(f, "lfm2", "siglip2_vision_model")
    merged = vision.positive("hidden_size") * f.positive("downsample_factor") ** 2
    inner, bias = f.positive("projector_hidden_size"), f.flag("projector_bias")
    norm = 2 * merged if f.flag("projector_use_layernorm", True) else 0
    blueprint.add("projector", norm + linear(merged, inner, bias) + linear(inner, blueprint.hidden, bias))
    f.ignore(
        "projector_hidden_act",
        "do_image_splitting",
        "encoder_patch_size",
        "max_image_tokens",
        "max_num_patches",
        "max_pixels_tolerance",
        "max_tiles",
        "min_image_tokens",
        "min_tiles",
        "tile_size",
        "use_image_special_tokens",
        "use_thumbnail",
    )
    tie(f, text, blueprint)
    return blueprint


def qwen2_audio(f: Fields) -> Blueprint:
    text, blueprint = language_model(f, "text_config", "qwen2")
    audio, size = tower(f, "audio_config", "qwen2_audio_encoder")
    blueprint.add("audio", size)
    blueprint.add("projector", linear(audio.positive("d_model"), blueprint.hidden))
    f.ignore("ignore_index")
    tie(f, text, blueprint)
    return blueprint


def voxtral(f: Fields) -> Blueprint:
    text, blueprint = language_model(f, "text_config", "llama")
    audio, size = tower(f, "audio_config", "voxtral_encoder")
    blueprint.add("audio", size)
    hidden = blueprint.hidden
    blueprint.add("projector", audio.positive("intermediate_size") * hidden + hidden * hidden)
    f.ignore("projector_hidden_act", "hidden_size", "vocab_size")
    tie(f, text, blueprint)
    return blueprint


FAMILIES: dict[str, Reader] = {
    "llava": llava,
    "llava_next": llava,
    "llava_onevision": llava,
    "llava_next_video": llava,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen2_vl_text": qwen2,
    "qwen2_5_vl_text": qwen2,
    "mistral3": mistral3,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "internvl": internvl,
    "idefics2": idefics2,
    "idefics3": idefics3,
    "smolvlm": idefics3,
    "aya_vision": downsampled,
    "cohere2_vision": downsampled,
    "glm4v": glm4v,
    "glm46v": glm4v,
    "glm4v_moe": glm4v,
    "glm4v_text": lambda f: read_style(f, Style(True, norms=4)),
    "glm4v_moe_text": glm4_moe,
    "mllama": mllama,
    "mllama_text_model": mllama_text,
    "lfm2_vl": lfm2_vl,
    "qwen2_audio": qwen2_audio,
    "voxtral": voxtral,
}
