"""Train the reference family: run the stages of its recipe, then package the models.

A finished or unfinished stage in the work folder is reused only if this run would produce the same stage.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from perfmodel.core.disk import PathLike, atomic_folder, translate_write_errors
from perfmodel.core.errors import BadFile, UserInputError
from perfmodel.core.files import ArraysFormat, FileFormat
from perfmodel.core.provenance import make_provenance
from s2d.loading.checkpoint import weights_sha256
from s2d.loading.load_model import tokenizer_sha256
from s2d.training.corpus import corpus_sha256, training_texts
from s2d.training.package_family import install_family
from s2d.training.reference_recipe import (
    STABLE,
    STAGES,
    Stage,
    corpus_tokens,
    find_stage,
    new_model,
    required_stages,
    resize_model,
    train_tokenizer,
)
from s2d.training.requests import TrainReferenceRequest
from s2d.training.resume import LOSS_NAME, remove_training, training_folder
from s2d.training.train_sorted import Batch, load_trainable, random_windows, train_sorted
from s2d.training.training_record import TRAINING_FILE, TRAINING_NAME, TrainingRecord, check_same_training, write_training

TEXT_PROMPT_TOKENS = 64
TEXT_NEW_TOKENS = 192
TEXT_BATCHES = 4  # batches of 64 texts, for greedy and for sampled decoding each
TEXT_TEMPERATURE = 0.8

StageProgress = Callable[[str, int], AbstractContextManager[Callable[[int, float], None]]]
"""Returns, for the name and number of steps of a stage, a context that yields the callback for each step."""


def train_reference(
    output: PathLike, *, work: PathLike | None = None, stage: str | None = None, max_steps: int | None = None
) -> Path:
    """Train the reference family, or one stage of it. The same call resumes an interrupted training.

    Args:
        output: the folder of the family to make.
        work: the folder for the stages; the output's name with `.work` if None.
        stage: train this stage alone, for example in several processes at once.
        max_steps: an upper limit of the steps of every stage, to try the recipe.

    Returns:
        The folder of the family, or of the stage.

    Raises:
        BadFile: `output` exists, or a folder cannot be made.
        UnknownName: the recipe has no such stage.
        Mismatch: a finished stage in `work` has another training record.
        OutOfSpace: the disk is full. Finished stages are kept.
    """
    request = TrainReferenceRequest(
        output=Path(output), work=None if work is None else Path(work), stage=stage, max_steps=max_steps
    )
    return train_family(request, lambda name, steps: nullcontext(lambda step, loss: None))


def train_family(request: TrainReferenceRequest, progress: StageProgress) -> Path:
    """Train the family or one stage, with progress: see `train_reference`."""
    work = request.work_folder
    with translate_write_errors(work):
        work.mkdir(exist_ok=True)
    if request.stage is not None:
        run_stage(work, request.stage, max_steps=request.max_steps, progress=progress)
        return work / request.stage
    run_stages(work, max_steps=request.max_steps, progress=progress)
    install_family(work, request.output)
    return request.output


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOrigin:
    """The target that wrote the texts, and the corpus of its prompts."""

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
    """Write texts with one target, greedily and sampled, after prompts from the training files. Existing texts are kept."""
    origin = TextOrigin(target_sha256=weights_sha256(work / target), corpus_sha256=corpus_and_tokenizer_sha256(work))
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


def corpus_and_tokenizer_sha256(work: Path) -> str:
    """SHA-256 of the training files and the tokenizer."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    return hashlib.sha256((corpus_sha256(training_texts()) + tokenizer_sha256(tokenizer)).encode()).hexdigest()


def draft_batches(work: Path, tokens: np.ndarray, stage: Stage) -> Iterator[Batch]:
    """Batches of library text and of target-written text, alternating. The teachers alternate too."""
    written = [TEXTS_FILE.read(work / f"text-{name}.npz").record.token_ids for name in stage.teachers]
    rng = np.random.default_rng([stage.settings.seed, 5])
    library = random_windows(tokens, stage.settings, 3)
    rows = stage.settings.batch_sequences * stage.settings.sequence_tokens // written[0].shape[1]
    while True:
        for teacher, texts in enumerate(written):
            yield Batch(token_ids=next(library), teacher=teacher)
            chosen = texts[rng.integers(0, len(texts), rows)].astype(np.int64)
            yield Batch(token_ids=torch.from_numpy(chosen), teacher=teacher)


