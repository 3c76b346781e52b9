"""Read the config.json of a model; refuse features that the decoder does not compute exactly.

The decoder computes every rotary type that transformers computes alike within a model's context: `dynamic` frequencies change
only beyond `max_position_embeddings`, where the context ends. The decoder has no attention windows. If layers have a window, a
text may be as long as the window: up to there every layer attends to all tokens (`ModelGeometry.full_attention_tokens`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from perfmodel.core.errors import BadFile, BadPolicy, UserInputError, one_line, quoted
from perfmodel.models.architectures import architecture_name, find_architecture, unsupported_features
from perfmodel.models.config_file import check_is_decoder, folder_model_name, note_file_in_errors
from perfmodel.models.geometry import REFERENCE_PREFIX, ModelGeometry
from perfmodel.models.hub import CONFIG
from perfmodel.models.known_architectures import ARCHITECTURES
from perfmodel.models.model_config import geometry_from_config
from perfmodel.quantisation.config_reading import ConfigReading, read_model_config
from s2d.loading.model_folder import FAMILY_FOLDER

DecoderConfig: TypeAlias = LlamaConfig | MistralConfig | Qwen2Config | Qwen3Config
FAMILIES: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
"""By `model_type`. Vicuna, TinyLlama and many others have the type `llama`."""
CLASS_NAMES = {family.model_type: family.class_name for family in ARCHITECTURES if family.model_type in FAMILIES}
SUPPORTED_ROPE = ("default", "linear", "dynamic", "yarn", "llama3")
NUMBER_RANGES: dict[str, tuple[float, float]] = {
    "rms_norm_eps": (1e-12, 0.1),
    "rope_theta": (10.0, 1e12),
    "factor": (1.0, 1e4),
    "attention_factor": (0.01, 100.0),
    "mscale": (0.0, 100.0),
    "mscale_all_dim": (0.0, 100.0),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
    "low_freq_factor": (1e-3, 1e4),
    "high_freq_factor": (1e-3, 1e4),
    "original_max_position_embeddings": (1, 1e9),
}
"""Lowest and highest plausible value of each number that the decoder computes with. Other values give wrong text or NaN logits.

The keys stand at the top of a config or in its rotary settings. `perfmodel.models.model_config` checks the shapes.
"""
_ROTARY_KEYS = ("rope_scaling", "rope_parameters")
_FIX = "Correct it, or fetch the model again"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerExtras:
    """Parts of a family's layers that the layers of a Llama without biases lack."""

    qkv_bias: bool
    attn_out_bias: bool
    mlp_bias: bool
    normed_heads: bool


def read_config(folder: Path) -> DecoderConfig:
    """The config of a model folder, with the defaults of transformers.

    Raises:
        BadFile: there is no config, or the decoder does not compute such a model exactly.
    """
    path = folder / CONFIG
    reading = read_model_config(path)
    raw = reading.config
    _check_not_quantised(reading)
    _check_family(reading)
    _check_numbers(path, raw)
    try:
        config = FAMILIES[raw["model_type"]].from_dict(raw)
    except Exception as err:  # transformers raises errors of many types
        raise BadFile(path, f"not a config that transformers accepts ({one_line(err)})", "Fetch the model again") from err
    if config.hidden_act != "silu":
        raise BadFile(path, f"hidden_act {config.hidden_act!r}, expected 'silu'", "Give a model with a gated SiLU MLP")
    rope = config.rope_parameters
    if rope.get("rope_type") not in SUPPORTED_ROPE or rope.get("partial_rotary_factor", 1.0) != 1.0:
        expected = f"expected one of the types {', '.join(SUPPORTED_ROPE)}, applied to whole heads"
        raise BadFile(path, f"rotary positions {rope!r}, {expected}", "Give a model with such positions")
    if rope.get("rope_theta") is None:
        raise BadFile(path, "rope_theta is null, expected a number", _FIX)
    return config


