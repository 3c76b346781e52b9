"""Residuals: predicted minus measured, split into acceptance and latency errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval
from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassKind

Pricing = Literal["evidence", "plan", "counters"]
"""How the measured rounds were priced: each pass shape by the plan's latency evidence, each kind of pass by its mean, or an
engine's counters of rounds and drafted tokens by the plan's means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassResidual:
    """Predicted and measured seconds of all passes of one kind in one arm."""

    arm: Literal["plan", "plain"]
    kind: PassKind
    num_passes: int
    predicted_s: Seconds
    measured_s: Seconds

    def __post_init__(self) -> None:
        if self.measured_s <= 0 or self.num_passes < 1:
            raise ValueError(f"residual of {self.arm} {self.kind} passes: expected at least one pass of more than 0 s")

    @property
    def error_frac(self) -> Frac:
        """Error as a fraction of the measured seconds; positive if the prediction was too slow."""
        return (self.predicted_s - self.measured_s) / self.measured_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals(Printable):
    """The comparison of a plan with its measured run.

    S is the predicted speedup, M the measured one, and X that of the measured rounds at the plan's prices. Then
    S - M = (S - X) + (X - M). The first difference comes from the rounds alone, the second from the seconds alone. Both are
    given as fractions of M. An engine that reports no seconds has no M: the first is then a fraction of X.
    """

    plan_sha256: str
    report_sha256: str
    """Of the run's report, or of what was read from an engine's metrics."""
    engine: str | None
    """The engine that ran; None if its metrics do not name it."""
    device: DeviceKey
    """Of the plan. An engine's metrics do not say where it ran."""
    pricing: Pricing
    predicted_prompts: int
    measured_prompts: int | None
    """None if the engine does not count its requests."""
    predicted_speedup: float
    repriced_speedup: float
    """X in the equation above."""
    measured_speedup: float | None
    """M in the equation above; None if an engine's metrics have no seconds, or plain decoding was not measured."""
    measured_interval: Interval | None
    """The measured speedup with its 90 % interval over the prompts; None if the prompts were not timed one by one."""
    predicted_tokens_per_round: float
    measured_tokens_per_round: float
    repriced_round_s: Seconds
    measured_round_s: Seconds | None
    """None if an engine's metrics have no seconds or no rounds."""
    passes: tuple[PassResidual, ...]
    next_step: str
    """What to measure again, or a statement that nothing is needed."""
    predicted_by_position: tuple[Frac, ...] = ()
    """Entry i: share of the rounds that accept at least i + 1 tokens; empty unless an engine reports it."""
    measured_by_position: tuple[Frac, ...] = ()
    notes: tuple[str, ...] = ()
    """What an engine's metrics do not contain, how they count, and what may not fit the plan."""

    @property
    def acceptance_error_frac(self) -> Frac:
        """Error of the speedup from different rounds: (S - X) / M, or (S - X) / X if M is unknown."""
        return (self.predicted_speedup - self.repriced_speedup) / (self.measured_speedup or self.repriced_speedup)

    @property
    def latency_error_frac(self) -> Frac | None:
        """Error of the speedup from different seconds for the same rounds: (X - M) / M; None if M is unknown."""
        return None if self.measured_speedup is None else self.repriced_speedup / self.measured_speedup - 1

    @property
    def total_error_frac(self) -> Frac | None:
        """Error of the speedup: (S - M) / M, the sum of the two; None if M is unknown."""
        return None if self.measured_speedup is None else self.predicted_speedup / self.measured_speedup - 1

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the plan and of the report or the engine's metrics, by role."""
        return {"plan": self.plan_sha256, "report": self.report_sha256}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-compare` as blocks of text."""
        from perfmodel.results.residuals_text import residuals_blocks

        return residuals_blocks(self, explain=explain)

    @staticmethod
    def load(path: PathLike) -> "Residuals":
        """Read a comparison from a file by `save` or `s2d-compare -o`.

        Raises:
            BadFile: the file is not a complete comparison.
        """
        return RESIDUALS_FILE.read(path).record

    def save(self, path: PathLike) -> None:
        """Write the residuals as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        RESIDUALS_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


RESIDUALS_FILE = FileFormat(record=Residuals, schema="s2d/residuals", made_with="s2d-compare -o FILE")
