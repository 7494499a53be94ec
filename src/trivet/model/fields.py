"""A config's fields, read with the defaults of its family and with an account of what was read.

An absent field takes the default that the family's configuration class gives it. A field that the class knows, that
differs from its default and that no reader looked at may change the structure: ``Fields.finish`` refuses it by name, so
that a variant which is not understood is never answered with a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from trivet.errors import TrivetError, Unsupported

# Names that never change which parameters or operators there are.
_NAMES = """
_name_or_path activation activation_function apply_residual_connection_post_layernorm architectures
attention_dropout attention_layers attention_multiplier attention_softmax_in_fp32 attention_types
attention_value_scale attn_logit_cap attn_logit_softcapping attn_pdrop attn_scale attn_temperature_tuning
auto_map aux_loss_alpha bad_words_ids begin_suppress_tokens beta_fast beta_slow cache_implementation
chunk_size chunk_size_feed_forward clip_qkv compression_config dim_model_base diversity_penalty dropout
dtype embd_pdrop embedding_multiplier ep_size final_logit_softcapping floor_scale hc_eps
hc_sinkhorn_iters hidden_act hidden_activation hidden_dropout id2label ignore_index image_seq_length
initializer_factor initializer_range input_jitter_noise is_decoder label2id length_penalty logit_scale
logits_scaling mamba_hidden_act mamba_ssm_cache_dtype mamba_ssm_dtype max_length min_length
mlp_hidden_act model_type moe_router_dtype moe_router_scaling_factor moe_shared_expert_overlap n_ctx
n_group no_rope_layers norm_topk_prob num_beam_groups num_beams num_logits_to_keep num_mtp_layers
num_return_sequences original_max_position_embeddings output_attentions output_hidden_states
output_router_logits partial_rotary_factor prefix pretraining_tp problem_type
qk_norm_type quantization_config query_pre_attn_scalar reorder_and_upcast_attn repetition_penalty
rescale_prenorm_residual resid_pdrop residual_in_fp32 residual_multiplier return_dict rotary_dim
rotary_pct rotary_percentage routed_scaling_factor router_aux_loss_coef router_jitter_noise
router_z_loss_coef scale_attention_softmax_in_fp32 scale_attn_by_inverse_layer_idx scale_attn_weights
scale_depth scale_emb scale_embedding scoring_func sep_token_id seq_aux slow_but_exact summary_activation
summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens swiglu_alpha
swiglu_limit task_specific_params temperature time_step_floor time_step_limit time_step_max time_step_min
tokenizer_class top_k top_p topk_group topk_method torch_dtype transformers_version typical_p
use_bidirectional_attention use_cache use_gemma_norm use_mamba_kernels use_moe_router_bias
use_routing_bias use_unified_vision_chunk video_placeholder vision_feature_layer
vision_feature_select_strategy
mamba_chunk_size mamba_dt_init_floor mamba_dt_limit mamba_dt_max mamba_dt_min partial_rotary_factors use_falcon_mambapy num_labels
spatial_pool_stride spatial_pool_mode video_seq_length projector_hidden_act use_associative_scan use_mambapy
"""
HARMLESS = frozenset(_NAMES.split())
HARMLESS_ENDINGS = (
    "_token_id",
    "_token_index",
    "_eps",
    "_epsilon",
    "_dropout",
    "_pdrop",
    "_drop",
    "_std",
    "_theta",
    "_token",
    "_prob",
    "_token_ids",
    "_placeholder",
    "_coef",
    "_coeff",
    "_alpha",
    "_scaling_factor",
)
HARMLESS_PARTS = ("rope", "initializer", "dropout", "loss", "layerdrop")

# Types without a class of their own in the defaults, and the class that they are read as.
SAME_CLASS = {
    "kimi_k2": "deepseek_v3",
    "deepseek_ref": "deepseek_v4",
    "minimax_m3": "minimax_m3_vl_text",
    "step3p7_text": "step3p5",
    "step3p7_vision": "step3p5_vision",
}

LARGEST_SIZE, LARGEST_STACK = 10**9, 10_000
_STACKS = frozenset(
    [
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "depth",
        "encoder_layers",
        "decoder_layers",
        "num_decoder_layers",
    ]
)
_ABSENT = object()


@cache
def class_defaults() -> dict[str, dict[str, Any]]:
    """For each model type: ``defaults`` of its configuration class and its ``aliases`` (generic name -> own name)."""
    text = resources.files("trivet.data.models").joinpath("config_defaults.json").read_text("utf-8")
    loaded: dict[str, dict[str, Any]] = json.loads(text)
    return loaded


def harmless(name: str) -> bool:
    """Whether a field of this name never changes the structure."""
    if name in HARMLESS:
        return True
    if name.endswith(("_dim", "_dims", "_rank", "per_token", "_interval")) or name.startswith("no_rope"):
        return False
    return (
        name in HARMLESS
        or name.endswith(HARMLESS_ENDINGS)
        or any(part in name for part in HARMLESS_PARTS)
        or name.startswith("_")
    )


class Fields:
    """One (sub-)config under reading."""

    def __init__(self, raw: Mapping[str, Any], model_type: str, path: str = ""):
        known = class_defaults().get(SAME_CLASS.get(model_type, model_type))
        self.raw, self.model_type, self.path = raw, model_type, path
        self.has_class = known is not None
        self.defaults: dict[str, Any] = dict(known["defaults"]) if known else {}
        self.legacy = frozenset(known.get("legacy", ())) if known else frozenset()
        self.aliases: dict[str, str] = dict(known["aliases"]) if known else {}
        self.read: set[str] = set()
        self.children: list[Fields] = []

    def name(self, field: str) -> str:
        return f"{self.path}{field}"

    def get(self, field: str, default: Any = _ABSENT) -> Any:
        """The value given, else the class default, else ``default``; refused by name when there is none of them."""
        for name in (field, self.aliases.get(field, field)):
            self.read.add(name)
        for name in (self.aliases.get(field, field), field):
            if name in self.raw:
                return self.raw[name]
        for name in (self.aliases.get(field, field), field):
            if name in self.defaults:
                return self.defaults[name]
        if default is _ABSENT:
            raise TrivetError(f"missing from the config of a {self.model_type} model", field=self.name(field))
        return default

    def given(self, field: str) -> bool:
        """Whether the config itself (not the class) gives a value other than null."""
        self.read.add(field)
        return self.raw.get(field, self.raw.get(self.aliases.get(field, field))) is not None

    def whole(self, field: str, default: Any = _ABSENT) -> int:
        """A whole number >= 0."""
        value = self.get(field, default)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TrivetError(f"{value!r} is not a whole number >= 0", field=self.name(field))
        limit = LARGEST_STACK if field in _STACKS else LARGEST_SIZE
        if value > limit:
            raise TrivetError(f"{value} is out of all proportion", field=self.name(field), allowed=f"up to {limit}")
        return value

    def positive(self, field: str, default: Any = _ABSENT) -> int:
        value = self.whole(field, default)
        if value == 0:
            raise TrivetError("must be at least 1", field=self.name(field))
        return value

    def optional(self, field: str) -> int:
        """A whole number; absent and null are 0."""
        return 0 if self.get(field, None) is None else self.whole(field)

    def flag(self, field: str, default: Any = _ABSENT) -> bool:
        value = self.get(field, default)
        if value is None:
            return False
        if not isinstance(value, bool | int):
            raise TrivetError(f"{value!r} is not true or false", field=self.name(field))
        return bool(value)

    def many(self, field: str, default: Any = None) -> list[Any]:
        value = self.get(field, default)
        if value is None:
            return []
        if not isinstance(value, list | tuple):
            raise TrivetError(f"{value!r} is not a list", field=self.name(field))
        return list(value)

    def ignore(self, *fields: str) -> None:
        """Take note of fields that change no parameter and no operator of this family."""
        for field in fields:
            self.get(field, None)

    def expect(self, field: str, *allowed: Any) -> Any:
        """Read a field of which only some values are understood."""
        value = self.get(field, allowed[0])
        if value not in allowed:
            raise Unsupported(
                f"{value!r} is not understood for a {self.model_type} model",
                field=self.name(field),
                allowed=[repr(a) for a in allowed],
            )
        return value

    def sub(self, field: str, model_type: str = "") -> Fields:
        """A nested config: its own class's defaults under what is given; when absent, the parent class's default for it."""
        value = self.get(field, None)
        if not isinstance(value, Mapping):
            if value is None and model_type:
                value = {}
            else:
                raise TrivetError("missing or not a mapping", field=self.name(field))
        child = Fields(value, str(value.get("model_type") or model_type), f"{self.path}{field}.")
        self.children.append(child)
        return child

    def finish(self) -> None:
        """Refuse fields that nobody read and that may matter."""
        if self.raw.get("per_layer_config") and "per_layer_config" not in self.read:
            raise Unsupported("overrides by layer are not understood", field=self.name("per_layer_config"))
        for field, value in self.raw.items():
            if field in self.read or harmless(field):
                continue
            known = field in self.defaults or field in self.legacy
            if self.has_class and (not known or self.defaults.get(field) == value):
                continue  # the family's class ignores names that it does not know
            if (value is None or value is False or value == [] or value == {}) and not self.has_class:
                continue
            raise Unsupported(
                f"{_short(value)} is not understood for a {self.model_type} model", field=self.name(field)
            )
        for child in self.children:
            child.finish()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
