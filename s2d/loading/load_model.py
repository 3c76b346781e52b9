"""Load a Hugging Face folder of the Llama family as a decoder; write drafts and exits.

Only safetensors and only the architectures of `s2d.loading.read_config` are read, and no remote code runs. The exits of a draft
are in its sidecar `s2d.json`.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import PathLike, atomic_folder, check_new_folder
from perfmodel.core.errors import BadFile, BadPolicy, Mismatch, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.config_file import read_config_file
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import CONFIG
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.loading.checkpoint import BadTensor, layer_index, open_weights, tensor_names, weights_sha256
from s2d.loading.convert_weights import (
    Checkpoint,
    ShardLayer,
    convert_weights,
    random_weights,
    with_reduced_head,
    with_vocab_size,
)
from s2d.loading.exits import check_exit_depth
from s2d.loading.read_config import config_geometry, first_layers_config, read_config, read_geometry
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar
from s2d.model.cuda_graphs import GraphDecoder
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

DECODERS: dict[LaunchMode, type[Decoder]] = {"eager": Decoder, "graph": GraphDecoder}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A decoder ready to run, and the facts that identify it."""

    decoder: Decoder
    geometry: ModelGeometry
    exit_layers: tuple[int, ...]
    """In a pair's draft, the exits that `s2d.loading.exits` finds; otherwise those of the sidecar; empty without a sidecar."""
    calibration: Calibration | None
    """The sidecar's calibration of these exits; None without one."""
    sha256: str
    """Hash of the weight files and of the tokens of a reduced head."""
    folder: str
    dtype: Dtype


def read_geometry_with_head(folder: PathLike) -> ModelGeometry:
    """The geometry of a model folder, including a reduced head.

    Raises:
        BadFile: config.json is missing, damaged, or of another architecture, or the sidecar is damaged.
        BadPolicy: the sidecar names exits or tokens that the model does not have.
    """
    path = Path(folder)
    geometry, sidecar = read_geometry(path), read_sidecar(path)
    if sidecar is None:
        return geometry
    check_exit_depth(sidecar.exit_layers, geometry.num_layers)
    return _with_head(geometry, sidecar.head_token_ids) if sidecar.head_token_ids else geometry


def load_model(
    folder: PathLike,
    dtype: Dtype,
    device: str = "cpu",
    *,
    mode: LaunchMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    shard_layer: ShardLayer = lambda layer, geometry: layer,
) -> LoadedModel:
    """Read a Hugging Face folder of the Llama, Mistral, Qwen2 or Qwen3 family.

    Args:
        folder: holds config.json and model.safetensors, or shards with their index.
        dtype: the dtype of the computation. The stored dtype may differ.
        device: torch's name of the device.
        mode: how passes are launched.
        kernels: the implementations of its operations.
        shard_layer: keeps this process's share of every layer. The geometry stays that of the whole model.

    Raises:
        BadFile: a file is missing, damaged, or of another architecture; or the weights do not match the config; or they are
            not finite in the requested dtype.
        BadPolicy: the sidecar names exits or tokens that the model does not have.
    """
    path = Path(folder)
    config = read_config(path)
    geometry = config_geometry(config, path)
    sidecar = read_sidecar(path)
    exit_layers = sidecar.exit_layers if sidecar else ()
    check_exit_depth(exit_layers, geometry.num_layers)
    with open_weights(path) as tensors:
        try:
            checkpoint = Checkpoint(read=tensors, config=config, geometry=geometry)
            weights = convert_weights(checkpoint, torch_dtype(dtype), device, shard_layer, kernels=kernels)
        except BadTensor as err:
            raise tensors.with_file(err) from err
        tensors.check_all_layers_read(geometry.num_layers)
    sha256 = weights_sha256(path)
    if sidecar and sidecar.head_token_ids:
        head_tokens = sidecar.head_token_ids
        geometry = _with_head(geometry, head_tokens)
        weights = with_reduced_head(weights, head_tokens)
        sha256 = hashlib.sha256(f"{sha256} saying {head_tokens!r}".encode()).hexdigest()
    return LoadedModel(
        decoder=DECODERS[mode](geometry, weights),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=sidecar.calibration if sidecar else None,
        sha256=sha256,
        folder=str(folder),
        dtype=dtype,
    )


def _with_head(geometry: ModelGeometry, head_tokens: tuple[int, ...]) -> ModelGeometry:
    """The geometry with a head for these tokens alone."""
    if head_tokens[-1] >= geometry.vocab_size:
        raise BadPolicy(f"token {head_tokens[-1]} for the reduced head of {geometry.name}", f"ids below {geometry.vocab_size}")
    return replace(geometry, head_vocab_size=None if len(head_tokens) == geometry.vocab_size else len(head_tokens))


def with_target_vocab(draft: LoadedModel, num_tokens: Tokens) -> LoadedModel:
    """A draft with the vocabulary size of its target.

    Models with one tokenizer may pad it to different sizes (Qwen2.5 7B and 0.5B). Padding tokens of the target get a zero
    embedding. The draft never proposes padding tokens of either model.

    Args:
        draft: a draft with its own padding.
        num_tokens: size of the target's vocabulary.
    """
    if draft.decoder.vocab_size == num_tokens:
        return draft
    weights = with_vocab_size(draft.decoder.weights, num_tokens)
    return replace(draft, decoder=DECODERS[draft.decoder.mode](draft.geometry, weights))


