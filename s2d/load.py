"""Hugging Face folders of the Llama family to lean decoders, and back: config.json, safetensors, tokenizer, our sidecar.

No other format, no other architecture, no remote code. What a nested checkpoint needs besides lives in `s2d.json`.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, PreTrainedTokenizerFast

from perfmodel.disk import PathLike, check_new, whole_folder
from perfmodel.errors import BadFile, BadPolicy, Mismatch, UnknownName, UserInputError
from perfmodel.geometry import ModelGeometry
from perfmodel.profile import Dtype
from s2d.checkpoint import layer_of, open_weights, tensor_names, weights_sha256
from s2d.fold import fold_weights, random_weights
from s2d.nested import Decoder
from s2d.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar

TORCH_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SUPPORTED_ROPE = ("default", "linear", "llama3")
FAMILY_FOLDER = Path(__file__).parent / "family"
FAMILY_PREFIX = "ref-"
"""Models of the reference family are named `ref-draft`, `ref-target-16` …: the prefix and the folder's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A decoder ready to run, and what names it."""

    decoder: Decoder
    geometry: ModelGeometry
    exit_layers: tuple[int, ...]
    """From the sidecar; empty for a model that has no trained early exits."""
    calibration: Calibration | None
    """From the sidecar; None where it has none."""
    sha256: str
    """Hash of the weight files."""
    folder: str
    dtype: Dtype


def find_model(name: str) -> Path:
    """The folder of a model: a path, or a name of the reference family.

    Raises:
        UnknownName: neither.
    """
    known = {FAMILY_PREFIX + path.parent.name: path.parent for path in sorted(FAMILY_FOLDER.glob("*/config.json"))}
    if name in known:
        return known[name]
    if Path(name).is_dir():
        return Path(name)
    raise UnknownName("model", name, known, otherwise="give a folder with config.json and model.safetensors")


def load_model(folder: PathLike, dtype: Dtype, device: str = "cpu") -> LoadedModel:
    """Read a Hugging Face folder of the Llama family.

    Args:
        folder: holds config.json and model.safetensors, or shards with their index.
        dtype: the numbers to compute in, whatever is stored.
        device: torch's name for it.

    Raises:
        BadFile: something is missing, damaged, or of another architecture.
        BadPolicy: exits of the sidecar that the model does not have.
    """
    path = Path(folder)
    config = read_config(path)
    geometry = geometry_of(config, path)
    sidecar = read_sidecar(path)
    exit_layers = sidecar.exit_layers if sidecar else ()
    _check_exit_layers(exit_layers, geometry.num_layers)
    with open_weights(path) as read:
        weights = fold_weights(read, config, geometry, torch_dtype(dtype), device)
    return LoadedModel(
        decoder=Decoder(geometry, weights),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=sidecar.calibration if sidecar else None,
        sha256=weights_sha256(path),
        folder=str(folder),
        dtype=dtype,
    )


def random_model(
    geometry: ModelGeometry, exit_layers: tuple[int, ...], dtype: Dtype, device: str = "cpu", *, seed: int
) -> LoadedModel:
    """A model of a given shape with random weights, to time shapes for which there is no checkpoint.

    Raises:
        UserInputError: the shape is not a Llama's.
    """
    if geometry.departures:
        what = ", ".join(geometry.departures)
        raise UserInputError(
            f"model {geometry.name!r} has {what}, which this runtime does not run. Give one of a Llama's shape."
        )
    return LoadedModel(
        decoder=Decoder(geometry, random_weights(geometry, torch_dtype(dtype), device, seed=seed)),
        geometry=geometry,
        exit_layers=exit_layers,
        calibration=None,
        sha256=hashlib.sha256(f"random {geometry!r} {exit_layers} {dtype} {seed}".encode()).hexdigest(),
        folder="",
        dtype=dtype,
    )


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """The tensor type of a dtype's name.

    Raises:
        UnknownName: a dtype this runtime does not compute in.
    """
    if dtype not in TORCH_DTYPES:
        raise UnknownName("dtype", dtype, TORCH_DTYPES)
    return TORCH_DTYPES[dtype]


