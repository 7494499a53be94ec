"""A config's fields, read with the defaults of its family and with an account of what was read.

An absent field takes the default that the family's configuration class gives it. A field that the class knows, that
differs from its default and that no reader looked at may change the structure: ``Fields.finish`` refuses it by name, so
that a variant which is not understood is never answered with a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from trivet.errors import TrivetError, Unsupported

# Names that never change which parameters or operators there are.
HARMLESS = frozenset(
    [
        "architectures",
        "model_type",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "auto_map",
        "_name_or_path",
        "use_cache",
        "return_dict",
        "is_decoder",
        "initializer_range",
        "initializer_factor",
        "attention_dropout",
        "hidden_dropout",
        "attn_pdrop",
        "embd_pdrop",
        "resid_pdrop",
        "dropout",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_z_loss_coef",
        "norm_topk_prob",
        "aux_loss_alpha",
        "seq_aux",
        "scoring_func",
        "topk_method",
        "routed_scaling_factor",
        "router_jitter_noise",
        "input_jitter_noise",
        "pretraining_tp",
        "use_mamba_kernels",
        "rescale_prenorm_residual",
        "time_step_limit",
        "time_step_min",
        "time_step_max",
        "time_step_floor",
        "hidden_act",
        "hidden_activation",
        "activation_function",
        "mlp_hidden_act",
        "mamba_hidden_act",
        "activation",
        "chunk_size",
        "ep_size",
        "logits_scaling",
        "residual_multiplier",
        "embedding_multiplier",
        "attention_multiplier",
        "logit_scale",
        "scale_emb",
        "scale_depth",
        "dim_model_base",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "query_pre_attn_scalar",
        "cache_implementation",
        "swiglu_limit",
        "swiglu_alpha",
        "hc_eps",
        "hc_sinkhorn_iters",
        "id2label",
        "label2id",
        "problem_type",
        "tokenizer_class",
        "prefix",
        "task_specific_params",
        "quantization_config",
        "compression_config",
        "beta_fast",
        "beta_slow",
        "moe_router_dtype",
    ]
)
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

_ABSENT = object()


@cache
def class_defaults() -> dict[str, dict[str, Any]]:
    """For each model type: ``defaults`` of its configuration class and its ``aliases`` (generic name -> own name)."""
    text = resources.files("trivet.data.models").joinpath("config_defaults.json").read_text("utf-8")
    loaded: dict[str, dict[str, Any]] = json.loads(text)
    return loaded


def harmless(name: str) -> bool:
    """Whether a field of this name never changes the structure."""
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
        known = class_defaults().get(model_type)
        self.raw, self.model_type, self.path = raw, model_type, path
        self.has_class = known is not None
        self.defaults: dict[str, Any] = dict(known["defaults"]) if known else {}
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
        if isinstance(value, float) and value == int(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise TrivetError(f"{value!r} is not a whole number >= 0", field=self.name(field))
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
        for field, value in self.raw.items():
            if field in self.read or harmless(field):
                continue
            if self.has_class and (field not in self.defaults or self.defaults[field] == value):
                continue  # the family's class ignores names that it does not know
            if value is None or value is False or value == [] or value == {}:
                if not self.has_class:
                    continue
            raise Unsupported(
                f"{_short(value)} is not understood for a {self.model_type} model", field=self.name(field)
            )
        for child in self.children:
            child.finish()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
