"""Requests of s2d-train. They are checked, and their files read, before torch is imported."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perfmodel.core.disk import PathLike, check_new_folder
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Frac, Tokens
from perfmodel.models.geometry import check_exit_layers
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names, is_reference_model
from s2d.prompt_files.choose import calibration_half
from s2d.prompt_files.load_prompts import load_prompts, load_texts
from s2d.prompt_files.read_as import Form, ReadAs
from s2d.prompts.conversation import Prompt, check_texts
from s2d.prompts.special_tokens import SpecialTokens

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainDraftRequest:
    """A nested draft to train: see `s2d.training.train_draft.train_draft` for the fields."""

    target: str
    exits: tuple[int, ...]
    text: tuple[Path, ...]
    output: Path
    teachers: tuple[str, ...] = ()
    distill_frac: Frac = 0.9
    steps: int = 1000
    batch_sequences: int = 8
    sequence_tokens: Tokens = 512
    matrix_lr: float = 0.01
    vector_lr: float = 1e-3
    seed: int = 0
    device: str = "cpu"
    text_format: Form = "auto"
    text_column: str | None = None

    def __post_init__(self) -> None:
        check_exit_layers(self.exits)
        _check_number("distill_frac", self.distill_frac, 0, 1)
        for name in ("steps", "batch_sequences", "sequence_tokens"):
            _check_number(name, getattr(self, name), 1, math.inf)
        for name in ("matrix_lr", "vector_lr"):
            _check_number(name, getattr(self, name), math.ulp(0.0), math.inf)
        _check_number("seed", self.seed, 0, MAX_SEED)
        check_new_folder(self.output)
        check_model_names(self.target, *self.teachers)

    @property
    def unfinished(self) -> Path:
        """The folder with the state of the training until the draft is complete."""
        return self.output.with_name(self.output.name + ".partial")

    def read_texts(self) -> list[str]:
        """The training texts of all files.

        Raises:
            BadFile: a file cannot be read.
        """
        return load_texts(self.text, ReadAs(use="text", form=self.text_format, column=self.text_column))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateDraftRequest:
    """A draft to calibrate: see `s2d.training.calibrate_draft.calibrate_draft` for the fields."""

    draft: str
    targets: tuple[str, ...]
    prompts: Path | None = None
    exits: tuple[int, ...] | None = None
    max_new_tokens: Tokens = 128
    special_tokens: SpecialTokens = "parse"
    device: str = "cpu"
    prompt_format: Form = "auto"
    prompt_column: str | None = None

    def __post_init__(self) -> None:
        if self.exits is not None:
            check_exit_layers(self.exits)
        _check_number("max_new_tokens", self.max_new_tokens, 1, math.inf)
        check_model_names(self.draft, *self.targets)

    def read_prompts(self) -> list[Prompt]:
        """The calibration half of the prompts.

        Raises:
            UserInputError: a target outside the reference family without prompts, no prompt in this half, or a conversation.
            BadFile: the file cannot be read.
        """
        others = [name for name in self.targets if not is_reference_model(name)]
        if self.prompts is None and others:
            raise UserInputError(f"target {others[0]!r} is not of the reference family: give its prompts with --prompts FILE")
        read_as = ReadAs(use="prompt", form=self.prompt_format, column=self.prompt_column)
        prompts = calibration_half(load_prompts(self.prompts, read_as, FAMILY_PROMPTS, first_turns=True))
        check_texts(prompts)
        return prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceVocabRequest:
    """A draft to copy with a reduced head: see `s2d.training.reduce_vocab.reduce_vocab` for the fields."""

    draft: str
    num_tokens: Tokens
    text: tuple[Path, ...]
    output: Path
    exits: tuple[int, ...] | None = None
    text_format: Form = "auto"
    text_column: str | None = None

    def __post_init__(self) -> None:
        if self.exits is not None:
            check_exit_layers(self.exits)
        check_new_folder(self.output)
        check_model_names(self.draft)

    def read_texts(self) -> list[str]:
        """The texts of all files.

        Raises:
            BadFile: a file cannot be read.
        """
        return load_texts(self.text, ReadAs(use="text", form=self.text_format, column=self.text_column))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReferenceRequest:
    """The reference family to train: see `s2d.training.train_reference.train_reference` for the fields."""

    output: Path
    work: Path | None = None
    stage: str | None = None
    max_steps: int | None = None

    def __post_init__(self) -> None:
        if self.max_steps is not None:
            _check_number("max_steps", self.max_steps, 1, math.inf)
        if self.stage is None:
            check_new_folder(self.output)
        if self.work_folder.resolve() == self.output.resolve():
            raise UserInputError(f"--work and --output are both {str(self.work_folder)!r}: give two folders")

    @property
    def work_folder(self) -> Path:
        """The folder of finished and unfinished stages."""
        return self.work or self.output.with_name(self.output.name + ".work")


def as_names(models: PathLike | Sequence[PathLike]) -> tuple[str, ...]:
    """One model or several, by name or folder, as a tuple."""
    return (os.fspath(models),) if isinstance(models, str | os.PathLike) else tuple(os.fspath(model) for model in models)


def _check_number(name: str, value: float, low: float, high: float) -> None:
    """Refuse a number outside a range; an infinite upper end excludes infinity itself."""
    if not (math.isfinite(value) and low <= value <= high):
        expected = "above 0" if 0 < low < 1 else f"from {low}" + (f" to {high}" if math.isfinite(high) else "")
        raise UserInputError(f"{name} {value!r}: expected a finite number {expected}.")