def _check_not_quantised(reading: ConfigReading) -> None:
    """Refuse a model with quantised weights, declared in its config or in a separate file: they would be misread."""
    path, fix = reading.path, "Give the original model"
    try:
        quantisation = reading.quantisation()
    except BadFile:  # the separate file is unreadable; the error already names it
        raise
    except UserInputError as err:
        problem = "it declares quantised weights in an unknown way, expected plain numbers"
        raise BadFile(path, problem, fix) from err
    if quantisation is not None:
        problem = f"its weights are stored quantised ({quantisation.label}, by {quantisation.location}), expected plain numbers"
        raise BadFile(path, problem, fix)


def _check_family(reading: ConfigReading) -> None:
    """Refuse every architecture but those of `FAMILIES`, and models that bring their own code."""
    path, raw = reading.path, reading.config
    with note_file_in_errors(path):
        check_is_decoder(path, raw, reading.name)
        name, model_type = architecture_name(raw), raw.get("model_type")
        traits = "; ".join(unsupported_features(raw))
    fix = f"Give a dense model of {', '.join(CLASS_NAMES.values())}"
    if traits:
        raise BadFile(path, f"architecture {name!r} is not supported because of {traits}", fix)
    if model_type not in FAMILIES or name not in (model_type, CLASS_NAMES[model_type]):
        raise BadFile(path, f"architecture {quoted(name)} (model_type {quoted(model_type)}) is not supported", fix)
    reading.geometry()
    if raw.get("auto_map"):
        raise BadFile(path, f"architecture {name!r} brings its own code (auto_map), which s2d never runs", fix)


def _check_numbers(path: Path, config: Mapping[str, object]) -> None:
    """Refuse values outside `NUMBER_RANGES`. A missing or null key takes the default of its family."""
    for part in (config, *(config.get(key) for key in _ROTARY_KEYS)):
        if not isinstance(part, Mapping):
            continue
        for key, (low, high) in NUMBER_RANGES.items():
            value = part.get(key)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and low <= value <= high):
                raise BadFile(path, f"{key} is {quoted(value)}, expected a number from {low:g} to {high:g}", _FIX)
        lower, upper = part.get("low_freq_factor"), part.get("high_freq_factor")
        if lower is not None and upper is not None and lower > upper:
            problem = f"low_freq_factor is {lower!r} and high_freq_factor {upper!r}, expected a low factor up to the high one"
            raise BadFile(path, problem, _FIX)


def config_geometry(config: DecoderConfig, folder: Path) -> ModelGeometry:
    """The shapes in a config, the same as a plan reads.

    Args:
        config: the config of a model folder.
        folder: that folder, which names the model.
    """
    name = folder_model_name(folder)
    if folder.resolve().parent == FAMILY_FOLDER:
        name = REFERENCE_PREFIX + name
    return geometry_from_config(config.to_dict(), name, "its config.json")


def read_geometry(folder: Path) -> ModelGeometry:
    """The shapes in the config of a model folder.

    Raises:
        BadFile: see `read_config`.
    """
    return config_geometry(read_config(folder), folder)


def layer_extras(config: DecoderConfig) -> LayerExtras:
    """Parts of a config's layers that the layers of a Llama without biases lack."""
    family = find_architecture(config.to_dict(), config.model_type)
    attention_bias = bool(getattr(config, "attention_bias", False))
    return LayerExtras(
        qkv_bias=family.qkv_bias is True or attention_bias,
        attn_out_bias=attention_bias,
        mlp_bias=bool(getattr(config, "mlp_bias", False)),
        normed_heads=family.query_key_norm == "head",
    )


def first_layers_config(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The object of a config.json for the first layers of its model.

    Raises:
        BadPolicy: the model has fewer layers.
    """
    depth = config["num_hidden_layers"]
    if not 1 <= num_layers <= depth:
        raise BadPolicy(f"exit layer {num_layers}", f"from 1 to the model's {depth} layers")
    layer_types = config.get("layer_types")
    changes = {"num_hidden_layers": num_layers} | ({"layer_types": layer_types[:num_layers]} if layer_types else {})
    unchanged = {key: value for key, value in config.items() if key != "_name_or_path"}  # no longer the named model
    return unchanged | changes
