"""A portfolio: one draft for several targets or categories of prompts.

Each part has a policy of its own, or all parts share one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.disk import PathLike
from perfmodel.core.files import FileFormat
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Bytes
from perfmodel.models.geometry import DraftGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import Candidate, Evidence

Choice = Literal["own", "single", "common", "robust"]
CHOICES: tuple[Choice, ...] = ("own", "single", "common", "robust")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One target, or one category of prompts, with every choice of policy."""

    name: str
    target: str
    device: DeviceKey
    num_prompts: int
    own: Candidate
    """Searched for this part alone, as in its own plan."""
    single: Candidate
    """The fastest single exit with the fastest fixed length for this part; plain decoding if no exit has evidence."""
    common: Candidate
    robust: Candidate
    evidence: tuple[Evidence, ...]

    def chosen(self, choice: Choice) -> Candidate:
        """The candidate of one choice."""
        candidate: Candidate = getattr(self, choice)
        return candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Geometric means over the parts of the speedups on prompts that the search did not see."""

    own: float
    single: float
    common: float
    robust: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio(Printable):
    """One draft for all parts."""

    of: Literal["targets", "categories"]
    draft: DraftGeometry
    parts: tuple[Part, ...]
    common: Policy | None
    """The policy with the highest geometric mean over the parts; None is plain decoding."""
    robust: Policy | None
    """The policy whose smallest speedup over the parts is highest; None is plain decoding."""
    held_out: HeldOut | None
    """Each half of the prompts is searched and the other scored; None if a half is empty."""
    nested_draft_bytes: Bytes
    """Weights of this draft."""
    single_drafts_bytes: Bytes
    """Weights of separate drafts, one for each different exit among the `single` choices."""
    next_command: str
    """The command that plans for the first part alone."""
    notes: tuple[str, ...] = ()
    """How to train a draft that is not public."""

    def mean_speedup(self, choice: Choice) -> float:
        """Geometric mean of the speedups over the parts."""
        return math.exp(_mean(math.log(part.chosen(choice).speedup.speedup.value) for part in self.parts))

    def worst_speedup(self, choice: Choice) -> float:
        """The smallest speedup over the parts."""
        return min(part.chosen(choice).speedup.speedup.value for part in self.parts)

    @property
    def inputs(self) -> dict[str, str]:
        """SHA-256 of the files that the portfolio was made from, by role and part."""
        return {
            f"{evidence.role} of {part.name}": evidence.sha256
            for part in self.parts
            for evidence in part.evidence
            if evidence.sha256 is not None
        }

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-plan --targets` as blocks of text."""
        from perfmodel.results.portfolio_text import portfolio_blocks

        return portfolio_blocks(self, explain=explain)

    def save(self, path: PathLike) -> None:
        """Write the portfolio as a file, whole or not at all.

        Raises:
            UserInputError: the file cannot be written.
        """
        PORTFOLIO_FILE.write(path, self, make_provenance(argv=(f"{type(self).__name__}.save",), inputs=self.inputs))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


PORTFOLIO_FILE = FileFormat(
    record=Portfolio,
    schema="s2d/portfolio",
    made_with="s2d-plan --targets NAMES -o FILE or s2d-plan --by-category -o FILE",
)
