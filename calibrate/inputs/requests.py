"""Typed requests: what a caller asks a plan for. None means that the planner chooses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from perfmodel.acceptance.splits import Split
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import EngineMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """What was asked of the device; None is left open."""

    device: str | None
    num_devices: int | None
    draft_num_devices: int | None
    """As in a plan; None for whatever drafts sooner."""
    dtype: Dtype | None
    engine: EngineMode | None

    def __post_init__(self) -> None:
        for flag, number in (("--num-devices", self.num_devices), ("--draft-num-devices", self.draft_num_devices)):
            if number is not None and number < 1:
                raise UserInputError(f"{flag} {number}: expected at least 1.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What was asked; None is left open."""

    target: str | None
    draft: str | None
    draft_vocab: Tokens | None
    """Tokens the draft's LM head covers, where it is not the head that was trained."""
    trace: Path | None
    prompts_split: Split
    category: str | None
    """Plan for prompts of this category only."""
    profiles: tuple[Path, ...]
    fit: Path | None
    device: DeviceRequest
    batch: int
    prompt_tokens: Tokens | None
    output_tokens: Tokens | None