def stage_training(work: Path, stage: Stage, max_steps: int | None) -> TrainingRecord:
    """The training record of a stage, with the hashes of its inputs in the work folder."""
    text = [corpus_and_tokenizer_sha256(work), *(TEXTS_FILE.read(work / f"text-{name}.npz").sha256 for name in stage.teachers)]
    return TrainingRecord(
        start_sha256=None if stage.start is None else weights_sha256(work / stage.start),
        exit_layers=stage.exit_layers,
        text_sha256=hashlib.sha256("".join(text).encode()).hexdigest(),
        teacher_sha256s=tuple(weights_sha256(work / name) for name in stage.teachers),
        settings=stage.settings if max_steps is None else stage.settings.shortened(max_steps),
    )


def train_stage(
    work: Path, stage: Stage, *, max_steps: int | None = None, on_step: Callable[[int, float], None] = lambda step, loss: None
) -> None:
    """Train one stage of the recipe into `work/<name>`, completely or not at all. Its inputs must exist.

    Args:
        work: the work folder.
        stage: the stage to train.
        max_steps: an upper limit of the steps, to try the recipe. The shipped family was trained without a limit.
        on_step: called with the number and the loss of every finished step.
    """
    transformers_logging.disable_progress_bar()
    training = stage_training(work, stage, max_steps)
    torch.manual_seed(training.settings.seed)
    tokens = corpus_tokens(PreTrainedTokenizerFast.from_pretrained(work / "tokenizer"))
    model = (
        new_model(stage.num_layers)
        if stage.start is None
        else resize_model(load_trainable(str(work / stage.start)), stage.num_layers)
    )
    teachers = [load_trainable(str(work / name)) for name in stage.teachers]
    if teachers:
        batches = draft_batches(work, tokens, stage)
    else:
        batches = (Batch(token_ids=ids, teacher=None) for ids in random_windows(tokens, training.settings, 1))
    partial = work / f"{stage.name}.partial"
    with training_folder(partial):
        train_sorted(model, batches, training, teachers=teachers, folder=partial, on_step=on_step)
        with atomic_folder(work / stage.name) as folder:
            model.save_pretrained(folder)
            write_training(folder, training)
            shutil.copyfile(partial / LOSS_NAME, folder / LOSS_NAME)
    remove_training(partial)


def run_stages(work: Path, *, max_steps: int | None, progress: StageProgress) -> None:
    """Run all unfinished stages in order. Run again to resume after an interruption.

    Args:
        work: the work folder.
        max_steps: see `train_stage`.
        progress: reports the progress of a stage.
    """
    for stage in STAGES:
        run_stage(work, stage.name, max_steps=max_steps, progress=progress)


def run_stage(work: Path, name: str, *, max_steps: int | None, progress: StageProgress) -> None:
    """Run one stage unless it is finished; train the tokenizer and write texts first if the stage needs them.

    Raises:
        UnknownName: the recipe has no such stage.
        UserInputError: the stage that it starts from, or a teacher, is not finished.
        Mismatch: one of these stages was finished with other steps, from other weights or on other text.
    """
    stage = find_stage(name)
    if not (work / "tokenizer").exists():
        train_tokenizer(work / "tokenizer")
    for needed in required_stages(stage):
        if not (work / needed.name).exists():
            raise UserInputError(
                f"stage {name!r} needs stage {needed.name!r}, which is not in {str(work)!r}: train that one first"
            )
        check_finished(work, needed, max_steps)
    for teacher in stage.teachers:
        write_texts(work, teacher)
    if (work / name).exists():
        check_finished(work, stage, max_steps)
        return
    with progress(name, min(stage.settings.steps, max_steps or stage.settings.steps)) as on_step:
        train_stage(work, stage, max_steps=max_steps, on_step=on_step)


def check_finished(work: Path, stage: Stage, max_steps: int | None) -> None:
    """Refuse a finished stage that this run would not reproduce.

    Raises:
        Mismatch: the stage differs. The error names every difference.
        BadFile: the stage has no training record.
    """
    folder = work / stage.name
    subject = f"the finished stage {str(folder)!r}"
    fix = f"Delete {str(folder)!r} to train it again, give another --work, or repeat the command that made it"
    if not (folder / TRAINING_NAME).exists():
        raise BadFile(folder, "this stage has no training record", fix)
    stored = TRAINING_FILE.read(folder / TRAINING_NAME).record
    check_same_training(subject, stored, stage_training(work, stage, max_steps), fix=fix)
