"""Which modules of a decoder the lists in a quantisation block name: by transformers' rule, by glob, by name or by regex.

A module has several names: files of multimodal models, of GPT-2's kind and of fused projections call it otherwise. A list
matches a module when it matches any of its names.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from perfmodel.quantisation.module_regex import ModuleRegexes, UnreadablePattern

ModuleMatcher = Callable[[Sequence[str]], bool]
"""Whether any of a module's names is matched."""

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
"""What files call the LM head."""
EMBEDDING_NAMES = (
    "model.embed_tokens",
    "language_model.model.embed_tokens",
    "model.language_model.embed_tokens",
    "language_model.embed_tokens",
    "model.text_model.embed_tokens",
    "model.decoder.embed_tokens",
    "transformer.wte",
)
"""What files call the embedding."""
MAX_PATTERNS = 1000
"""Of one list that are no plain names."""
_IS_NAME = re.compile(r"[\w.-]*")
_BORDER = r"(?:(?<=\.)|(?=\.|$))"
"""Beside a dot, or at the end."""


def layer_names(layer: int, module: str) -> tuple[str, ...]:
    """What files call a module of a zero-based layer (`ModelGeometry.layer_matrices` has the modules)."""
    return tuple(f"{layers}.{layer}.{part}" for layers in _LAYERS for part in _PARTS[module])


def transformers_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Names that transformers leaves unconverted: a name, regex or beginning up to a dot, or an ending.

    That of `transformers.quantizers.quantizers_utils.should_convert_module`.

    Raises:
        UnreadablePattern: one of the patterns cannot be matched in bounded time.
    """
    plain = frozenset(pattern.strip(".") for pattern in patterns if _IS_NAME.fullmatch(pattern))
    regexes = ModuleRegexes(_limited(pattern for pattern in patterns if not _IS_NAME.fullmatch(pattern)), _BORDER)
    endings = tuple(pattern for pattern in patterns if pattern)

    def matches(name: str) -> bool:
        return name.endswith(endings) or bool(plain & _beginnings(name)) or regexes.match(name)

    return lambda names: any(map(matches, names))


def glob_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Names that a glob matches, and all modules inside a module that is named.

    Raises:
        UnreadablePattern: there are too many.
    """
    plain = frozenset(pattern for pattern in patterns if _IS_NAME.fullmatch(pattern))
    globs = [
        re.compile(fnmatch.translate(pattern))
        for pattern in _limited(pattern for pattern in patterns if not _IS_NAME.fullmatch(pattern))
    ]

    def matches(name: str) -> bool:
        return bool(plain & _beginnings(name)) or any(glob.match(name) for glob in globs)

    return lambda names: any(map(matches, names))


def regex_matcher(patterns: Sequence[str]) -> ModuleMatcher:
    """Names that are listed, or that a regex after `re:` matches from the start: compressed-tensors' rule.

    A class (`Linear`) names no module; the reader gives it its meaning.

    Raises:
        UnreadablePattern: one of the regexes cannot be matched in bounded time.
    """
    plain = frozenset(pattern for pattern in patterns if not pattern.startswith("re:"))
    regexes = ModuleRegexes(_limited(pattern[3:] for pattern in patterns if pattern.startswith("re:")))
    return lambda names: any(name in plain or regexes.match(name) for name in names)


@cache
def _beginnings(name: str) -> frozenset[str]:
    """A name and the modules it lies in."""
    parts = name.split(".")
    return frozenset(".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _limited(patterns: Iterable[str]) -> list[str]:
    """The patterns of a list, each once."""
    distinct = list(dict.fromkeys(patterns))
    if len(distinct) > MAX_PATTERNS:
        raise UnreadablePattern(f"{len(distinct)} patterns, more than {MAX_PATTERNS}")
    return distinct
