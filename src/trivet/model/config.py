"""Read a Hugging Face ``config.json`` into an ``Architecture``.

A family is one function ``reader(fields) -> Blueprint`` in ``families``; third parties add one through the entry point
group ``trivet.models`` (name = model type, object = the function).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from trivet.errors import TrivetError, UnknownName, Unsupported
from trivet.model import catalogue
from trivet.model.architecture import Architecture, Quantisation
from trivet.model.blueprint import Blueprint
from trivet.model.families import FAMILIES, Reader
from trivet.model.fields import Fields
from trivet.model.quantisation import by_name, read_quantisation
from trivet.model.vision import read_tower

# Classes that build the text model alone from a composite config.
_TEXT_CLASSES = ("MllamaForCausalLM", "Gemma3ForCausalLM", "Gemma4ForCausalLM", "Gemma4UnifiedForCausalLM")
ESSENTIAL = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@cache
def families() -> dict[str, Reader]:
    """Readers by model type: those of the package and those that other packages registered."""
    from importlib.metadata import entry_points

    found: dict[str, Reader] = dict(FAMILIES)
    for entry in entry_points(group="trivet.models"):
        found[entry.name] = entry.load()
    return found


def from_mapping(raw: Mapping[str, Any], name: str = "") -> Architecture:
    """An architecture from a config that is already parsed.

    Raises:
        TrivetError: a field is missing or malformed (named).
        Unsupported: the family, or a field of it that changes the structure, is not understood.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise TrivetError("missing from the config", field="model_type")
    reader = families().get(model_type)
    if reader is None:
        raise Unsupported(f"{model_type!r} is a family that is not understood", field="model_type")
    fields = Fields(raw, model_type)
    _refuse_partial(raw, fields)
    named = raw.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise TrivetError(f"{named!r} is not a list of class names", field="architectures")
    try:
        blueprint = reader(fields)
        fields.finish()
        _apply_class(raw, blueprint, model_type)
        quantisation = _quantisation(raw, blueprint, name)
        built = blueprint.architecture(name or str(raw.get("_name_or_path") or model_type), model_type, quantisation)
        text_alone = str((named or [""])[0]) in _TEXT_CLASSES
        return built if text_alone else replace(built, tower=read_tower(model_type, raw, built.hidden))
    except TrivetError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise TrivetError(
            f"a field has a value of the wrong kind ({type(error).__name__}: {error})", field=f"config of {model_type}"
        ) from error


def _quantisation(raw: Mapping[str, Any], blueprint: Blueprint, name: str) -> Quantisation:
    """What the config states, else what the name does."""
    stated = read_quantisation(raw, len(blueprint.blocks))
    if _states_quantisation(raw):
        return stated
    special = any(block.mixer.kind in ("mla", "scan") for block in blueprint.blocks)
    named = by_name(stated, name, latent_or_hybrid=special)
    if named != stated:
        blueprint.notes.append("precision by the name: the config does not state it")
    return named


def _states_quantisation(raw: Mapping[str, Any]) -> bool:
    text = raw.get("text_config")
    nested = text.get("quantization_config") if isinstance(text, Mapping) else None
    return bool(raw.get("quantization_config") or raw.get("compression_config") or nested)


def _refuse_partial(raw: Mapping[str, Any], fields: Fields) -> None:
    """A config that gives some of the sizes that every model states, but not all, is damaged: refuse it by name.

    One that gives none of them is its class's default. (Nested text configs do leave sizes to their class.)
    """

    def given(name: str) -> bool:
        return name in raw or fields.aliases.get(name, name) in raw or (name == "hidden_size" and "n_embed" in raw)

    known = [name for name in ESSENTIAL if fields.aliases.get(name, name) in fields.defaults]
    if any(
        isinstance(raw.get(part), Mapping)
        for part in ("text_config", "llm_config", "language_config", "thinker_config")
    ):
        return
    missing = [name for name in known if not given(name)]
    if missing and len(missing) < len(known):
        raise TrivetError(
            f"missing from the config of a {fields.model_type} model",
            field=fields.aliases.get(missing[0], missing[0]),
        )


def _apply_class(raw: Mapping[str, Any], blueprint: Blueprint, model_type: str) -> None:
    """``architectures[0]`` decides whether there is a head."""
    names = raw.get("architectures") or []
    if not names:
        return
    name = str(names[0])
    if name.endswith(
        (
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
            "ForMultipleChoice",
            "ForRewardModel",
        )
    ):
        raise Unsupported(
            f"{name} has a head that is not understood", field="architectures", allowed="a language model"
        )
    if name in _TEXT_CLASSES and any(blueprint.extra.get(part) for part in ("vision", "audio")):
        for part in ("vision", "audio", "projector"):
            blueprint.extra.pop(part, None)
        blueprint.notes.append(f"{name}: the text model alone is counted")
    if name.endswith("Model") and not name.endswith("LMHeadModel"):
        blueprint.head = blueprint.head_bias = 0
        blueprint.tied = True
        blueprint.notes.append(f"{name}: no language-model head")


def load(path: Path) -> Mapping[str, Any]:
    """Parse a ``config.json`` (or a folder that holds one)."""
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise TrivetError("no such file", field=str(file)) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TrivetError(f"not a readable JSON file: {error}", field=str(file)) from None
    if not isinstance(raw, Mapping):
        raise TrivetError("a config is a JSON object", field=str(file))
    return raw


def read(path_or_name: str | Path) -> Architecture:
    """An architecture by file, folder, name in the catalogue, or hub name (with ``huggingface_hub`` and a network)."""
    text = str(path_or_name)
    path = Path(text).expanduser()
    if path.exists() or text.endswith(".json"):
        return from_mapping(load(path), _name_of(path))
    found = catalogue.find(text)
    if found is not None:
        name, raw = found
        return from_mapping(raw, name)
    return from_mapping(_from_hub(text), text)


def _name_of(path: Path) -> str:
    stem = path.name if path.is_dir() else path.stem
    if stem == "config":
        stem = path.resolve().parent.name
    return stem.removesuffix("_config").replace("--", "/")


def _from_hub(name: str) -> Mapping[str, Any]:
    near = catalogue.similar(name)
    hint = f"did you mean {', '.join(near)}?" if near else "see `trivet models`"
    refused = UnknownName(f"no model, file or folder of that name; {hint}", field=name)
    if name.count("/") != 1:
        raise refused
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise refused from None
    try:
        return load(Path(hf_hub_download(name, "config.json")))
    except TrivetError:
        raise
    except Exception as error:  # the hub's errors are many and not all public
        raise UnknownName(
            f"not in the catalogue, and the hub answered {type(error).__name__}; {hint}", field=name
        ) from None
