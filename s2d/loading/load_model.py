"""Hugging Face folders of the wider Llama family to lean decoders, and back: safetensors, tokenizer, our sidecar.

No other format, no other architecture (`s2d.loading.read_config`), no remote code. What a nested checkpoint needs besides is in `s2d.json`.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from perfmodel.core.disk import PathLike, check_new, whole_folder
from perfmodel.core.errors import BadFile, BadPolicy, Mismatch, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import EngineMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels
from s2d.loading.checkpoint import BadTensor, layer_of, open_weights, tensor_names, weights_sha256
from s2d.loading.convert_weights import KeepLayer, convert_weights, random_weights, with_reduced_head, with_vocabulary
from s2d.loading.read_config import geometry_of, read_config, read_geometry, read_raw_config, shallower
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar
from s2d.model.cuda_graphs import GraphDecoder
from s2d.model.decoder import Decoder
from s2d.model.torch_dtypes import torch_dtype

DECODERS: dict[EngineMode, type[Decoder]] = {"eager": Decoder, "graph": GraphDecoder}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A decoder ready to run, and what names it."""

    decoder: Decoder
    geometry: ModelGeometry
    exit_layers: tuple[int, ...]
    """Of a draft, those that `s2d.loading.exits` finds; else those of the sidecar, none where it has none."""
    calibration: Calibration | None
    """Of these exits, from the sidecar; None where it has none."""
    sha256: str
    """Hash of the weight files, and of the tokens of a reduced head."""
    folder: str
    dtype: Dtype


def read_shapes(folder: PathLike) -> ModelGeometry:
    """The geometry of a model folder, a reduced head included.

    Raises:
        BadFile: config.json or the sidecar is missing, damaged, or of another architecture.
        BadPolicy: exits or tokens of the sidecar that the model does not have.
    """
    path = Path(folder)
    geometry, sidecar = read_geometry(path), read_sidecar(path)
    if sidecar is None:
        return geometry
    _check_exit_layers(sidecar.exit_layers, geometry.num_layers)
    return _reduced(geometry, sidecar.num_head_tokens) if sidecar.num_head_tokens else geometry


def load_model(
    folder: PathLike,
    dtype: Dtype,
    device: str = "cpu",
    *,
    engine: EngineMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    kept: KeepLayer = lambda layer, geometry: layer,
) -> LoadedModel:
    """Read a Hugging Face folder of the Llama, Mistral, Qwen2 or Qwen3 family.

    Args:
        folder: holds config.json and model.safetensors, or shards with their index.
        dtype: the numbers to compute in, whatever is stored.
        device: torch's name for it.
        engine: how passes are launched.
        kernels: what it computes with.
        kept: of every layer; the geometry stays that of the whole.

    Raises:
        BadFile: something is missing, damaged, or of another architecture; or the weights are not those of the config, or
            not finite in the dtype asked for.
        BadPolicy: exits of the sidecar that the model does not have.
    """
    path = Path(folder)
    config = read_config(path)
    geometry = geometry_of(config, path)
    sidecar = read_sidecar(path)
    exit_layers = sidecar.exit_layers if sidecar else ()
    _check_exit_layers(exit_layers, geometry.num_layers)
    with open_weights(path) as read:
        try:
            weights = convert_weights(read, config, geometry, torch_dtype(dtype), device, kept, kernels=kernels)
        except BadTensor as err:
            raise read.refused(err) from err
        read.check_all_layers_read(geometry.num_layers)
    sha256 = weights_sha256(path)
    if sidecar and sidecar.num_head_tokens:
        geometry, said = _reduced(geometry, sidecar.num_head_tokens), sidecar.num_head_tokens
        weights = with_reduced_head(weights, said)
        sha256 = hashlib.sha256(f"{sha256} saying {said!r}".encode()).hexdigest()
    return LoadedModel(
        decoder=DECODERS[engine](geometry, weights),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=sidecar.calibration if sidecar else None,
        sha256=sha256,
        folder=str(folder),
        dtype=dtype,
    )


def _reduced(geometry: ModelGeometry, said: tuple[int, ...]) -> ModelGeometry:
    if said[-1] >= geometry.vocab_size:
        raise BadPolicy(f"token {said[-1]} for the reduced head of {geometry.name}", f"ids below {geometry.vocab_size}")
    return replace(geometry, head_vocab_size=None if len(said) == geometry.vocab_size else len(said))


