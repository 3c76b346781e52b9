"""A plan: the configuration to run, what it is expected to do, and on what evidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Bytes, Frac, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.quantisation.weight_format import WeightFormat
from perfmodel.replay.estimate import Speedup
from perfmodel.replay.round_stats import RoundStats

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

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the files that the plan was made from, by role."""
        return {evidence.role: evidence.sha256 for evidence in self.evidence if evidence.sha256 is not None}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan` as blocks of text."""
        from perfmodel.results.plan_text import plan_blocks

        return plan_blocks(self, explain=explain)

    def save(self, path: PathLike) -> None:
        """Write the plan as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        PLAN_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


PLAN_FILE = FileFormat(record=Plan, schema="s2d/plan", made_with="s2d-plan -o FILE")
