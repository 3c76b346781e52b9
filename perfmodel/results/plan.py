"""A plan: the configuration to run, what it is expected to do, and on what evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.codec import encode_record
from perfmodel.core.disk import PathLike
from perfmodel.core.files import Stored, Upgrades, read_record, record_text, write_record
from perfmodel.core.provenance import Provenance
from perfmodel.core.units import Bytes, Frac, Tokens
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.geometry import DraftGeometry, ModelGeometry, with_llama_layers, with_whole_heads
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_profile import with_standard_kernels
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy, with_catching_up_when_asked
from perfmodel.policies.sampling import Sampling, with_sampling_unpenalised
from perfmodel.quantisation.weight_format import BITS_PER_BYTE, WeightFormat, even_format
from perfmodel.replay.estimate import Speedup, with_nothing_ahead
from perfmodel.replay.round_stats import RoundStats

PLAN_SCHEMA = "s2d/plan"
PLAN_VERSION = 12

EvidenceRole = Literal["device", "draft latency", "target latency", "acceptance"]
EvidenceLevel = Literal["roofline", "extrapolated", "fitted", "measured", "assumed", "published", "traced", "found"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is asked of the target."""

    batch: int
    prompt_tokens: Tokens
    output_tokens: Tokens
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes on all devices together, at the end of the output."""

    target_weight_bytes: Bytes
    draft_weight_bytes: Bytes
    target_kv_bytes: Bytes
    draft_kv_bytes: Bytes
    capacity_bytes: Bytes | None
    """None when the device's memory is not known."""

    @property
    def total_bytes(self) -> Bytes:
        """All of it."""
        return self.target_weight_bytes + self.draft_weight_bytes + self.target_kv_bytes + self.draft_kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One thing a plan rests on: named by hash where it is a file, never copied."""

    role: EvidenceRole
    level: EvidenceLevel
    description: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration and what is predicted of it."""

    name: str
    """`plan`, `plain decoding`, `exit 6`, `paper thresholds` …"""
    policy: Policy | None
    """None: do not speculate."""
    rounds: RoundStats
    """Over all prompts of the acceptance evidence."""
    speedup: Speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """What to draft with so many sequences at a time."""

    batch: int
    exit_layer: int | None
    """The one exit that always answers; None where speculation does not pay."""
    draft_tokens: Tokens
    """0 where speculation does not pay."""
    speedup: float
    """Over plain decoding of the same batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSchedule:
    """Draft length by batch size at one context, as serving engines take it."""

    context_tokens: Tokens
    """In every sequence's cache."""
    points: tuple[BatchPoint, ...]
    """Batches of 1, 2, 4, … and `max_batch`, up to the first at which speculation does not pay."""
    max_batch: int
    """The largest batch that was priced: no larger than memory holds."""
    stops_at_batch: int | None
    """The smallest batch at which speculation does not pay; None where it pays up to `max_batch`."""
    fitting_batch: int | None
    """The most sequences whose caches fit beside the weights: memory ends here. None: the memory is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfitting:
    """The speedup of a search on prompts it has seen and on others: geometric means of two halves, each searched in turn."""

    seen_speedup: float
    unseen_speedup: float

    @property
    def lost_frac(self) -> Frac:
        """How much less the same policies give on other prompts."""
        return 1 - self.unseen_speedup / self.seen_speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Printable):
    """What to run. `chosen.policy` is None when not speculating is best."""

    target: ModelGeometry
    target_sha256: str | None
    """Hash of the target's weights where they were profiled; None where only the geometry is known."""
    draft: DraftGeometry
    draft_name: str
    draft_sha256: str | None
    tokenizer_sha256: str | None
    target_weights: WeightFormat
    """How they are stored, and priced."""
    draft_weights: WeightFormat
    device: DeviceKey
    draft_num_devices: int
    """All of the devices where they share the draft, as they do a self-draft; 1 where the first has it whole."""
    workload: Workload
    chosen: Candidate
    runners_up: tuple[Candidate, ...]
    frontier: tuple[FrontierPoint, ...]
    """What a run may move along, from cautious to bold; none where acceptance is not traced."""
    batch_schedules: tuple[BatchSchedule, ...]
    """At two contexts; none where only single sequences were measured."""
    overfitting: Overfitting | None
    """None where acceptance is not traced, or the prompts have no two halves."""
    memory: Memory
    evidence: tuple[Evidence, ...]
    next_command: str
    """The command that would replace the weakest evidence by a measurement."""
    notes: tuple[str, ...] = ()
    """What `next_command` cannot do, and how to make a draft that is not public. A note with a command ends with it."""

    @property
    def has_assumed_head(self) -> bool:
        """Whether the draft's head is reduced in thought only: there are no weights to measure or run."""
        return self.draft.model.has_reduced_head and self.draft_sha256 is None

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan` as blocks of text."""
        from perfmodel.results.plan_text import plan_blocks

        return plan_blocks(self, explain=explain)


def _from_version_2(body: dict[str, Any]) -> dict[str, Any]:
    return {**with_llama_layers(body), "batch_schedules": []}


def _from_version_4(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "overfitting": None}


def _from_version_5(body: dict[str, Any]) -> dict[str, Any]:
    return {**with_sampling_unpenalised(body), "frontier": []}


def _from_version_6(body: dict[str, Any]) -> dict[str, Any]:
    """A draft with weights of its own was measured whole on the first device, and priced by any law as shared by all."""
    levels = {part["role"]: part["level"] for part in body["evidence"]}
    is_whole = body["draft"]["kind"] == "separate" and levels.get("draft latency") == "measured"
    return {**body, "draft_num_devices": 1 if is_whole else body["device"]["num_devices"]}


def with_kernels_of_profiles(body: dict[str, Any]) -> dict[str, Any]:
    """An older file's body: seconds that were measured here were the standard kernels'."""
    levels = {part["level"] for part in body["evidence"] if part["role"].endswith("latency")}
    return with_standard_kernels(body) if "measured" in levels else {**body, "device": {**body["device"], "kernels": None}}


def _from_version_10(body: dict[str, Any]) -> dict[str, Any]:
    """Every weight, the LM head among them, was priced at the bits of the dtype, without scales."""
    dtype: Dtype = body["device"]["dtype"]
    weights = encode_record(even_format(dtype, dtype, DTYPE_BYTES[dtype] * BITS_PER_BYTE))
    return {**body, "target_weights": weights, "draft_weights": weights}


def _from_version_11(body: dict[str, Any]) -> dict[str, Any]:
    return {"notes": [], **body}


_UPGRADES: Upgrades = {
    2: _from_version_2,
    3: with_whole_heads,
    4: _from_version_4,
    5: _from_version_5,
    6: _from_version_6,
    7: with_nothing_ahead,
    8: with_catching_up_when_asked,
    9: with_kernels_of_profiles,
    10: _from_version_10,
    11: _from_version_11,
}


def plan_file_text(plan: Plan, provenance: Provenance) -> str:
    """The file as text: what `--json` prints."""
    return record_text(plan, schema=PLAN_SCHEMA, version=PLAN_VERSION, provenance=provenance)


def write_plan(path: PathLike, plan: Plan, provenance: Provenance) -> None:
    """Write a plan, whole or not at all."""
    write_record(path, plan, schema=PLAN_SCHEMA, version=PLAN_VERSION, provenance=provenance)


def read_plan(path: PathLike) -> Stored[Plan]:
    """Read a plan back.

    Raises:
        BadFile: anything but a whole plan; says what it is and what to do.
    """
    return read_record(path, Plan, schema=PLAN_SCHEMA, version=PLAN_VERSION, upgrades=_UPGRADES)
