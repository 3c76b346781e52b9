"""The recipe of the reference family, run: stage after stage in a work folder, each finished or absent.

What is there is gone on from only where this very run would have made it.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from perfmodel.core.disk import atomic_folder
from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.core.provenance import make_provenance
from s2d.loading.checkpoint import weights_sha256
from s2d.loading.load_model import tokenizer_sha256
from s2d.training.corpus import corpus_sha256, training_texts
from s2d.training.reference_recipe import (
    STABLE,
    STAGES,
    Stage,
    corpus_tokens,
    new_model,
    resized,
    stage_named,
    stages_before,
    train_tokenizer,
)
from s2d.training.resume import LOSS_NAME, remove_training, training_folder
from s2d.training.train_sorted import Batch, load_trainable, train_sorted, windows
from s2d.training.training import TRAINING_FILE, TRAINING_NAME, Training, check_same_training, write_training

TEXT_PROMPT_TOKENS = 64
TEXT_NEW_TOKENS = 192
TEXT_BATCHES = 4  # of 64 texts, for greedy and for sampled decoding each
TEXT_TEMPERATURE = 0.8

StageProgress = Callable[[str, int], AbstractContextManager[Callable[[int, float], None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOrigin:
    """The target that wrote some texts, and the corpus that its prompts came from."""

    target_sha256: str
    corpus_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WrittenTexts:
    """Texts that a target wrote."""

    header: TextOrigin
    token_ids: np.ndarray  # int32 [num_texts, tokens]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {"token_ids": self.token_ids}

    @classmethod
    def from_columns(cls, header: TextOrigin, columns: Mapping[str, np.ndarray]) -> Self:
        """The texts in these arrays."""
        return cls(header=header, token_ids=columns["token_ids"])


TEXTS_FILE = ArraysFormat(
    record=WrittenTexts,
    header=FileFormat(
        record=TextOrigin,
        schema="s2d/written-texts",
        made_with="s2d-train reference, after deleting it",
    ),
    dtypes={"token_ids": "int32"},
)


def write_texts(work: Path, target: str) -> None:
    """Let one target write, greedily and sampled, after prompts from the training files; nothing if it has already."""
    origin = TextOrigin(target_sha256=weights_sha256(work / target), corpus_sha256=corpus_identity(work))
    path = work / f"text-{target}.npz"
    if path.exists() and TEXTS_FILE.read(path).record.header == origin:
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = load_trainable(str(work / target))
    tokens = corpus_tokens(tokenizer)
    rng = np.random.default_rng([STABLE.seed, model.config.num_hidden_layers])
    torch.manual_seed(STABLE.seed)
    texts = []
    for sampled in (False, True):
        for _ in range(TEXT_BATCHES):
            starts = rng.integers(0, len(tokens) - TEXT_PROMPT_TOKENS, 64)
            prompts = torch.from_numpy(tokens[starts[:, None] + np.arange(TEXT_PROMPT_TOKENS)].astype(np.int64))
            options = {"do_sample": sampled} | ({"temperature": TEXT_TEMPERATURE, "top_k": 0} if sampled else {})
            with torch.inference_mode():
                written = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    min_new_tokens=TEXT_NEW_TOKENS,
                    max_new_tokens=TEXT_NEW_TOKENS,
                    **options,
                )
            texts.append(written.numpy().astype(np.int32))
    provenance = make_provenance(libraries=("torch", "transformers"), seed=STABLE.seed)
    TEXTS_FILE.write(path, WrittenTexts(header=origin, token_ids=np.concatenate(texts)), provenance)


def corpus_identity(work: Path) -> str:
    """One hash for the training files and the tokenizer that cuts them up."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    return hashlib.sha256((corpus_sha256(training_texts()) + tokenizer_sha256(tokenizer)).encode()).hexdigest()


def draft_batches(work: Path, tokens: np.ndarray, stage: Stage) -> Iterator[Batch]:
    """Half standard-library text, half text the targets wrote; the teachers take turns."""
    written = [TEXTS_FILE.read(work / f"text-{name}.npz").record.token_ids for name in stage.teachers]
    rng = np.random.default_rng([stage.settings.seed, 5])
    human = windows(tokens, stage.settings, 3)
    rows = stage.settings.batch_sequences * stage.settings.sequence_tokens // written[0].shape[1]
    while True:
        for teacher, texts in enumerate(written):
            yield Batch(token_ids=next(human), teacher=teacher)
            chosen = texts[rng.integers(0, len(texts), rows)].astype(np.int64)
            yield Batch(token_ids=torch.from_numpy(chosen), teacher=teacher)


