"""The record of a training: start weights, exits, text, teachers and settings.

Equal records give equal weights. Every checkpoint and every trained model stores its record. A run resumes only from a state
with the same record.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from perfmodel.core.errors import Mismatch
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance

TRAINING_NAME = "training.json"
SHOWN_HEX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Length, learning rates and loss of one training stage.

    The learning rate warms up, stays, and falls linearly to zero over the last `cooldown_steps` (warm-up, stable, decay). A
    stage without a cooldown can be extended or branched later.
    """

    steps: int
    warmup_steps: int
    cooldown_steps: int
    batch_sequences: int
    sequence_tokens: int
    matrix_lr: float
    vector_lr: float
    distill_frac: float
    all_exits: bool
    seed: int

    def shortened(self, max_steps: int) -> "TrainSettings":
        """The same settings over at most `max_steps` steps, with the cooldown in proportion."""
        steps = min(self.steps, max_steps)
        return replace(self, steps=steps, cooldown_steps=self.cooldown_steps * steps // self.steps)

    def lr_frac(self, step: int) -> float:
        """Fraction of the peak learning rate at a zero-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        remaining = self.steps - step
        return min(1.0, remaining / self.cooldown_steps) if self.cooldown_steps else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """Everything that determines the final weights of a training, except the machine and the version of torch."""

    start_sha256: str | None
    """Hash of the start weights; None for random weights drawn with the settings' seed."""
    exit_layers: tuple[int, ...]
    text_sha256: str
    """Hash of all training text, as token ids or together with the tokenizer."""
    teacher_sha256s: tuple[str, ...]
    settings: TrainSettings

    @property
    def facts(self) -> tuple[str, ...]:
        """One phrase per fact, in a fixed order: `steps 1000`."""
        teachers = "/".join(sha256[:SHOWN_HEX] for sha256 in self.teacher_sha256s) or "none"
        return (
            f"start weights {(self.start_sha256 or 'random')[:SHOWN_HEX]}",
            f"exits {'/'.join(map(str, self.exit_layers))}",
            f"text {self.text_sha256[:SHOWN_HEX]}",
            f"teachers {teachers}",
            *(f"{field.name.replace('_', ' ')} {getattr(self.settings, field.name)}" for field in fields(self.settings)),
        )


def check_same_training(subject: str, stored: TrainingRecord, expected: TrainingRecord, *, fix: str) -> None:
    """Refuse the result of another training.

    Args:
        subject: the result, as the message names it.
        stored: the record stored with it.
        expected: the record of this training.
        fix: what to do now, as a sentence without its full stop.

    Raises:
        Mismatch: names every fact that differs.
    """
    pairs = [pair for pair in zip(stored.facts, expected.facts, strict=True) if pair[0] != pair[1]]
    if pairs:
        made_for, given = (", ".join(side) for side in zip(*pairs, strict=True))
        raise Mismatch(subject, made_for=made_for, given=given, fix=fix)


TRAINING_FILE = FileFormat(
    record=TrainingRecord,
    schema="s2d/training",
    made_with="s2d-train, after deleting its folder",
)


def write_training(folder: Path, training: TrainingRecord) -> None:
    """Write the record of a training into the folder of its model."""
    provenance = make_provenance(libraries=("torch", "transformers"), seed=training.settings.seed)
    TRAINING_FILE.write(folder / TRAINING_NAME, training, provenance)
