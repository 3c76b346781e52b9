"""A run report: what executing a plan really did."""

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.estimate import Speedup
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import Candidate


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

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the plan and the models, by role."""
        plan = {} if self.plan_sha256 is None else {"plan": self.plan_sha256}
        return plan | {"target": self.target_sha256, "draft": self.draft_sha256}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-run` as blocks of text."""
        from perfmodel.results.report_text import report_blocks

        return report_blocks(self, explain=explain)

    def save(self, path: PathLike) -> None:
        """Write the report as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        REPORT_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


REPORT_FILE = FileFormat(record=RunReport, schema="s2d/run-report", made_with="s2d-run --plan FILE -o FILE")