def random_model(
    geometry: ModelGeometry,
    exit_layers: tuple[int, ...],
    dtype: Dtype,
    device: str = "cpu",
    *,
    mode: LaunchMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    seed: int,
) -> LoadedModel:
    """A model of a given shape with random weights, to time shapes without a checkpoint.

    Raises:
        UserInputError: the model's layers differ from a Llama's. Its norms and biases do not follow from the shapes.
    """
    if geometry.differences_from_llama:
        raise UserInputError(
            f"model {geometry.name!r} has {', '.join(geometry.differences_from_llama)}, expected the layers of a Llama: random "
            "weights exist for these only. Give a model with such layers."
        )
    return LoadedModel(
        decoder=DECODERS[mode](geometry, random_weights(geometry, torch_dtype(dtype), device, seed=seed, kernels=kernels)),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=None,
        sha256=hashlib.sha256(f"random {geometry!r} {exit_layers} {dtype} {seed}".encode()).hexdigest(),
        folder="",
        dtype=dtype,
    )


def load_tokenizer(folder: PathLike) -> PreTrainedTokenizerFast:
    """The tokenizer of a model folder.

    Raises:
        BadFile: there is no tokenizer, or it cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise BadFile(path, "there is no such file", "Give a model folder with its tokenizer")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # the tokenizers library raises nothing narrower
        raise BadFile(path, f"not a readable tokenizer ({err})", "Fetch the model again") from err


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of the mapping from tokens to ids. The other contents of the tokenizer files do not change it."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def check_same_vocabulary(draft: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
    """Refuse a draft whose token ids denote other tokens than the target's.

    Raises:
        Mismatch: names the first token that differs.
    """
    draft_tokens = {token_id: token for token, token_id in draft.get_vocab().items()}
    target_tokens = {token_id: token for token, token_id in target.get_vocab().items()}
    for token_id in sorted(draft_tokens.keys() | target_tokens.keys()):
        if draft_tokens.get(token_id) != target_tokens.get(token_id):
            raise Mismatch(
                "the draft's vocabulary",
                made_for=f"a target whose token {token_id} is {draft_tokens.get(token_id)!r}",
                given=f"one whose token {token_id} is {target_tokens.get(token_id)!r}",
                fix="Draft and target must share one tokenizer, token by token: use another draft",
            )


def check_pair(target: LoadedModel, draft: LoadedModel | None) -> None:
    """Refuse a target and a draft that cannot decode together. `check_same_vocabulary` compares their tokens.

    Raises:
        UserInputError: the target has a reduced head.
        Mismatch: their vocabularies have different sizes.
        BadPolicy: the draft has no exits.
    """
    if target.geometry.has_reduced_head:
        raise UserInputError(
            f"target {target.geometry.name} has {target.geometry.head_label}, expected one for the whole vocabulary. "
            "Give the original model."
        )
    if draft is None:
        return
    check_vocab_sizes(target.geometry.name, target.decoder.vocab_size, draft.geometry.name, draft.decoder.vocab_size)
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft.geometry.name} without exits", "its exit layers: `load_pair` finds them")


def check_vocab_sizes(target: str, target_tokens: Tokens, draft: str, draft_tokens: Tokens) -> None:
    """Refuse a draft with logits for more or fewer tokens than its target.

    Raises:
        Mismatch: with both sizes.
    """
    if draft_tokens != target_tokens:
        raise Mismatch(
            f"draft {draft}",
            made_for=f"a vocabulary of {draft_tokens} tokens",
            given=f"{target} with {target_tokens}",
            fix="Use a draft with the target's tokenizer; `load_pair` corrects different padding",
        )


def context_tokens(target: LoadedModel, draft: LoadedModel | None) -> Tokens:
    """The longest text that fits both models. Every layer attends to all of it."""
    models = (target, draft) if draft else (target,)
    return min(model.geometry.full_attention_tokens for model in models)


def save_draft(source: PathLike, out: PathLike, sidecar: Sidecar) -> None:
    """Copy a model folder and add a sidecar, completely or not at all.

    Raises:
        BadPolicy: an exit is deeper than the model.
        BadFile: `out` exists, or cannot be made.
        OutOfSpace: the disk is full.
    """
    check_exit_depth(sidecar.exit_layers, read_geometry(Path(source)).num_layers)
    with atomic_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_sidecar(folder, sidecar)


def export_exit(folder: PathLike, exit_layer: int, out: PathLike) -> None:
    """Write one exit as an ordinary checkpoint with fewer layers, completely or not at all. Any engine can load it.

    Raises:
        BadPolicy: the model has fewer layers.
        BadFile: `out` exists, or cannot be made.
        OutOfSpace: the disk is full.
    """
    source = Path(folder)
    read_config(source)  # refuses models that we do not load
    config = first_layers_config(read_config_file(source / CONFIG), exit_layer)
    check_new_folder(out)
    with open_weights(source) as read:
        tensors = {name: read(name).contiguous() for name in tensor_names(source) if layer_index(name) < exit_layer}
    with atomic_folder(out) as destination:
        save_file(tensors, destination / "model.safetensors", metadata={"format": "pt"})
        (destination / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for extra in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / extra).is_file():
                shutil.copyfile(source / extra, destination / extra)
