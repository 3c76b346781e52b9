"""One draft where it serves several targets, or one target's several workloads: a policy of each one's own, or one for all."""

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
    """One target, or one category of prompts, under every choice."""

    name: str
    target: str
    device: DeviceKey
    num_prompts: int
    own: Candidate
    """Searched for this part alone: what its plan says."""
    single: Candidate
    """The best exit alone at its best fixed length, chosen for this part; plain decoding where no exit has a price."""
    common: Candidate
    robust: Candidate
    evidence: tuple[Evidence, ...]

    def chosen(self, choice: Choice) -> Candidate:
        """What a choice comes to here."""
        found: Candidate = getattr(self, choice)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Geometric means of speedups, over the parts, on prompts that the policies were not searched on."""

    own: float
    single: float
    common: float
    robust: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Portfolio(Printable):
    """What one draft does for all parts."""

    of: Literal["targets", "categories"]
    draft: DraftGeometry
    parts: tuple[Part, ...]
    common: Policy | None
    """Of the highest geometric mean over the parts; None is not to speculate."""
    robust: Policy | None
    """Of the highest worst speedup over the parts."""
    held_out: HeldOut | None
    """Searched on one half of the prompts and scored on the other, both ways; None where a half would be empty."""
    nested_draft_bytes: Bytes
    """Weights of the one draft."""
    single_drafts_bytes: Bytes
    """Weights of a draft of its own for every different exit chosen alone."""
    next_command: str
    """The command that plans for the first part alone."""
    notes: tuple[str, ...] = ()
    """How to make a draft that is not public."""

    def mean_speedup(self, choice: Choice) -> float:
        """Geometric mean over the parts."""
        return math.exp(_mean(math.log(part.chosen(choice).speedup.speedup.value) for part in self.parts))

    def worst_speedup(self, choice: Choice) -> float:
        """The smallest over the parts."""
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
    found = list(values)
    return math.fsum(found) / len(found)


PORTFOLIO_FILE = FileFormat(
    record=Portfolio,
    schema="s2d/portfolio",
    made_with="s2d-plan --targets NAMES -o FILE or s2d-plan --by-category -o FILE",
)
