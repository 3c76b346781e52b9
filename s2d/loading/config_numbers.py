"""Numbers of a config.json that the decoder computes with: each must be finite and lie where such a number can lie.

Shapes are checked in `perfmodel.models.model_config`. A number that is wrong here gives logits that are not finite, or wrong text.
"""

from collections.abc import Mapping
from pathlib import Path

from perfmodel.core.errors import BadFile, quoted

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
"""By key, at the top of a config or among its rotary settings, the least and the greatest number."""
_ROTARY_KEYS = ("rope_scaling", "rope_parameters")
_FIX = "Correct it, or fetch the model again"


def check_numbers(path: Path, config: Mapping[str, object]) -> None:
    """Refuse numbers that cannot be, and what is no number, at the top of a config and in its rotary settings.

    Args:
        path: of the config, for the message.
        config: the object in the file; a key that is missing or null is left to its family's default.

    Raises:
        BadFile: names the key, its value and the range.
    """
    for part in (config, *(config.get(key) for key in _ROTARY_KEYS)):
        if isinstance(part, Mapping):
            for key, limits in NUMBER_RANGES.items():
                _check(path, key, part.get(key), limits)
            _check_order(path, part)


def _check(path: Path, key: str, value: object, limits: tuple[float, float]) -> None:
    low, high = limits
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and low <= value <= high):  # type: ignore[operator]
        raise BadFile(path, f"{key} is {quoted(value)}, expected a number from {low:g} to {high:g}", _FIX)


def _check_order(path: Path, part: Mapping[str, object]) -> None:
    low, high = part.get("low_freq_factor"), part.get("high_freq_factor")
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        problem = f"low_freq_factor is {low!r} and high_freq_factor {high!r}, expected the low one to be at most the high one"
        raise BadFile(path, problem, _FIX)