def with_vocabulary_of(draft: LoadedModel, num_tokens: Tokens) -> LoadedModel:
    """A draft that gives logits of its target's tokens, where one tokenizer was padded to two sizes (Qwen2.5 7B and 0.5B).

    Padding that only the target has is embedded as nothing and never drafted; what only the draft has is not drafted either.

    Args:
        draft: with a vocabulary of its own.
        num_tokens: of the target's vocabulary.
    """
    if draft.decoder.vocab_size == num_tokens:
        return draft
    weights = with_vocabulary(draft.decoder.weights, num_tokens)
    return replace(draft, decoder=DECODERS[draft.decoder.engine](draft.geometry, weights))


def random_model(
    geometry: ModelGeometry,
    exit_layers: tuple[int, ...],
    dtype: Dtype,
    device: str = "cpu",
    *,
    engine: EngineMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    seed: int,
) -> LoadedModel:
    """A model of a given shape with random weights, to time shapes for which there is no checkpoint.

    Raises:
        UserInputError: it is not a Llama's: which norms or biases there are, shapes do not tell.
    """
    if geometry.differences_from_llama:
        what = ", ".join(geometry.differences_from_llama)
        raise UserInputError(
            f"model {geometry.name!r} has {what}, and weights are drawn for a Llama's layers only. Give one of a Llama's shape."
        )
    return LoadedModel(
        decoder=DECODERS[engine](geometry, random_weights(geometry, torch_dtype(dtype), device, seed=seed, kernels=kernels)),
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
        BadFile: there is none that can be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise BadFile(path, "there is no such file", "Give a model folder with its tokenizer")
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # the tokenizers library raises nothing narrower
        raise BadFile(path, f"not a readable tokenizer ({err})", "Fetch the model again") from err


def tokenizer_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of the token -> id mapping, whatever else the files say."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def check_same_vocabulary(draft: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast) -> None:
    """Refuse a draft that means other tokens by the same ids.

    Raises:
        Mismatch: names the first token that differs.
    """
    ours = {index: token for token, index in draft.get_vocab().items()}
    theirs = {index: token for token, index in target.get_vocab().items()}
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            raise Mismatch(
                "the draft's vocabulary",
                made_for=f"a target whose token {index} is {ours.get(index)!r}",
                given=f"one whose token {index} is {theirs.get(index)!r}",
                fix="Draft and target must share one tokenizer, token by token: use another draft",
            )


def save_draft(source: PathLike, out: PathLike, sidecar: Sidecar) -> None:
    """Copy a model folder as a draft, whole or not at all: the checkpoint as it is, the sidecar beside it.

    Raises:
        BadPolicy: exits deeper than the model.
        BadFile: there is something at `out` already, or it cannot be made.
        OutOfSpace: the disk is full.
    """
    _check_exit_layers(sidecar.exit_layers, read_geometry(Path(source)).num_layers)
    with whole_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_sidecar(folder, sidecar)


def _check_exit_layers(exit_layers: tuple[int, ...], num_layers: int) -> None:
    if exit_layers and exit_layers[-1] > num_layers:
        raise BadPolicy(f"exit layer {exit_layers[-1]} of a model with {num_layers} layers", f"exits up to {num_layers}")


def export_exit(folder: PathLike, exit_layer: int, out: PathLike) -> None:
    """Write one exit as an ordinary checkpoint with fewer layers, which any engine can load, whole or not at all.

    Raises:
        BadPolicy: the model has fewer layers.
        BadFile: there is something at `out` already, or it cannot be made.
        OutOfSpace: the disk is full.
    """
    source = Path(folder)
    read_config(source)
    config = shallower(read_raw_config(source), exit_layer)
    check_new(out)
    with open_weights(source) as read:
        kept = {name: read(name).contiguous() for name in tensor_names(source) if layer_of(name) < exit_layer}
    with whole_folder(out) as destination:
        save_file(kept, destination / "model.safetensors", metadata={"format": "pt"})
        (destination / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for extra in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / extra).is_file():
                shutil.copyfile(source / extra, destination / extra)
