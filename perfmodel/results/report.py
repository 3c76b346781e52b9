"""A run report: the measured execution of a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.stats import Interval
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.estimate import Speedup
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from perfmodel.results.plan import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRun:
    """One prompt in one arm."""

    name: str
    category: str
    prompt_tokens: Tokens
    rounds: RoundStats
    prefill_s: Seconds
    decode_s: Seconds
    """Wall time of the rounds without pauses of the process (`perfmodel.passes.pauses`), which the arm's samples include."""
    distinct_6gram_frac: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration over all prompts."""

    policy: Policy | None
    """The plan's policy, also in an adaptive run."""
    runs: tuple[PromptRun, ...]
    samples: PassSamples

    @property
    def rounds(self) -> RoundStats:
        """Counts over all prompts."""
        return sum_rounds(run.rounds for run in self.runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first token at which the plan's output differs from the plain target's."""

    prompt: str
    position: int
    """Zero-based among the emitted tokens."""
    gap: float
    """The target's largest logit minus the logit of the emitted token, teacher-forced. Near 0, the two are almost tied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The token-by-token comparison with plain decoding."""

    num_prompts: int
    num_equal: int
    worst_gap: float
    """Largest gap over all emitted tokens: 0 if each is the argmax of the target's teacher-forced logits."""
    divergences: tuple[Divergence, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShare:
    """The part of an adaptive run that used one policy."""

    policy: Policy | None
    num_rounds: int
    num_tokens: int
    decode_s: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """Policies that an adaptive run used."""

    num_switches: int
    """Rounds whose policy differs from that of the previous round, which may belong to the previous prompt."""
    shares: tuple[PolicyShare, ...]
    """In the order of the plan's frontier, including policies that were never used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Printable):
    """The execution of a plan, and plain decoding of the same prompts."""

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
    """None if plain decoding was not run."""
    measured: Speedup | None
    """None without the plain arm."""
    check: Check | None
    adaptation: Adaptation | None
    """None if the plan's policy was used throughout."""
    waited_frac: Frac | None = None
    """Share of the run in which it waited for a processor that other programs used; None if unknown."""
    predicted: Candidate | None = None
    """The plan's prediction; None without a plan."""

    @property
    def speedup(self) -> Interval | None:
        """Measured speed over plain decoding, with its 90 % interval; None without plain decoding."""
        return None if self.measured is None else self.measured.speedup

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the plan and the models, by role."""
        plan = {} if self.plan_sha256 is None else {"plan": self.plan_sha256}
        return plan | {"target": self.target_sha256, "draft": self.draft_sha256}

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-run` as blocks of text."""
        from perfmodel.results.report_text import report_blocks

        return report_blocks(self, explain=explain)

    @staticmethod
    def load(path: PathLike) -> "RunReport":
        """Read a report from a file by `save` or `s2d-run -o`.

        Raises:
            BadFile: the file is not a complete report.
        """
        return REPORT_FILE.read(path).record

    def save(self, path: PathLike) -> None:
        """Write the report as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        REPORT_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


REPORT_FILE = FileFormat(record=RunReport, schema="s2d/run-report", made_with="s2d-run --plan FILE -o FILE")
