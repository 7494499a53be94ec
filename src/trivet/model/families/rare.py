"""Models with parts that no other family has: RWKV, Zamba, Zaya, Inkling, Phi-4 multimodal, BLIP-2."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from trivet.errors import TrivetError
from trivet.model.architecture import FeedForward, Mixer
from trivet.model.blueprint import NONE, Block, Blueprint, attention, decoder, layer_types, stack
from trivet.model.families.experts import moe
from trivet.model.families.plain import Style, read_style
from trivet.model.families.towers import area, encoder_block, linear
from trivet.model.families.vision_language import language_model
from trivet.model.fields import Fields

Reader = Callable[[Fields], Blueprint]


def zamba(f: Fields) -> Blueprint:
    """Zamba: headed Mamba layers; in hybrid ones first a transformer over [hidden, embedding] with one set of weights."""
    hidden, layers, heads = (
        f.positive("hidden_size"),
        f.positive("num_hidden_layers"),
        f.positive("num_attention_heads"),
    )
    kinds = [str(k) for k in f.many("layers_block_type") or f.many("layer_types")]
    period, offset = f.positive("attn_layer_period"), f.whole("attn_layer_offset")
    if not kinds:
        kinds = ["mamba", "mamba", "hybrid"] + [
            "hybrid" if i % period == offset else "mamba" for i in range(layers - 3)
        ]
    width, dim = (
        f.optional("attention_hidden_size") or 2 * hidden,
        f.optional("attention_head_dim") or 2 * hidden // heads,
    )
    kv, ssm_heads = f.optional("num_key_value_heads") or heads, f.positive("n_mamba_heads")
    given = f.get("mamba_dt_rank")
    rank = math.ceil(hidden / 16) if given == "auto" else int(given)
    inner, state, conv = int(f.get("mamba_expand") * hidden), f.positive("mamba_d_state"), f.positive("mamba_d_conv")
    if inner % ssm_heads:
        raise TrivetError(f"{inner} channels do not divide into {ssm_heads} heads", field=f.name("n_mamba_heads"))
    scan = Mixer("scan", scan_kind="mamba1", value_heads=inner, key_dim=state, value_dim=rank, conv_width=conv)
    bias = (2 * inner + hidden if f.flag("mamba_proj_bias") else 0) - (0 if f.flag("mamba_conv_bias") else inner)
    # Each head has step and state products of its own channels only.
    described = inner * (rank + 2 * state) + inner * rank
    held = inner * (rank + 2 * state) + ssm_heads * (inner // ssm_heads) * rank
    full = Mixer("attention", heads, kv, dim)
    wider = (width - hidden) * dim * (heads + 2 * kv)
    f.ignore("hidden_mamba_act")
    blocks, used = [], False
    for kind in kinds[:layers]:
        if kind == "hybrid":
            ff = FeedForward("dense", f.positive("intermediate_size"))
            blocks.append(Block(full, ff, width + hidden, wider, other=hidden * hidden, shared=used))
            used = True
        blocks.append(Block(scan, NONE, hidden, held - described + bias))
    return stack(
        f, hidden, blocks, tied=True, notes=["operators of the shared attention read one width of hidden, not two"]
    )


def zaya(f: Fields) -> Blueprint:
    """Zaya: compressed convolutional attention, a router that is a small network, learned scales on the residuals."""
    hidden, bias, router = f.positive("hidden_size"), f.flag("attention_bias"), f.positive("router_hidden_size")
    base = attention(f)
    layers, experts = f.positive("num_hidden_layers"), f.positive("num_experts")
    kinds = layer_types(f, layers, lambda i: "hybrid")
    window = f.optional("sliding_window")
    q, kv, dim = base.heads * base.head_dim, base.kv_heads * base.head_dim, base.head_dim
    channels = q + kv
    convolutions = channels * (f.positive("cca_time0") + 1) + channels * (dim * f.positive("cca_time1") + 1)
    f.expect("attention_bias", False)
    f.expect("lm_head_bias", False)
    gate = linear(hidden, router) + router + 2 * linear(router, router) + router * (experts + 1)
    sparse = moe(f, "num_experts", "moe_intermediate_size")
    blueprint = decoder(
        f,
        mixer=lambda i: replace(base, qkv_bias=bias, window=window if "sliding" in kinds[i] else 0),
        feed_forward=sparse,
        mixer_extra=convolutions + base.kv_heads,
        other=8 * hidden,
        router_extra=lambda i: gate - hidden * experts + (router if i else 0),
    )
    blueprint.add("other", 2 * hidden)
    return blueprint


def inkling_text(f: Fields) -> Blueprint:
    """Inkling: relative positions by a low-rank product, short convolutions on keys, values and both outputs."""
    hidden, layers, vocab = f.positive("hidden_size"), f.positive("num_hidden_layers"), f.positive("vocab_size")
    local = f.get("local_layer_ids", None)
    kinds = layer_types(
        f, layers, lambda i: "hybrid_sliding" if (i in local if local is not None else (i + 1) % 6) else "hybrid"
    )
    mlp = [str(k) for k in f.many("mlp_layer_types")]
    first = f.whole("dense_mlp_idx", 0)
    mlp = mlp or ["dense" if i < first else "sparse" for i in range(layers)]
    expert_width, dense_width = f.positive("moe_intermediate_size"), f.positive("intermediate_size")
    if f.given("dense_intermediate_size"):
        expert_width, dense_width = dense_width, f.positive("dense_intermediate_size")
    window, conv, rel, extent = (
        f.positive(n) for n in ("sliding_window_size", "conv_kernel_size", "d_rel", "rel_extent")
    )
    whole = Mixer(
        "attention",
        f.positive("num_attention_heads"),
        f.positive("num_key_value_heads"),
        f.positive("head_dim"),
        qk_norm=True,
    )
    near = replace(
        whole,
        heads=f.positive("swa_num_attention_heads"),
        kv_heads=f.positive("swa_num_key_value_heads"),
        head_dim=f.positive("swa_head_dim"),
        window=window,
    )
    shared = f.positive("n_shared_experts")
    f.expect("shared_expert_sink", True)
    sparse = moe(
        f,
        "n_routed_experts",
        "moe_intermediate_size",
        expert_intermediate=expert_width,
        shared_intermediate=shared * expert_width,
    )
    plain = FeedForward("dense", dense_width)
    f.ignore(
        "unpadded_vocab_size",
        "log_scaling_n_floor",
        "logits_mup_width_multiplier",
        "mtp_hidden_states_first",
        "num_mtp_layers",
        "mtp_local_layer_ids",
        "chain_hidden_post_norm",
        "rms_norm_eps_moe_gate",
        "route_scale",
    )

    def extra(m: Mixer, reach: int) -> int:
        return hidden * m.heads * rel + rel * reach + 2 * m.kv_heads * m.head_dim * conv

    blocks = []
    for kind, ff_kind in zip(kinds, mlp[:layers], strict=True):
        m, reach = (near, window) if "sliding" in kind else (whole, extent)
        is_sparse = ff_kind == "sparse"
        router = shared * hidden + 1 if is_sparse else 0
        ff_extra = 0 if is_sparse else 1
        blocks.append(
            Block(m, sparse if is_sparse else plain, 2 * hidden, extra(m, reach), ff_extra, router, 2 * hidden * conv)
        )
    return Blueprint(hidden, vocab, blocks, False, f.optional("max_position_embeddings"), 2 * hidden)


def phi4_multimodal(f: Fields) -> Blueprint:
    """Phi-4 multimodal: Phi-3 with a SigLIP tower and a conformer; the LoRA adapters are not part of the class."""
    vision, audio = f.sub("vision_config", "phi4_multimodal_vision"), f.sub("audio_config", "phi4_multimodal_audio")
    blueprint = read_style(f, Style())
    hidden = blueprint.hidden
    inner = vision.positive("hidden_size")
    width = vision.positive("intermediate_size")
    positions = (vision.positive("image_size") // vision.positive("patch_size")) ** 2
    patch = linear(vision.positive("num_channels") * vision.positive("patch_size") ** 2, inner)
    pooling = (
        inner
        + linear(inner, 3 * inner)
        + linear(inner, inner)
        + 2 * inner
        + linear(inner, width)
        + linear(width, inner)
    )
    blocks = vision.positive("num_hidden_layers") * encoder_block(inner, width)
    vision.read.update(vision.raw)
    blueprint.add("vision", patch + positions * inner + blocks + 2 * inner + pooling)
    blueprint.add("projector", 2 * inner + linear(inner, hidden) + linear(hidden, hidden))
    blueprint.add("audio", _conformer(audio))
    sound = audio.positive("hidden_size")
    rate = audio.get("downsample_rate", 1)
    blueprint.add("projector", 2 * (linear(sound * rate, hidden) + linear(hidden, hidden)))
    return blueprint


def _conformer(f: Fields) -> int:
    hidden, width, channels = (
        f.positive("hidden_size"),
        f.positive("intermediate_size"),
        f.positive("nemo_conv_channels"),
    )
    reduction, bins, kernel = f.positive("time_reduction"), f.positive("input_size"), f.positive("kernel_size")
    ext = f.positive("ext_pw_out_channel")
    steps = int(math.log2(reduction))
    convolutions = linear(9, channels) + (steps - 1) * (linear(9, channels) + linear(channels, channels))
    out = linear(channels * math.ceil(bins / reduction), hidden)
    half = f.get("bias_symmetric", False)
    distance = f.positive("bias_max_distance")
    table = (distance if half else 2 * distance) * f.positive("num_attention_heads")
    multiplier = f.positive("depthwise_multiplier")
    feed = 2 * hidden + linear(hidden, 2 * width) + linear(width, hidden)
    conv = 2 * hidden + 2 * ext + linear(hidden, 2 * ext) + hidden * multiplier * (kernel + 1)
    conv += linear(hidden * multiplier, f.positive("depthwise_separable_out_channel")) + linear(hidden, ext)
    block = 2 * feed + 4 * linear(hidden, hidden) + conv + 4 * hidden
    f.read.update(f.raw)
    return convolutions + out + table + f.positive("num_blocks") * block


def blip2(f: Fields) -> Blueprint:
    """BLIP-2 and InstructBLIP: a ViT, a query transformer, a linear map into the language model."""
    instruct = f.model_type != "blip-2"
    name = "instructblip" if instruct else "blip_2"
    _, blueprint = language_model(f, "text_config", "opt")
    vision, q = f.sub("vision_config", f"{name}_vision_model"), f.sub("qformer_config", f"{name}_qformer")
    width, inner = vision.positive("hidden_size"), vision.positive("intermediate_size")
    positions = (vision.positive("image_size") // vision.positive("patch_size")) ** 2 + 1
    bias = vision.flag("qkv_bias", True)
    block = (
        linear(width, 3 * width, bias) + linear(width, width) + linear(width, inner) + linear(inner, width) + 4 * width
    )
    patch = linear(3 * area(vision.get("patch_size")), width)
    blueprint.add(
        "vision", width + positions * width + patch + vision.positive("num_hidden_layers") * block + 2 * width
    )
    hidden, wide, layers = q.positive("hidden_size"), q.positive("intermediate_size"), q.positive("num_hidden_layers")
    seen, every = width, q.positive("cross_attention_frequency")  # the class takes the tower's width
    ways = 2 if instruct or q.flag("use_qformer_text_input", False) else 1
    feed = ways * (linear(hidden, wide) + linear(wide, hidden) + 2 * hidden)
    cross = 2 * linear(hidden, hidden) + 2 * linear(seen, hidden) + 2 * hidden
    total = 2 * hidden + layers * (4 * linear(hidden, hidden) + 2 * hidden + feed) + -(-layers // every) * cross
    if instruct:
        total += (q.positive("vocab_size") + q.positive("max_position_embeddings")) * hidden
    blueprint.add("projector", f.positive("num_query_tokens") * hidden + total + linear(hidden, blueprint.hidden))
    for child in (vision, q):
        child.read.update(child.raw)
    f.ignore("image_text_hidden_size", "use_decoder_only_language_model", "tie_word_embeddings", "num_query_tokens")
    return blueprint


FAMILIES: dict[str, Reader] = {
    "zamba": zamba,
    "zaya": zaya,
    "inkling_text": inkling_text,
    "phi4_multimodal": phi4_multimodal,
    "blip-2": blip2,
    "instructblip": blip2,
    "instructblipvideo": blip2,
}
