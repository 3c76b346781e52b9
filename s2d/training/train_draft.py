"""From a target's first layers to a nested draft: `s2d-train draft` for any folder that s2d-run runs.

S2D §3.1: the draft starts as the target's first layers, embedding, norm and head, and every exit is trained by SoFT.
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from perfmodel.core.disk import check_new, whole_folder
from perfmodel.core.errors import UserInputError
from s2d.decoding.pair import EncodedPrompt
from s2d.loading.checkpoint import layer_of, weights_sha256
from s2d.loading.load_model import check_same_vocabulary, load_tokenizer
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_geometry, shallower
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.model.torch_device import use_device
from s2d.training.calibrate_draft import calibrate_draft
from s2d.training.resume import LOSS_NAME, remove_training, training_folder
from s2d.training.train_sorted import Batch, load_trainable, train_sorted, windows
from s2d.training.training import Training, TrainSettings, write_training

HELD_OUT_ONE_IN = 20
PROMPT_TOKENS = 64
NEW_TOKENS = 64
MAX_PROMPTS = 32
"""What a draft is calibrated on: so many tokens that each target writes after so many prompts of so many tokens."""


def first_layers(target: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A model of its own that starts as the target's first layers, embedding, norm and head, in float32.

    Raises:
        UserInputError: the target is not that deep.
    """
    depth = target.config.num_hidden_layers
    if not 1 <= num_layers <= depth:
        raise UserInputError(f"a draft of {num_layers} layers from a target of {depth}: give --exits up to {depth}")
    config = type(target.config).from_dict(shallower(target.config.to_dict(), num_layers))
    draft = type(target)(config).float()
    kept = {name: value for name, value in target.state_dict().items() if layer_of(name) < num_layers}
    draft.load_state_dict(kept)
    return draft


def train_draft(
    target_name: str,
    exit_layers: Sequence[int],
    texts: Sequence[str],
    settings: TrainSettings,
    output: Path,
    *,
    teacher_names: Sequence[str],
    device: str,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train a nested draft on texts, calibrate it on those left out, and save it as a Hugging Face folder, whole or not at all.

    Args:
        target_name: a folder, or a model of the reference family.
        exit_layers: rising layer counts; the last is the draft's depth.
        texts: what to train on; about a twentieth is left out for calibration.
        settings: how long and how fast.
        output: the folder to make.
        teacher_names: targets whose distributions the draft is distilled from, in turns; none trains on the text alone.
        device: torch's name for where to train.
        on_step: told every finished step and its loss.

    Raises:
        UserInputError: fewer tokens than one training sequence, or a longer sequence than the target's context.
        Mismatch: `<output>.partial` holds another training, or a teacher has another tokenizer.
        OutOfSpace: the disk is full; the state so far is kept.
        KeyboardInterrupt: after the state so far was written to `<output>.partial`; run again to go on.
    """
    use_device(device)
    check_new(output)
    target_folder, teacher_folders = find_model(target_name), [find_model(name) for name in teacher_names]
    tokenizer = load_tokenizer(target_folder)
    for folder in teacher_folders:
        check_same_vocabulary(tokenizer, load_tokenizer(folder))
    tokens, held_out = _split_tokens(_token_lists(tokenizer, texts))
    _check_sequence_tokens(settings.sequence_tokens, len(tokens), target_folder)
    training = Training(
        start_sha256=weights_sha256(target_folder),
        exit_layers=tuple(exit_layers),
        text_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        teacher_sha256s=tuple(weights_sha256(folder) for folder in teacher_folders),
        settings=settings,
    )
    torch.manual_seed(settings.seed)
    partial = output.with_name(output.name + ".partial")
    with training_folder(partial):
        draft = first_layers(load_trainable(target_name), exit_layers[-1]).to(device)
        teachers = [load_trainable(name).to(device) for name in teacher_names]
        batches = _batches(tokens, settings, len(teachers))
        train_sorted(draft, batches, training, teachers=teachers, folder=partial, on_step=on_step)
        del teachers  # calibration loads what it needs
        with whole_folder(output) as folder:
            draft.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_training(folder, training)
            shutil.copyfile(partial / LOSS_NAME, folder / LOSS_NAME)
            write_sidecar(folder, Sidecar(exit_layers=tuple(exit_layers), norm="shared-final-norm", calibration=None))
            _calibrate(folder, list(dict.fromkeys([target_name, *teacher_names])), held_out, device)
    remove_training(partial)


def _check_sequence_tokens(sequence_tokens: int, num_tokens: int, target_folder: Path) -> None:
    """Refuse sequences that the text or the target's context is too short for."""
    if num_tokens < sequence_tokens + 2:
        raise UserInputError(
            f"the texts hold {num_tokens} tokens to train on and one training sequence takes {sequence_tokens + 1}: "
            "give more text with --text, or a smaller --sequence-tokens"
        )
    longest = read_geometry(target_folder).full_attention_tokens
    if sequence_tokens > longest:
        raise UserInputError(
            f"--sequence-tokens {sequence_tokens} is longer than the target's context of {longest} tokens: "
            f"give at most {longest}"
        )


def _token_lists(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Every text as tokens, an end-of-text token after each."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return [ids + ends for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


def _split_tokens(texts: Sequence[list[int]]) -> tuple[np.ndarray, list[int]]:
    """All but a twentieth in one sequence to train on, int32 [num_tokens], and the rest in another to calibrate on.

    Left out is every twentieth text; of fewer texts than twenty, the last twentieth of each.
    """
    if len(texts) >= HELD_OUT_ONE_IN:
        kept = [ids for number, ids in enumerate(texts, start=1) if number % HELD_OUT_ONE_IN]
        held_out = list(texts[HELD_OUT_ONE_IN - 1 :: HELD_OUT_ONE_IN])
    else:
        cuts = [len(ids) - math.ceil(len(ids) / HELD_OUT_ONE_IN) for ids in texts]
        kept = [ids[:cut] for ids, cut in zip(texts, cuts, strict=True)]
        held_out = [ids[cut:] for ids, cut in zip(texts, cuts, strict=True)]
    return np.asarray([*chain(*kept)], dtype=np.int32), [*chain(*held_out)]


def _calibrate(draft: Path, target_names: Sequence[str], held_out: list[int], device: str) -> None:
    """Calibrate on prompts cut from the tokens left out, evenly over all of them."""
    shortest = min(read_geometry(find_model(name)).full_attention_tokens for name in (str(draft), *target_names))
    size = max(1, min(PROMPT_TOKENS, len(held_out), shortest // 2))
    number = max(1, min(MAX_PROMPTS, len(held_out) // size))
    starts = np.linspace(0, len(held_out) - size, number).astype(int).tolist()
    prompts = [EncodedPrompt(name=f"{at}", category="", token_ids=tuple(held_out[at : at + size])) for at in starts]
    new_tokens = min(NEW_TOKENS, shortest - size)
    calibrate_draft(draft, target_names, lambda pair: prompts, max_new_tokens=new_tokens, device=device)


def _batches(tokens: np.ndarray, settings: TrainSettings, num_teachers: int) -> Iterator[Batch]:
    """Random windows of the text, the teachers taking turns."""
    for number, ids in enumerate(windows(tokens, settings, 1)):
        yield Batch(token_ids=ids, teacher=number % num_teachers if num_teachers else None)
