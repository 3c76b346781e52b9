"""A validation: the latency law compared with published speeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval, ratio_interval
from perfmodel.core.units import Frac, Tokens, TokensPerS
from perfmodel.passes.device_key import LaunchMode

PointRole = Literal["held-out", "used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPoint:
    """Plain decoding of one sequence, as published and as predicted."""

    model: str
    device: str
    num_devices: int
    weights: str
    """How the weights were stored: a dtype, or the publisher's own format."""
    mode: LaunchMode
    context_tokens: Tokens
    role: PointRole
    """`used`: a number of the device's row was derived from this point, so it is no evidence for the law."""
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
        """Interval of the predicted tokens per second."""
        return ratio_interval(self.predicted_tokens_per_s, below=self.interval_frac, above=self.interval_frac)

    @property
    def is_covered(self) -> bool:
        """Whether the published speed lies in the interval of the prediction."""
        return self.interval.low <= self.published_tokens_per_s <= self.interval.high

    @property
    def bound_error_frac(self) -> Frac:
        """Seconds at the lower bound over published seconds, minus 1."""
        return self.published_tokens_per_s / self.bound_tokens_per_s - 1

    @property
    def error_frac(self) -> Frac:
        """Predicted seconds over published seconds, minus 1."""
        return self.published_tokens_per_s / self.predicted_tokens_per_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedSpeedup:
    """One policy of the S2D paper's table: its published speedup, and the prediction from its published accepted tokens."""

    target: str
    policy: str
    source: str
    published: float
    predicted: float

    @property
    def error_frac(self) -> Frac:
        """Predicted over published speedup, minus 1."""
        return self.predicted / self.published - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The S2D paper's table predicted for one device and launch mode. The paper states neither."""

    device: str
    mode: LaunchMode
    speedups: tuple[PublishedSpeedup, ...]

    @property
    def mean_abs_error_frac(self) -> Frac:
        """Mean absolute error over the rows of the table."""
        return sum(abs(speedup.error_frac) for speedup in self.speedups) / len(self.speedups)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceError:
    """The held-out points of one device in one launch mode."""

    device: str
    mode: LaunchMode
    num_points: int
    mape_frac: Frac
    mean_error_frac: Frac
    """Signed: negative if predictions are too fast."""
    covered_frac: Frac
    """Share of the points within their 90 % interval."""
    bound_mean_error_frac: Frac
    """Signed error of a pure roofline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation(Printable):
    """All published speeds with their predictions."""

    points: tuple[PublishedPoint, ...]
    devices: tuple[DeviceError, ...]
    """Devices and launch modes with held-out points."""
    explanations: tuple[Explanation, ...]
    """Smallest error first."""

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
