"""Train a nested draft from the first layers of a target: `s2d-train draft`.

The draft starts as the target's first layers, embedding, norm and head. Every exit is trained by sorted fine-tuning (S2D §3.1).
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from perfmodel.core.blocks import Block, Command, Paragraph, Printable
from perfmodel.core.disk import PathLike, as_paths, atomic_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.loading.checkpoint import layer_index, weights_sha256
from s2d.loading.exits import format_exits
from s2d.loading.load_model import check_same_vocabulary, load_tokenizer
from s2d.loading.model_folder import find_model, is_reference_model
from s2d.loading.read_config import first_layers_config, read_geometry
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.model.torch_device import use_device
from s2d.prompt_files.read_as import Form
from s2d.training.calibrate_draft import calibrate
from s2d.training.requests import CalibrateDraftRequest, TrainDraftRequest, as_names
from s2d.training.resume import LOSS_NAME, remove_training, training_folder
from s2d.training.train_sorted import Batch, load_trainable, random_windows, train_sorted
from s2d.training.training_record import TrainingRecord, TrainSettings, write_training

HELD_OUT_ONE_IN = 20
"""One text in 20 is left out of the training and used for the calibration."""
PROMPT_TOKENS: Tokens = 64
NEW_TOKENS: Tokens = 64
MAX_PROMPTS = 32
"""Limits of the calibration: prompts, their length, and the tokens that each target writes after them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedDraft(Printable):
    """A trained and calibrated draft. `print` shows what s2d-train prints."""

    folder: Path
    target: str
    exit_layers: tuple[int, ...]

    def blocks(self, *, explain: bool = False) -> list[Block]:
        """The folder, the exits, and the next command."""
        command = ["s2d-profile", "--target", self.target, "--draft", str(self.folder)]
        command += [] if is_reference_model(self.target) else ["--prompts", "path/to/prompts.jsonl"]
        return [Paragraph(f"wrote {self.folder}, exits {format_exits(self.exit_layers)}"), Command(shlex.join(command))]


