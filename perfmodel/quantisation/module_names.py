"""Match the module lists of a quantisation block, by name, glob or regex.

A module has several names, because multimodal models, GPT-2 and models with fused projections use different ones. A list
matches a module if it matches any of its names.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from perfmodel.quantisation.module_regex import ModuleRegexes, UnreadablePattern

ModuleMatcher = Callable[[Sequence[str]], bool]
"""Returns whether any of a module's names matches a list."""

_LAYERS = (
    "model.layers",
    "model.language_model.layers",
    "language_model.model.layers",
    "language_model.layers",
    "model.text_model.layers",
    "model.decoder.layers",
    "transformer.h",
)
_PARTS: dict[str, tuple[str, ...]] = {
    "q_proj": ("self_attn.q_proj", "self_attn.qkv_proj", "attn.c_attn"),
    "k_proj": ("self_attn.k_proj", "self_attn.qkv_proj", "attn.c_attn"),
    "v_proj": ("self_attn.v_proj", "self_attn.qkv_proj", "attn.c_attn"),
    "o_proj": ("self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "attn.c_proj"),
    "gate_proj": ("mlp.gate_proj", "mlp.gate_up_proj"),
    "up_proj": ("mlp.up_proj", "mlp.gate_up_proj"),
    "down_proj": ("mlp.down_proj",),
    "fc1": ("fc1", "mlp.fc1", "mlp.c_fc", "mlp.up_proj"),
    "fc2": ("fc2", "mlp.fc2", "mlp.c_proj", "mlp.down_proj"),
}
HEAD_NAMES = (
    "lm_head",
    "language_model.lm_head",
    "model.lm_head",
    "model.language_model.lm_head",
    "embed_out",
)
"""Names of the LM head in files."""
EMBEDDING_NAMES = (
    "model.embed_tokens",
    "language_model.model.embed_tokens",
    "model.language_model.embed_tokens",
    "language_model.embed_tokens",
    "model.text_model.embed_tokens",
    "model.decoder.embed_tokens",
    "transformer.wte",
)
"""Names of the embedding in files."""
MAX_PATTERNS = 1000
"""Upper limit for the globs or regexes in one list."""
_IS_NAME = re.compile(r"[\w.-]*")
_NAME_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"
"""Next to a dot, or at the end."""


def layer_names(layer: int, module: str) -> tuple[str, ...]:
    """Names in files of a module in a zero-based layer (`ModelGeometry.layer_matrices` lists the modules)."""
    return tuple(f"{layers}.{layer}.{part}" for layers in _LAYERS for part in _PARTS[module])


def transformers_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Match modules that transformers does not convert: by name, regex, prefix up to a dot, or suffix.

    Same rule as `transformers.quantizers.quantizers_utils.should_convert_module`.

    Raises:
        UnreadablePattern: a pattern cannot be matched in bounded time.
    """
    plain = frozenset(pattern.strip(".") for pattern in patterns if _IS_NAME.fullmatch(pattern))
    regexes = ModuleRegexes(_distinct(pattern for pattern in patterns if not _IS_NAME.fullmatch(pattern)), _NAME_BOUNDARY)
    endings = tuple(pattern for pattern in patterns if pattern)

    def matches(name: str) -> bool:
        return name.endswith(endings) or bool(plain & _prefixes(name)) or regexes.match(name)

    return lambda names: any(map(matches, names))


def glob_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Match names by glob, and all modules inside a listed module.

    Raises:
        UnreadablePattern: there are too many patterns.
    """
    plain = frozenset(pattern for pattern in patterns if _IS_NAME.fullmatch(pattern))
    globs = [
        re.compile(fnmatch.translate(pattern))
        for pattern in _distinct(pattern for pattern in patterns if not _IS_NAME.fullmatch(pattern))
    ]

    def matches(name: str) -> bool:
        return bool(plain & _prefixes(name)) or any(glob.match(name) for glob in globs)

    return lambda names: any(map(matches, names))


def regex_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Match listed names, and names that a regex after `re:` matches from the start (the rule of compressed-tensors).

    A class such as `Linear` matches no module here; the caller interprets it.

    Raises:
        UnreadablePattern: a regex cannot be matched in bounded time.
    """
    plain = frozenset(pattern for pattern in patterns if not pattern.startswith("re:"))
    regexes = ModuleRegexes(_distinct(pattern[3:] for pattern in patterns if pattern.startswith("re:")))
    return lambda names: any(name in plain or regexes.match(name) for name in names)


@cache
def _prefixes(name: str) -> frozenset[str]:
    """A module's name and the names of all modules that contain it."""
    parts = name.split(".")
    return frozenset(".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _distinct(patterns: Iterable[str]) -> list[str]:
    """The distinct patterns of a list, up to `MAX_PATTERNS`."""
    distinct = list(dict.fromkeys(patterns))
    if len(distinct) > MAX_PATTERNS:
        raise UnreadablePattern(f"{len(distinct)} patterns, more than {MAX_PATTERNS}")
    return distinct