def read_config(folder: Path) -> LlamaConfig:
    """config.json of a folder, refused unless it is a Llama that the decoder computes exactly."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as err:
        raise BadFile(path, "there is no such file", "Give a Hugging Face model folder") from err
    except (OSError, ValueError) as err:
        raise BadFile(path, f"not a readable config ({err})", "Fetch the model again") from err
    if raw.get("model_type") != "llama":
        raise BadFile(path, f"model_type {raw.get('model_type')!r}, expected 'llama'", "Give a model of the Llama family")
    config = LlamaConfig.from_dict(raw)
    rope_type = config.rope_parameters["rope_type"]
    if config.attention_bias or config.mlp_bias:
        raise BadFile(path, "its layers have biases, expected none", "Give a Llama without biases")
    if config.hidden_act != "silu":
        raise BadFile(path, f"hidden_act {config.hidden_act!r}, expected 'silu'", "Give a Llama with a gated SiLU MLP")
    if rope_type not in SUPPORTED_ROPE:
        expected = ", ".join(SUPPORTED_ROPE)
        raise BadFile(path, f"rope_type {rope_type!r}, expected {expected}", "Give a model with such positions")
    return config


def geometry_of(config: LlamaConfig, folder: Path) -> ModelGeometry:
    """The shapes that a config declares."""
    name = folder.resolve().name
    return ModelGeometry(
        name=FAMILY_PREFIX + name if folder.resolve().parent == FAMILY_FOLDER else name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tied_embeddings=config.tie_word_embeddings,
        max_context_tokens=config.max_position_embeddings,
        source="its config.json",
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


def check_pair(target: LoadedModel, draft: LoadedModel | None) -> None:
    """Refuse a draft that cannot speak for a target; whether tokens mean the same is `check_same_vocabulary`'s to say.

    Raises:
        Mismatch: vocabularies of different sizes, or other devices.
        BadPolicy: a draft without exits.
    """
    if draft is None:
        return
    check_vocab_sizes(target.geometry, draft.geometry)
    if not draft.exit_layers:
        raise BadPolicy(f"draft {draft.geometry.name} without exits", "exit layers in its sidecar s2d.json")


def check_vocab_sizes(target: ModelGeometry, draft: ModelGeometry) -> None:
    """Refuse a draft that has not as many tokens as its target.

    Raises:
        Mismatch: says how many both have.
    """
    if draft.vocab_size != target.vocab_size:
        raise Mismatch(
            f"draft {draft.name}",
            made_for=f"a vocabulary of {draft.vocab_size} tokens",
            given=f"{target.name} with {target.vocab_size}",
            fix="Use a draft that shares the target's tokenizer",
        )


def save_draft(source: PathLike, out: PathLike, sidecar: Sidecar) -> None:
    """Copy a model folder as a draft, whole or not at all: the checkpoint as it is, the sidecar beside it.

    Raises:
        BadPolicy: exits deeper than the model.
        BadFile: there is something at `out` already, or it cannot be made.
        OutOfSpace: the disk is full.
    """
    _check_exit_layers(sidecar.exit_layers, read_config(Path(source)).num_hidden_layers)
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
    config = read_config(source)
    if not 1 <= exit_layer <= config.num_hidden_layers:
        raise BadPolicy(f"exit layer {exit_layer}", f"from 1 to the model's {config.num_hidden_layers} layers")
    check_new(out)
    with open_weights(source) as read:
        kept = {name: read(name).contiguous() for name in tensor_names(source) if layer_of(name) < exit_layer}
    with whole_folder(out) as destination:
        save_file(kept, destination / "model.safetensors", metadata={"format": "pt"})
        raw = json.loads((source / "config.json").read_text("utf-8")) | {"num_hidden_layers": exit_layer}
        (destination / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for extra in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (source / extra).is_file():
                shutil.copyfile(source / extra, destination / extra)
