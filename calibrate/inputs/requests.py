"""Typed requests for plans. The planner chooses every field that is None."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from perfmodel.acceptance.splits import Split
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode

if TYPE_CHECKING:
    from perfmodel.acceptance.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """The device, and how the models run on it.

    Raises:
        UserInputError: a number of devices is below 1.
    """

    device: str | None = None
    """A known name, `cpu`, or a `.toml` or `.json` file. None: the GPU of this machine, else the default device."""
    num_devices: int | None = None
    """Tensor-parallel degree of the target. None: the fewest devices that hold the models."""
    draft_num_devices: int | None = None
    """1 or `num_devices`. None: the number that drafts faster."""
    dtype: Dtype | None = None
    """Of the weights. None: a target as its files store it, other models in the device's default dtype."""
    mode: LaunchMode | None = None
    """None: the device's default mode."""

    def __post_init__(self) -> None:
        check_counts({"--num-devices": self.num_devices, "--draft-num-devices": self.draft_num_devices})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What to plan for. At least a target or a trace is needed.

    Raises:
        UserInputError: a count is below 1, the batch is not 1, or a reduced head is to be priced by profiles.
    """

    target: str | None = None
    """A known name, a config.json or its folder, or `org/name` on the Hugging Face hub. None: the trace's."""
    draft: str | None = None
    """A name or a folder. None: the trace's, or the first that has a shipped trace for the target."""
    draft_vocab: Tokens | None = None
    """Vocabulary of an assumed reduced LM head of the draft. None: the head that was trained."""
    trace: Path | Trace | None = None
    """Acceptance recorded by `s2d-profile`, as a file or in memory. None: the shipped trace of the target."""
    prompts_split: Split = "all"
    category: str | None = None
    """Plan for the trace's prompts of this category only. None: for all prompts."""
    engine: str | None = None
    """Name of the engine that is to execute the plan. None: the engine profile's, else the bundled runtime."""
    profiles: tuple[Path, ...] = ()
    """Latency profiles of both models, of one device, or an engine's profile. Empty: prices by `fit` or by the device's
    datasheet."""
    fit: Path | None = None
    """A fit of the latency law: prices a model that has no profile."""
    device: DeviceRequest = field(default_factory=DeviceRequest)
    batch: int = 1
    prompt_tokens: Tokens | None = None
    """None: the mean over the trace's prompts."""
    output_tokens: Tokens | None = None
    """None: the length at which the trace was recorded."""

    def __post_init__(self) -> None:
        lengths = {"--prompt-tokens": self.prompt_tokens, "--output-tokens": self.output_tokens}
        check_counts({"--batch": self.batch, **lengths})
        if self.prompts_split not in get_args(Split):
            expected = ", ".join(map(repr, get_args(Split)))
            raise UserInputError(f"--prompts-split {self.prompts_split!r}: expected one of {expected}.")
        if self.batch != 1:
            raise UserInputError(
                f"--batch {self.batch}: only --batch 1 is predicted. In a larger batch each sequence has its own exits and "
                "accepted lengths, which neither replay nor the latency evidence covers yet."
            )
        if self.draft_vocab is not None and self.profiles and self.fit is None:
            raise UserInputError(
                f"--draft-vocab {self.draft_vocab}: profiles measure the exit checks of the whole head, not those of a reduced "
                "one. Leave --profile out to price them by a datasheet, or give --fit FILE (s2d-plan fit) instead of the "
                "draft's profile."
            )


def check_counts(counts: dict[str, int | None]) -> None:
    """Refuse counts below 1; None is allowed.

    Args:
        counts: by flag.

    Raises:
        UserInputError: names the flag.
    """
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise UserInputError(f"{flag} {count}: expected at least 1.")
