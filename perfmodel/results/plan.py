"""A plan: the configuration to run, its predicted speed, and the evidence for both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval
from perfmodel.core.units import Bytes, Frac, Tokens
from perfmodel.engines.engine_profile import EngineSetting
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
    """The requests that the target serves."""

    batch: int
    prompt_tokens: Tokens
    output_tokens: Tokens
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Memory use of all devices together, at the end of the output."""

    target_weight_bytes: Bytes
    draft_weight_bytes: Bytes
    target_kv_bytes: Bytes
    draft_kv_bytes: Bytes
    capacity_bytes: Bytes | None
    """None if the device's memory is unknown."""

    @property
    def total_bytes(self) -> Bytes:
        """Weights and caches of both models."""
        return self.target_weight_bytes + self.draft_weight_bytes + self.target_kv_bytes + self.draft_kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One input of a plan. A file is identified by its hash and never copied."""

    role: EvidenceRole
    level: EvidenceLevel
    description: str
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration and its prediction."""

    name: str
    """`plan`, `plain decoding`, `exit 6`, `paper thresholds` …"""
    policy: Policy | None
    """None: do not speculate."""
    rounds: RoundStats
    """Over all prompts of the acceptance evidence."""
    speedup: Speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """What to draft at one batch size."""

    batch: int
    exit_layer: int | None
    """The only exit in use; None if speculation does not pay."""
    draft_tokens: Tokens
    """Draft length; 0 if speculation does not pay."""
    speedup: float
    """Relative to plain decoding of the same batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSchedule:
    """Draft length by batch size at one context length, as serving engines accept it."""

    context_tokens: Tokens
    """Tokens in the cache of every sequence."""
    points: tuple[BatchPoint, ...]
    """Batch sizes 1, 2, 4, … and `max_batch`, up to the first at which speculation does not pay."""
    max_batch: int
    """The largest batch size that was priced. It is at most what memory holds."""
    stops_at_batch: int | None
    """The smallest batch size at which speculation does not pay; None if it pays up to `max_batch`."""
    fitting_batch: int | None
    """The largest batch size whose caches fit in memory beside the weights; None if the memory is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overfitting:
    """Speedups on searched and on other prompts: geometric means over two halves, each searched and scored on both."""

    seen_speedup: float
    unseen_speedup: float

    @property
    def lost_frac(self) -> Frac:
        """Share of the speedup that the same policies lose on other prompts."""
        return 1 - self.unseen_speedup / self.seen_speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Printable):
    """The configuration to run. `chosen.policy` is None if plain decoding is fastest."""

    target: ModelGeometry
    target_sha256: str | None
    """Hash of the target's weights; None if only the geometry is known."""
    draft: DraftGeometry
    draft_name: str
    draft_sha256: str | None
    tokenizer_sha256: str | None
    target_weights: WeightFormat
    """Format in which the weights are stored and priced."""
    draft_weights: WeightFormat
    device: DeviceKey
    draft_num_devices: int
    """Number of devices that share the draft: all of them, as for a self-draft, or 1 if the first holds the whole draft."""
    workload: Workload
    chosen: Candidate
    runners_up: tuple[Candidate, ...]
    frontier: tuple[FrontierPoint, ...]
    """Policies for `s2d-run --adapt`, from the shortest to the longest drafts; empty without a trace."""
    batch_schedules: tuple[BatchSchedule, ...]
    """At two context lengths; empty if only single sequences were measured."""
    overfitting: Overfitting | None
    """None without a trace, or if the prompts have no two halves."""
    memory: Memory
    evidence: tuple[Evidence, ...]
    next_command: str
    """The command that replaces the weakest evidence with a measurement."""
    engine: str = "s2d"
    """Name of the engine that executes the plan (`perfmodel.engines`): the bundled runtime unless another one was requested."""
    engine_setting: EngineSetting | None = None
    """Version, weights and options with which the engine was profiled; None if it was not."""
    notes: tuple[str, ...] = ()
    """Limits of `next_command`, and how to train a draft that is not public. A command in a note stands at its end."""

    @property
    def policy(self) -> Policy | None:
        """The chosen policy; None means: do not speculate."""
        return self.chosen.policy

    @property
    def speedup(self) -> Interval:
        """Predicted speed over plain decoding, with its 90 % interval."""
        return self.chosen.speedup.speedup

    @property
    def tokens_per_s(self) -> float:
        """Predicted tokens per second."""
        return self.chosen.speedup.tokens_per_s

    @property
    def has_assumed_head(self) -> bool:
        """Whether the draft has a reduced head that has not been made yet. Such a draft can be neither measured nor run."""
        return self.draft.model.has_reduced_head and self.draft_sha256 is None

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the files that the plan was made from, by role."""
        return {evidence.role: evidence.sha256 for evidence in self.evidence if evidence.sha256 is not None}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan` as blocks of text."""
        from perfmodel.results.plan_text import plan_blocks

        return plan_blocks(self, explain=explain)

    @staticmethod
    def load(path: PathLike) -> "Plan":
        """Read a plan from a file by `save` or `s2d-plan -o`.

        Raises:
            BadFile: the file is not a complete plan.
        """
        return PLAN_FILE.read(path).record

    def save(self, path: PathLike) -> None:
        """Write the plan as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        PLAN_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


PLAN_FILE = FileFormat(record=Plan, schema="s2d/plan", made_with="s2d-plan -o FILE")
