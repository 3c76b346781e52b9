"""The oracle of field.py: weights and KV values of the model that transformers builds from a config.json.

transformers knows the layers and defaults of every family, and does not depend on this project.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, logging

_OUR_KEYS = ("quantization_config", "quantization", "_name_or_path", "architectures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The counts of one text decoder."""

    params_by_name: Mapping[str, tuple[int, bool]]
    """Number of weights per parameter, and whether it is a matrix of the layers or the head. A tied head counts once."""
    kv_values_per_token: int
    """Keys and values that a token adds to the cache, over all layers."""

    @property
    def num_params(self) -> int:
        """All weights."""
        return sum(number for number, _ in self.params_by_name.values())


def count(config: Mapping[str, Any]) -> Counted:
    """Build the text decoder of a config without memory and count it."""
    logging.set_verbosity_error()  # about token ids beyond a small vocabulary
    keys = {key: value for key, value in config.items() if key not in _OUR_KEYS}
    whole = AutoConfig.for_model(**keys)
    text = whole.get_text_config()
    with torch.device("meta"):
        if text is whole:
            params = _params(AutoModelForCausalLM.from_config(whole), "")
        else:
            model = AutoModelForImageTextToText.from_config(whole)
            params = _params(model.model.language_model, "") | _params(model.lm_head, "lm_head.")
            if whole.tie_word_embeddings:
                params.pop("lm_head.weight")
    return Counted(params_by_name=params, kv_values_per_token=_kv_values(text))


def _params(module: torch.nn.Module, prefix: str) -> dict[str, tuple[int, bool]]:
    linear = {f"{name}.weight".lstrip(".") for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    return {prefix + name: (weight.numel(), name in linear) for name, weight in module.named_parameters()}


def _kv_values(text: PretrainedConfig) -> int:
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * head_dim
