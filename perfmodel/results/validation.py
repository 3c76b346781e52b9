"""A validation: what the latency law says of speeds that others published."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval, ratio_interval
from perfmodel.core.units import Frac, Tokens, TokensPerS
from perfmodel.passes.device_key import EngineMode

PointRole = Literal["held-out", "used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPoint:
    """Plain decoding of one sequence, as published and as predicted."""

    model: str
    device: str
    num_devices: int
    weights: str
    """How they were stored: a dtype, or the format of whoever published it."""
    engine: EngineMode
    context_tokens: Tokens
    role: PointRole
    """`used`: the device's row took a number from it, so that it proves nothing."""
    note: str
    source: str
    published_tokens_per_s: TokensPerS
    predicted_tokens_per_s: TokensPerS
    interval_frac: Frac
    """Half the 90 % interval of the logarithm of the predicted seconds."""
    bound_tokens_per_s: TokensPerS
    """At the hardware lower bound: bytes over the datasheet's bandwidth, or FLOP over its peak, and nothing else."""

    @property
    def interval(self) -> Interval:
        """Of the predicted tokens per second."""
        return ratio_interval(self.predicted_tokens_per_s, below=self.interval_frac, above=self.interval_frac)

    @property
    def is_covered(self) -> bool:
        """Whether the published speed lies within the interval of the predicted one."""
        return self.interval.low <= self.published_tokens_per_s <= self.interval.high

    @property
    def bound_error_frac(self) -> Frac:
        """Of the seconds at the lower bound over the published ones, less one."""
        return self.published_tokens_per_s / self.bound_tokens_per_s - 1

    @property
    def error_frac(self) -> Frac:
        """Of the predicted seconds over the published ones, less one."""
        return self.published_tokens_per_s / self.predicted_tokens_per_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpeedup:
    """One policy of S2D's own table, as published and as predicted from its published accepted tokens."""

    target: str
    policy: str
    source: str
    published: float
    predicted: float

    @property
    def error_frac(self) -> Frac:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """S2D's table, had it been taken on some device in some engine mode: neither was published."""

    device: str
    engine: EngineMode
    speedups: tuple[PublishedSpeedup, ...]

    @property
    def mean_abs_error_frac(self) -> Frac:
        """How badly that explains the table."""
        return sum(abs(one.error_frac) for one in self.speedups) / len(self.speedups)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceError:
    """The held-out points of one device in one engine mode."""

    device: str
    engine: EngineMode
    num_points: int
    mape_frac: Frac
    mean_error_frac: Frac
    """Signed: below 0, predictions are too fast."""
    covered_frac: Frac
    """Share of the points within their 90 % interval."""
    bound_mean_error_frac: Frac
    """What a pure roofline errs by, signed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation(Printable):
    """All that others published, predicted."""

    points: tuple[PublishedPoint, ...]
    devices: tuple[DeviceError, ...]
    """Devices and engine modes with held-out points."""
    explanations: tuple[Explanation, ...]
    """Best first."""

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan validate` as blocks of text."""
        from perfmodel.results.validation_text import validation_blocks

        return validation_blocks(self, explain=explain)

    def save(self, path: PathLike) -> None:
        """Write the validation as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        VALIDATION_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",)))


VALIDATION_FILE = FileFormat(record=Validation, schema="s2d/validation", made_with="s2d-plan validate -o FILE")
