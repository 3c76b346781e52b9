"""What is trained, from which weights, on what, how and how long: two trainings with one record end with the same weights.

The record travels in every checkpoint and beside every finished model, so that no run goes on with another's work.
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
    """How long, how fast and on what share of the teacher one training stage runs.

    The learning rate warms up, stays, and falls linearly to zero over the last `cooldown_steps`, so that a stage
    without a cooldown can be grown or forked (warm-up, stable, decay).
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
        """The same settings over at most `max_steps` steps, the cooldown in proportion."""
        steps = min(self.steps, max_steps)
        return replace(self, steps=steps, cooldown_steps=self.cooldown_steps * steps // self.steps)

    def lr_frac(self, step: int) -> float:
        """Share of the peak learning rate at a zero-based step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        remaining = self.steps - step
        return min(1.0, remaining / self.cooldown_steps) if self.cooldown_steps else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that decides the weights a training ends with, but for the machine and torch's version."""

    start_sha256: str | None
    """Of the weights it starts from; None is random ones, drawn with the settings' seed."""
    exit_layers: tuple[int, ...]
    text_sha256: str
    """Of all text it learns from, as tokens or with its tokenizer."""
    teacher_sha256s: tuple[str, ...]
    settings: TrainSettings

    @property
    def facts(self) -> tuple[str, ...]:
        """One phrase per fact, always in the same order: `steps 1000`."""
        teachers = "/".join(sha256[:SHOWN_HEX] for sha256 in self.teacher_sha256s) or "none"
        return (
            f"start weights {(self.start_sha256 or 'random')[:SHOWN_HEX]}",
            f"exits {'/'.join(map(str, self.exit_layers))}",
            f"text {self.text_sha256[:SHOWN_HEX]}",
            f"teachers {teachers}",
            *(f"{field.name.replace('_', ' ')} {getattr(self.settings, field.name)}" for field in fields(self.settings)),
        )


def check_same_training(what: str, found: Training, wanted: Training, *, fix: str) -> None:
    """Refuse the work of another training.

    Args:
        what: the work, for the message.
        found: what it is of.
        wanted: what it should be of.
        fix: what to do now, a whole sentence without its full stop.

    Raises:
        Mismatch: names every fact that differs.
    """
    pairs = [pair for pair in zip(found.facts, wanted.facts, strict=True) if pair[0] != pair[1]]
    if pairs:
        made_for, given = (", ".join(side) for side in zip(*pairs, strict=True))
        raise Mismatch(what, made_for=made_for, given=given, fix=fix)


TRAINING_FILE = FileFormat(
    record=Training,
    schema="s2d/training",
    made_with="s2d-train, after deleting its folder",
)


def write_training(folder: Path, training: Training) -> None:
    """Write beside a finished model how it was trained."""
    provenance = make_provenance(libraries=("torch", "transformers"), seed=training.settings.seed)
    TRAINING_FILE.write(folder / TRAINING_NAME, training, provenance)