def training_of(work: Path, stage: Stage, max_steps: int | None) -> Training:
    """What a stage is, given what it starts from and learns from in the work folder."""
    text = [corpus_identity(work), *(TEXTS_FILE.read(work / f"text-{name}.npz").sha256 for name in stage.teachers)]
    return Training(
        start_sha256=None if stage.start is None else weights_sha256(work / stage.start),
        exit_layers=stage.exit_layers,
        text_sha256=hashlib.sha256("".join(text).encode()).hexdigest(),
        teacher_sha256s=tuple(weights_sha256(work / name) for name in stage.teachers),
        settings=stage.settings if max_steps is None else stage.settings.shortened(max_steps),
    )


def train_stage(
    work: Path, stage: Stage, *, max_steps: int | None = None, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> None:
    """Train one stage of the recipe into `work/<name>`, whole or not at all; its inputs must be there.

    Args:
        max_steps: cuts the stage short, to try the recipe out; the shipped family was made without.
    """
    transformers_logging.disable_progress_bar()
    training = training_of(work, stage, max_steps)
    torch.manual_seed(training.settings.seed)
    tokens = corpus_tokens(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    model = (
        new_model(stage.num_layers)
        if stage.start is None
        else resized(load_trainable(str(work / stage.start)), stage.num_layers)
    )
    teachers = [load_trainable(str(work / name)) for name in stage.teachers]
    if teachers:
        batches = draft_batches(work, tokens, stage)
    else:
        batches = (Batch(token_ids=ids, teacher=None) for ids in windows(tokens, training.settings, 1))
    partial = work / f"{stage.name}.partial"
    with training_folder(partial):
        train_sorted(model, batches, training, teachers=teachers, folder=partial, on_step=on_step)
        with atomic_folder(work / stage.name) as folder:
            model.save_pretrained(folder)
            write_training(folder, training)
            shutil.copyfile(partial / LOSS_NAME, folder / LOSS_NAME)
    remove_training(partial)


def run_stages(work: Path, *, max_steps: int | None, progress: StageProgress) -> None:
    """Every stage that is not finished yet, in order: run again after an interruption to go on.

    Args:
        work: one folder per stage.
        max_steps: as for `train_stage`.
        progress: given a stage's name and number of steps, a context that hands out the per-step callback.
    """
    for stage in STAGES:
        run_stage(work, stage.name, max_steps=max_steps, progress=progress)


def run_stage(work: Path, name: str, *, max_steps: int | None, progress: StageProgress) -> None:
    """One stage, unless it is finished, and whatever of tokenizer and written texts it needs and is not there.

    Raises:
        UnknownName: no stage of the recipe has that name.
        UserInputError: the stage it starts from, or a teacher, is not finished.
        Mismatch: it, or one of those, was finished with other steps, from other weights or on other text.
    """
    stage = stage_named(name)
    if not (work / "tokenizer").exists():
        train_tokenizer(work / "tokenizer")
    for needed in stages_before(stage):
        if not (work / needed.name).exists():
            raise UserInputError(f"stage {name!r} needs stage {needed.name!r}, not in {str(work)!r}: train that one first")
        check_finished(work, needed, max_steps)
    for teacher in stage.teachers:
        write_texts(work, teacher)
    if (work / name).exists():
        check_finished(work, stage, max_steps)
        return
    with progress(name, min(stage.settings.steps, max_steps or stage.settings.steps)) as on_step:
        train_stage(work, stage, max_steps=max_steps, on_step=on_step)


def check_finished(work: Path, stage: Stage, max_steps: int | None) -> None:
    """Refuse a finished stage that this run would not have made.

    Raises:
        Mismatch: says how it differs.
    """
    folder = work / stage.name
    what = f"the finished stage {str(folder)!r}"
    fix = f"Delete {str(folder)!r} to train it anew, give another --work, or repeat the command that made it"
    if not (folder / TRAINING_NAME).exists():
        raise BadFile(folder, "this stage does not say how it was trained", fix)
    found = TRAINING_FILE.read(folder / TRAINING_NAME).record
    check_same_training(what, found, training_of(work, stage, max_steps), fix=fix)
