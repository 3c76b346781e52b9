"""config.json of a model folder: the families that are computed exactly, and the refusal of every other by name.

Rotary positions are of any type that transformers turns alike within a model's context: `dynamic` ones change beyond
`max_position_embeddings` only, where contexts end. Windows are not computed: where layers have one, a text may be as long as
it, which is how far every layer sees everything (`ModelGeometry.full_attention_tokens`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from perfmodel.core.errors import BadFile, BadPolicy, UserInputError, one_line, shown
from perfmodel.models.architectures import architecture_name, find_architecture, unsupported_features
from perfmodel.models.config_file import check_is_decoder, folder_model_name, note_file_in_errors, read_config_file
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import CONFIG, QUANTISATION_FILE
from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.model_config import geometry_from_config
from perfmodel.quantisation.quantised_config import find_quantisation
from s2d.loading.config_numbers import check_numbers
from s2d.loading.model_folder import FAMILY_FOLDER, FAMILY_PREFIX

DecoderConfig: TypeAlias = LlamaConfig | MistralConfig | Qwen2Config | Qwen3Config
FAMILIES: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
"""By `model_type`. Vicuna, TinyLlama and many others are Llamas by another name."""
CLASS_NAMES = {one.model_type: one.class_name for one in ARCHITECTURES if one.model_type in FAMILIES}
SUPPORTED_ROPE = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerExtras:
    """What the layers of a family have beyond those of a Llama without biases."""

    qkv_bias: bool
    attn_out_bias: bool
    mlp_bias: bool
    normed_heads: bool


def read_config(folder: Path) -> DecoderConfig:
    """config.json of a folder, as transformers completes it.

    Raises:
        BadFile: there is none, or it is of a model that the decoder does not compute exactly; says by which name.
    """
    path = folder / CONFIG
    raw = read_raw_config(folder)
    _check_plain(path, raw)
    _check_family(path, raw)
    check_numbers(path, raw)
    try:
        config = FAMILIES[raw["model_type"]].from_dict(raw)
    except Exception as err:  # transformers checks a config with errors of every type
        raise BadFile(path, f"not a config that transformers accepts ({one_line(err)})", "Fetch the model again") from err
    if config.hidden_act != "silu":
        raise BadFile(path, f"hidden_act {config.hidden_act!r}, expected 'silu'", "Give a model with a gated SiLU MLP")
    rope = config.rope_parameters
    if rope.get("rope_type") not in SUPPORTED_ROPE or rope.get("partial_rotary_factor", 1.0) != 1.0:
        expected = f"expected one of the types {', '.join(SUPPORTED_ROPE)} that turns whole heads"
        raise BadFile(path, f"rotary positions {rope!r}, {expected}", "Give a model with such positions")
    if rope.get("rope_theta") is None:
        raise BadFile(path, "rope_theta is null, expected a number", "Correct it, or fetch the model again")
    return config


def read_raw_config(folder: Path) -> dict[str, Any]:
    """The object in a folder's config.json, as it stands there.

    Raises:
        BadFile: there is none.
    """
    return read_config_file(folder / CONFIG)


def _check_plain(path: Path, raw: dict[str, Any]) -> None:
    """Refuse a model whose weights are stored quantised, which would be misread: by its config or the file beside it."""
    beside = path.with_name(QUANTISATION_FILE)
    fix = "Give the original model"
    block = read_config_file(beside) if beside.is_file() else None
    try:
        found = find_quantisation(raw, block, path.parent.name)
    except UserInputError as err:
        raise BadFile(
            path, "it says in a way not understood that its weights are quantised, expected plain numbers", fix
        ) from err
    if found is not None:
        problem = f"its weights are stored quantised ({found.label}, by {found.location}), expected plain numbers"
        raise BadFile(path, problem, fix)


def _check_family(path: Path, raw: dict[str, Any]) -> None:
    own_name = folder_model_name(path.parent)
    with note_file_in_errors(path):
        check_is_decoder(path, raw, own_name)
        name, model_type = architecture_name(raw), raw.get("model_type")
        traits = "; ".join(unsupported_features(raw))
    fix = f"Give a dense model of {', '.join(CLASS_NAMES.values())}"
    if traits:
        raise BadFile(path, f"architecture {name!r} is not run, having {traits}", fix)
    if model_type not in FAMILIES or name not in (model_type, CLASS_NAMES[model_type]):
        raise BadFile(path, f"architecture {shown(name)} (model_type {shown(model_type)}) is not run", fix)
    with note_file_in_errors(path):
        geometry_from_config(raw, own_name)
    if raw.get("auto_map"):
        raise BadFile(path, f"architecture {name!r} brings code of its own (auto_map), which is never run", fix)


def geometry_of(config: DecoderConfig, folder: Path) -> ModelGeometry:
    """The shapes that a config declares, as a plan reads them."""
    name = folder_model_name(folder)
    if folder.resolve().parent == FAMILY_FOLDER:
        name = FAMILY_PREFIX + name
    return geometry_from_config(config.to_dict(), name, "its config.json")


def read_geometry(folder: Path) -> ModelGeometry:
    """The shapes of the model in a folder.

    Raises:
        BadFile: as `read_config` does.
    """
    return geometry_of(read_config(folder), folder)


def layer_extras(config: DecoderConfig) -> LayerExtras:
    """What a config's layers have beyond those of a Llama without biases."""
    family = find_architecture(config.to_dict(), config.model_type)
    attention_bias = bool(getattr(config, "attention_bias", False))
    return LayerExtras(
        qkv_bias=family.qkv_bias is True or attention_bias,
        attn_out_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        normed_heads=family.query_key_norm == "head",
    )


def shallower(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """A config's object for its first layers alone.

    Raises:
        BadPolicy: it has fewer.
    """
    depth = config["num_hidden_layers"]
    if not 1 <= num_layers <= depth:
        raise BadPolicy(f"exit layer {num_layers}", f"from 1 to the model's {depth} layers")
    layer_types = config.get("layer_types")
    cut = {"layer_types": layer_types[:num_layers]} if layer_types else {}
    kept = {key: value for key, value in config.items() if key != "_name_or_path"}  # it is no longer that model
    return {**kept, "num_hidden_layers": num_layers, **cut}
