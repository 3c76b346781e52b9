"""The files that a profile of an engine loads: exits as checkpoints, all models in the engine's format, and prompts as ids.

Files are kept in a folder and named after the hash of the weights they were made from, so that later profiles reuse them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.console import print_err
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import GIB, Bytes, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from profiler.engines.engine_request import Arm, EngineProfileRequest, chosen_exits
from s2d.engines.checkpoints import make_checkpoint
from s2d.loading.checkpoint import weights_sha256
from s2d.loading.exits import find_exits, requested_exits
from s2d.loading.load_model import check_same_vocabulary, check_vocab_sizes, export_exit, load_tokenizer, tokenizer_sha256
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import read_sidecar
from s2d.prompts.conversation import Prompt
from s2d.prompts.special_tokens import text_ids

_CASTING_ENGINES = ("s2d", "vllm", "sglang", "transformers")
"""Engines that load a model folder in the requested type, whatever its files have."""
_CACHE_MARGIN = 1.5
"""Engines round caches up to blocks and share them unevenly between the models."""
_CACHE_BYTES_PER_VALUE = 4
_HASH_CHARS = 12
"""Characters of a hash in the name of a file: two models of one folder never share them by chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePrompt:
    """A prompt as token ids, the same for every engine."""

    name: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModels:
    """Models in the engine's format, what identifies them, and the prompts."""

    target: ModelGeometry
    target_sha256: str
    draft: DraftGeometry
    draft_sha256: str
    tokenizer_sha256: str
    exits: tuple[int, ...]
    """The exits to run."""
    target_path: Path
    exit_paths: Mapping[int, Path]
    """By exit layer."""
    prompts: tuple[EnginePrompt, ...]
    context_tokens: Tokens
    """The longest text, with room for one block beyond it."""

    @property
    def cache_gib(self) -> int:
        """Size of a KV cache for the longest text of both models, in fp32 and with a margin."""
        values = self.target.kv_values_per_token + self.draft.model.kv_values_per_token
        return math.ceil(_CACHE_MARGIN * values * _CACHE_BYTES_PER_VALUE * self.context_tokens / GIB)

    def paths(self, arm: Arm) -> tuple[Path, Path | None]:
        """The target and the draft of a configuration."""
        if arm.exit_layer is None:
            return self.target_path, None
        exit_path = self.exit_paths[arm.exit_layer]
        return (exit_path, None) if arm.is_draft_alone else (self.target_path, exit_path)

    def file_bytes(self, arm: Arm) -> Bytes:
        """Bytes of the files that a configuration loads."""
        return sum(_size(path) for path in self.paths(arm) if path is not None)


def engine_models(request: EngineProfileRequest, prompts: Sequence[Prompt]) -> EngineModels:
    """Write the exits, convert all models, and encode the prompts. Files that exist are reused.

    Args:
        request: names the models. Its folder of models exists.
        prompts: to encode.

    Raises:
        UserInputError: a model, an exit or a prompt does not fit, or the engine is not installed.
        BadFile: a file cannot be written.
    """
    target, draft = find_model(request.target), find_model(request.draft)
    target_geometry, draft_geometry = read_geometry(target), read_geometry(draft)
    sidecar = read_sidecar(draft)
    if sidecar is not None and sidecar.head_token_ids is not None:
        raise UserInputError(
            f"draft {request.draft!r} has a reduced head, expected one for the whole vocabulary: other engines load the whole "
            "head. Give the draft without its reduced head."
        )
    tokenizer = load_tokenizer(target)
    check_same_vocabulary(load_tokenizer(draft), tokenizer)
    check_vocab_sizes(target_geometry.name, target_geometry.vocab_size, draft_geometry.name, draft_geometry.vocab_size)
    available = _available_exits(draft, draft_geometry.num_layers, request.exits)
    exits = chosen_exits(request.exits, available)
    limit = min(geometry.full_attention_tokens for geometry in (target_geometry, draft_geometry))
    encoded = tuple(
        EnginePrompt(name=prompt.name, token_ids=tuple(text_ids(tokenizer, prompt.text, "parse", adds_special_tokens=True)))
        for prompt in prompts
    )
    context_tokens = _context_tokens(request, encoded, limit)
    draft_sha256 = weights_sha256(draft)
    return EngineModels(
        target=target_geometry,
        target_sha256=weights_sha256(target),
        draft=DraftGeometry(kind="separate", model=draft_geometry, exit_layers=available),
        draft_sha256=draft_sha256,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        exits=exits,
        target_path=_converted(request, target),
        exit_paths={layer: _converted(request, _exit_folder(request, draft, draft_sha256, layer)) for layer in exits},
        prompts=encoded,
        context_tokens=context_tokens,
    )


def _available_exits(draft: Path, num_layers: int, requested: tuple[int, ...] | None) -> tuple[int, ...]:
    """The exits of the draft, as a trace of it has them; as requested, if some of those are not among its own.

    Raises:
        BadPolicy: the draft is not that deep.
    """
    own = find_exits(draft, num_layers, None, is_self=False).layers
    if requested is None or set(requested) <= set(own):
        return own
    return find_exits(draft, num_layers, requested_exits(requested), is_self=False).layers


def _exit_folder(request: EngineProfileRequest, draft: Path, draft_sha256: str, layer: int) -> Path:
    """The checkpoint of an exit, written if it does not exist."""
    path = request.models_folder / f"exit-{layer}-{draft_sha256[:_HASH_CHARS]}"
    if not path.exists():
        print_err(f"writing exit {layer} as a checkpoint")
        export_exit(draft, layer, path)
    return path


def _converted(request: EngineProfileRequest, source: Path) -> Path:
    """A model in the engine's format, converted if no such file exists."""
    engine, weights = request.row, request.stored_weights
    if engine.name in _CASTING_ENGINES:
        return source
    name = f"{source.name}-{_model_hash(source)}.{engine.name}.{weights}"
    suffix = ".gguf" if engine.checkpoint == "gguf" else ""
    path = request.models_folder / f"{name}{suffix}"
    if path.exists():
        return path
    print_err(f"converting {source.name} for {engine.title}, {weights}")
    return make_checkpoint(source, engine.name, weights, path)


def _model_hash(folder: Path) -> str:
    """A hash of the weights and the configuration of a model."""
    config = (folder / "config.json").read_bytes()
    return hashlib.sha256(weights_sha256(folder).encode() + config).hexdigest()[:_HASH_CHARS]


def _context_tokens(request: EngineProfileRequest, prompts: Sequence[EnginePrompt], limit: Tokens) -> Tokens:
    """The longest prompt with its new tokens and room for one block beyond them, as far as the models go.

    Raises:
        UserInputError: a prompt is empty, or too long for the models.
    """
    num_new = request.max_new_tokens
    if num_new >= limit:
        raise UserInputError(f"--max-new-tokens {num_new}: expected less than the models' context of {limit} tokens.")
    for prompt in prompts:
        if not 1 <= len(prompt.token_ids) <= limit - num_new:
            raise UserInputError(
                f"prompt {prompt.name!r} has {len(prompt.token_ids)} tokens: expected 1 to {limit - num_new}, which with "
                f"{num_new} new ones fill the context of {limit}. Leave it out, or give a lower --max-new-tokens."
            )
    lengths = [arm.draft_tokens for arm in request.configurations or ()] or request.lengths
    return min(limit, max(len(prompt.token_ids) for prompt in prompts) + num_new + max(lengths) + 1)


def _size(path: Path) -> Bytes:
    """Bytes of a file, or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
