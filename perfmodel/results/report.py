"""A run report: what executing a plan really did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import Stored, Upgrades, read_record, record_text, write_record
from perfmodel.core.provenance import Provenance
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, with_llama_layers, with_whole_heads
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_profile import with_standard_kernels, with_unknown_waits
from perfmodel.passes.passes import PassSamples, with_prefills_by_model
from perfmodel.policies.policy import Policy, with_catching_up_when_asked
from perfmodel.policies.sampling import Sampling, with_sampling_unpenalised
from perfmodel.replay.estimate import Speedup, with_nothing_ahead
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import Candidate

REPORT_SCHEMA = "s2d/run-report"
REPORT_VERSION = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun:
    """One prompt under one arm."""

    name: str
    category: str
    prompt_tokens: Tokens
    rounds: RoundStats
    prefill_s: Seconds
    decode_s: Seconds
    """Wall time of the rounds, pauses of the process (`perfmodel.passes.pauses`) not counted; the arm's samples hold them."""
    distinct_6gram_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration over all prompts."""

    policy: Policy | None
    """The plan's, where the run moved along its frontier."""
    runs: tuple[PromptRun, ...]
    samples: PassSamples


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first token at which the plan's output differs from the plain target's."""

    prompt: str
    position: int
    """Zero-based among the emitted tokens."""
    gap: float
    """Target logit of its own choice minus that of the emitted token, teacher-forced; near 0 is a near-tie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The comparison with the plain target, token by token."""

    num_prompts: int
    num_equal: int
    worst_gap: float
    """Largest gap over every emitted token: 0 when each is the argmax of the target's teacher-forced logits."""
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShare:
    """What one policy did of a run that moved along its plan's frontier."""

    policy: Policy | None
    num_rounds: int
    num_tokens: int
    decode_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """How a run moved along its plan's frontier."""

    num_switches: int
    """Rounds that followed another policy than the round before, of the text before where it was a text's first."""
    shares: tuple[PolicyShare, ...]
    """By policy, from cautious to bold; those that never ran too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Printable):
    """A plan's execution beside plain decoding of the same prompts."""

    plan_sha256: str | None
    target: ModelGeometry
    target_sha256: str
    draft: DraftGeometry
    draft_sha256: str
    device: DeviceKey
    sampling: Sampling
    max_new_tokens: Tokens
    plan_arm: Arm
    plain_arm: Arm | None
    """None when plain decoding was not run."""
    measured: Speedup | None
    """None without the plain arm."""
    check: Check | None
    adaptation: Adaptation | None
    """None when the plan's policy ran throughout."""
    waited_frac: Frac | None = None
    """Share of the run during which other programs had the processor; None where unknown."""
    predicted: Candidate | None = None
    """What the plan predicted; None where no plan was run."""

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-run` as blocks of text."""
        from perfmodel.results.report_text import report_blocks

        return report_blocks(self, explain=explain)


def _from_version_4(body: dict[str, Any]) -> dict[str, Any]:
    return {**with_sampling_unpenalised(body), "adaptation": None}


def _from_version_7(body: dict[str, Any]) -> dict[str, Any]:
    arms = {name: body[name] for name in ("plan_arm", "plain_arm") if body[name] is not None}
    return with_standard_kernels(body) | {
        name: {**arm, "samples": with_prefills_by_model(arm["samples"])} for name, arm in arms.items()
    }


_UPGRADES: Upgrades = {
    2: with_llama_layers,
    3: with_whole_heads,
    4: _from_version_4,
    5: with_nothing_ahead,
    6: with_catching_up_when_asked,
    7: _from_version_7,
    8: with_unknown_waits,
}


def report_file_text(report: RunReport, provenance: Provenance) -> str:
    """The file as text: what `--json` prints."""
    return record_text(report, schema=REPORT_SCHEMA, version=REPORT_VERSION, provenance=provenance)


def write_report(path: PathLike, report: RunReport, provenance: Provenance) -> None:
    """Write a report, whole or not at all."""
    write_record(path, report, schema=REPORT_SCHEMA, version=REPORT_VERSION, provenance=provenance)


def read_report(path: PathLike) -> Stored[RunReport]:
    """Read a report back.

    Raises:
        BadFile: anything but a whole report; says what it is and what to do.
    """
    return read_record(path, RunReport, schema=REPORT_SCHEMA, version=REPORT_VERSION, upgrades=_UPGRADES)