def train_draft(
    target: PathLike,
    *,
    exits: Sequence[int],
    text: PathLike | Sequence[PathLike],
    output: PathLike,
    teachers: PathLike | Sequence[PathLike] = (),
    distill_frac: Frac = 0.9,
    steps: int = 1000,
    batch_sequences: int = 8,
    sequence_tokens: Tokens = 512,
    matrix_lr: float = 0.01,
    vector_lr: float = 1e-3,
    seed: int = 0,
    device: str = "cpu",
    text_format: Form = "auto",
    text_column: str | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainedDraft:
    """Train a nested draft, calibrate it on held-out text, and save it as a Hugging Face folder, completely or not at all.

    The same call resumes an interrupted training from `<output>.partial`.

    Args:
        target: a model folder, `org/name` on the Hugging Face hub, or a name of the reference family.
        exits: rising layer counts; the last is the depth of the draft.
        text: files with the training text. About a twentieth is left out for the calibration.
        output: the folder to make.
        teachers: targets to distil from, alternating. Without teachers the draft learns from the text alone.
        distill_frac: weight of the distillation in the loss.
        steps: optimizer steps.
        batch_sequences: sequences per step.
        sequence_tokens: tokens per sequence.
        matrix_lr: peak learning rate of Muon, for matrices.
        vector_lr: peak learning rate of AdamW, for embedding and norms.
        seed: seed of the batches.
        device: torch's name: `cpu`, `cuda`, `cuda:1`.
        text_format: how to read the files: by their content, or as plain text with one text per line or per file.
        text_column: column or key that holds the text; found by its name if None.
        on_step: called with the number and the loss of every finished step.

    Raises:
        UserInputError: fewer tokens than one training sequence, a sequence longer than the target's context, or a draft
            deeper than the target.
        Mismatch: `<output>.partial` holds another training, or a teacher has another tokenizer.
        BadFile: a file cannot be read, or `output` exists or cannot be made.
        OutOfSpace: the disk is full. The last saved state is kept.
        KeyboardInterrupt: after the state was saved to `<output>.partial`.

    Example:
        >>> print(s2d.train_draft(
        ...     "my-target", exits=(6, 9, 12), text="chats.jsonl", output="my-draft", teachers=["my-target"]
        ... ))  # doctest: +SKIP
        wrote my-draft, exits 6/9/12
        <BLANKLINE>
        next: s2d-profile --target my-target --draft my-draft --prompts path/to/prompts.jsonl
    """
    request = TrainDraftRequest(
        target=os.fspath(target),
        exits=tuple(exits),
        text=as_paths(text),
        output=Path(output),
        teachers=as_names(teachers),
        distill_frac=distill_frac,
        steps=steps,
        batch_sequences=batch_sequences,
        sequence_tokens=sequence_tokens,
        matrix_lr=matrix_lr,
        vector_lr=vector_lr,
        seed=seed,
        device=device,
        text_format=text_format,
        text_column=text_column,
    )
    return train(request, request.read_texts(), on_step=on_step)


def train(
    request: TrainDraftRequest, texts: Sequence[str], *, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> TrainedDraft:
    """Train a draft on texts that are already read: see `train_draft`."""
    use_device(request.device)
    target_folder, teacher_folders = find_model(request.target), [find_model(name) for name in request.teachers]
    tokenizer = load_tokenizer(target_folder)
    for folder in teacher_folders:
        check_same_vocabulary(tokenizer, load_tokenizer(folder))
    tokens, held_out = split_tokens(_tokenized(tokenizer, texts))
    _check_sequence_tokens(request.sequence_tokens, len(tokens), target_folder)
    settings = _settings(request)
    training = TrainingRecord(
        start_sha256=weights_sha256(target_folder),
        exit_layers=request.exits,
        text_sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        teacher_sha256s=tuple(weights_sha256(folder) for folder in teacher_folders),
        settings=settings,
    )
    torch.manual_seed(settings.seed)
    with training_folder(request.unfinished):
        draft = first_layers(load_trainable(request.target), request.exits[-1]).to(request.device)
        teachers = [load_trainable(name).to(request.device) for name in request.teachers]
        batches = _batches(tokens, settings, len(teachers))
        train_sorted(draft, batches, training, teachers=teachers, folder=request.unfinished, on_step=on_step)
        del teachers  # calibration loads its own models
        with atomic_folder(request.output) as folder:
            draft.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            write_training(folder, training)
            shutil.copyfile(request.unfinished / LOSS_NAME, folder / LOSS_NAME)
            write_sidecar(folder, Sidecar(exit_layers=request.exits, norm="shared-final-norm", calibration=None))
            _calibrate(folder, tuple(dict.fromkeys([request.target, *request.teachers])), held_out, request.device)
    remove_training(request.unfinished)
    return TrainedDraft(folder=request.output, target=request.target, exit_layers=request.exits)


def first_layers(target: PreTrainedModel, num_layers: int) -> PreTrainedModel:
    """A new float32 model with the target's first layers, embedding, norm and head.

    Raises:
        UserInputError: the target has fewer layers.
    """
    depth = target.config.num_hidden_layers
    if not 1 <= num_layers <= depth:
        raise UserInputError(f"a draft of {num_layers} layers from a target of {depth}: give --exits up to {depth}")
    config = type(target.config).from_dict(first_layers_config(target.config.to_dict(), num_layers))
    draft = type(target)(config).float()
    draft.load_state_dict({name: value for name, value in target.state_dict().items() if layer_index(name) < num_layers})
    return draft


def _settings(request: TrainDraftRequest) -> TrainSettings:
    """Settings of the training. The learning rate warms up over 2 % of the steps and decays over the last half."""
    return TrainSettings(
        steps=request.steps,
        warmup_steps=max(1, request.steps // 50),
        cooldown_steps=request.steps // 2,
        batch_sequences=request.batch_sequences,
        sequence_tokens=request.sequence_tokens,
        matrix_lr=request.matrix_lr,
        vector_lr=request.vector_lr,
        distill_frac=request.distill_frac,
        all_exits=True,
        seed=request.seed,
    )


def _check_sequence_tokens(sequence_tokens: Tokens, num_tokens: Tokens, target_folder: Path) -> None:
    """Refuse sequences longer than the text or the target's context."""
    if num_tokens < sequence_tokens + 2:
        raise UserInputError(
            f"the texts hold {num_tokens} training tokens and one training sequence takes {sequence_tokens + 1}: "
            "give more text with --text, or a smaller --sequence-tokens"
        )
    context_tokens = read_geometry(target_folder).full_attention_tokens
    if sequence_tokens > context_tokens:
        raise UserInputError(
            f"--sequence-tokens {sequence_tokens} is longer than the target's context of {context_tokens} tokens: "
            f"give at most {context_tokens}"
        )


def _tokenized(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of every text, with an end-of-text token after each."""
    ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return [ids + ends for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []


def split_tokens(texts: Sequence[list[int]]) -> tuple[np.ndarray, list[int]]:
    """Tokens to train on, int32 [num_tokens], and tokens held out for the calibration, each as one sequence.

    Every twentieth text is held out. With fewer than twenty texts, the last twentieth of each is held out.
    """
    if len(texts) >= HELD_OUT_ONE_IN:
        kept = [ids for number, ids in enumerate(texts, start=1) if number % HELD_OUT_ONE_IN]
        held_out = list(texts[HELD_OUT_ONE_IN - 1 :: HELD_OUT_ONE_IN])
    else:
        cuts = [len(ids) - math.ceil(len(ids) / HELD_OUT_ONE_IN) for ids in texts]
        kept = [ids[:cut] for ids, cut in zip(texts, cuts, strict=True)]
        held_out = [ids[cut:] for ids, cut in zip(texts, cuts, strict=True)]
    return np.asarray([*chain(*kept)], dtype=np.int32), [*chain(*held_out)]


def _calibrate(draft: Path, targets: tuple[str, ...], held_out: list[int], device: str) -> None:
    """Calibrate on prompts cut from the held-out tokens at equal distances."""
    context_tokens = min(read_geometry(find_model(name)).full_attention_tokens for name in (str(draft), *targets))
    size = max(1, min(PROMPT_TOKENS, len(held_out), context_tokens // 2))
    num_prompts = max(1, min(MAX_PROMPTS, len(held_out) // size))
    starts = np.linspace(0, len(held_out) - size, num_prompts).astype(int).tolist()
    prompts = [EncodedPrompt(name=f"{start}", category="", token_ids=tuple(held_out[start : start + size])) for start in starts]
    new_tokens = min(NEW_TOKENS, context_tokens - size)
    calibrate(CalibrateDraftRequest(draft=str(draft), targets=targets, max_new_tokens=new_tokens, device=device), prompts)


def _batches(tokens: np.ndarray, settings: TrainSettings, num_teachers: int) -> Iterator[Batch]:
    """Random windows of the text. The teachers alternate."""
    for number, ids in enumerate(random_windows(tokens, settings, 1)):
        yield Batch(token_ids=ids, teacher=number % num_teachers if num_teachers else None)
