"""Passes: the calls of the runtime whose seconds are measured and predicted.

A round is cut into consecutive laps without gaps. The seconds of its passes therefore add up to its wall time:

    segment  one block of draft layers over `rows` tokens (backlog and new); the first segment includes the embedding
    exit     norm, LM head and softmax at one active exit, and the host's wait for token and confidence
    ahead    an exit check, and a pass of the next segment that was launched before the answer was read; the rows are those
             of the segment
    verify   the target's forward over `rows` = drafted + 1 positions, its head, and the decision
    round    the rest: rollback and bookkeeping; `rows` = tokens drafted in the round (time in which the caller consumes
             streamed text belongs to no pass)

Passes over the prompt belong to no round:

    draft_prefill   one segment of a draft with its own weights, just before the first pass that needs the segment
    target_prefill  all layers of the target, before the first round

Draft and target push each other's weights out of the caches: the first draft passes after a verification fetch the draft's
weights again, and a verification takes longer the more of the draft ran before it. A pass therefore has a *place*. The place of
a draft pass is its 1-based index among passes of the same kind and weights in the round (each segment has its own weights; all
exits share one norm and head). The place of a verification is the number of segments that ran in its round.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, TypeAlias

from perfmodel.core.units import Seconds

PassKind = Literal["segment", "exit", "ahead", "verify", "round", "draft_prefill", "target_prefill"]
PassModel = Literal["draft", "target"]
PASS_MODEL: dict[PassKind, PassModel] = {
    "segment": "draft",
    "exit": "draft",
    "ahead": "draft",
    "verify": "target",
    "round": "target",
    "draft_prefill": "draft",
    "target_prefill": "target",
}
"""The model that runs a kind of pass: its profile holds the pass, and its latency prices it. A self-draft is both models."""
PASS_KINDS: tuple[PassKind, ...] = tuple(PASS_MODEL)
PassName: TypeAlias = tuple[PassKind, int, int]
"""Kind, stage, and rows or place."""
WeightsKey: TypeAlias = tuple[PassKind, int]
"""The weights that a pass reads, by kind and stage."""
PREFILL_KINDS: tuple[PassKind, ...] = ("draft_prefill", "target_prefill")
"""Passes over the prompt."""
SEGMENT_KINDS: tuple[PassKind, ...] = ("segment", "ahead")
"""Passes that run a segment of the draft in a round."""
LAYER_KINDS: tuple[PassKind, ...] = (*SEGMENT_KINDS, "verify", *PREFILL_KINDS)
"""Passes that run layers."""
GRAPH_ROW_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Widths at which the runtime captures passes through layers as CUDA graphs. It pads narrower passes to the next width."""
MAX_COUNT = 2**31 - 1
"""Limit of a pass's stage, rows and cached tokens: a 32-bit integer."""
COLD_PLACES = 3
"""Places of a draft pass that are distinguished; later places count as warm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassShape:
    """The properties of one pass that its seconds depend on."""

    kind: PassKind
    stage: int
    """Zero-based segment or exit of the draft, among all its exits, active or not; for an ahead pass the segment. 0 for the
    target's passes."""
    rows: int
    """Tokens in the pass."""
    cached_tokens: float
    """Tokens in the KV cache before the pass; 0 for exit and round. Latency is linear in them, so a mean is allowed."""


class Line(NamedTuple):
    """Seconds of passes of one kind, stage and number of rows: linear in the cached tokens."""

    base_s: Seconds
    """With nothing cached."""
    per_token_s: Seconds
    """For each cached token."""

    def at(self, cached_tokens: float) -> Seconds:
        """Seconds of one pass over this number of cached tokens."""
        return self.base_s + self.per_token_s * cached_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCount:
    """Number of passes of one kind, stage and number of rows, and the sum of their cached tokens."""

    kind: PassKind
    stage: int
    rows: int
    num_passes: int
    cached_tokens_sum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdCount:
    """Number of passes at one cold place (`is_cold`)."""

    kind: PassKind
    stage: int
    """Zero-based segment; 0 for exits, which share one head, and for verifications."""
    place: int
    num_passes: int


class PassSample(NamedTuple):
    """One measured pass."""

    kind: PassKind
    stage: int
    rows: int
    cached_tokens: int
    place: int
    seconds: Seconds

    @property
    def name(self) -> PassName:
        """Kind, stage and rows: what its price depends on, cached tokens apart."""
        return self.kind, self.stage, self.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PassSamples:
    """Measured passes in the order they ran, stored as columns. Calibration reads nothing else."""

    kind: tuple[PassKind, ...]
    stage: tuple[int, ...]
    rows: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    place: tuple[int, ...]
    seconds: tuple[Seconds, ...]

    def __post_init__(self) -> None:
        columns = (self.kind, self.stage, self.rows, self.cached_tokens, self.place, self.seconds)
        lengths = {len(column) for column in columns}
        if len(lengths) != 1:
            raise ValueError(f"pass samples: columns of unequal lengths {sorted(lengths)}")
        if any(value <= 0 for value in self.seconds):
            raise ValueError("pass samples: every pass takes more than 0 s")
        for name, column in (("stage", self.stage), ("rows", self.rows), ("cached_tokens", self.cached_tokens)):
            wrong = [value for value in (min(column, default=0), max(column, default=0)) if not 0 <= value <= MAX_COUNT]
            if wrong:
                raise ValueError(f"pass samples: {name} holds {str(wrong[0])[:20]}, expected 0 to {MAX_COUNT}")

    @classmethod
    def from_passes(cls, passes: Iterable[PassSample]) -> "PassSamples":
        """The columns of some passes."""
        columns = tuple(zip(*passes, strict=True)) or ((),) * len(PassSample._fields)
        kind, stage, rows, cached_tokens, place, seconds = columns
        return cls(kind=kind, stage=stage, rows=rows, cached_tokens=cached_tokens, place=place, seconds=seconds)

    @classmethod
    def concat(cls, parts: Iterable["PassSamples"]) -> "PassSamples":
        """The passes of several runs, one run after another."""
        return cls.from_passes(chain.from_iterable(parts))

    def __len__(self) -> int:
        return len(self.seconds)

    def __iter__(self) -> Iterator[PassSample]:
        columns = (self.kind, self.stage, self.rows, self.cached_tokens, self.place, self.seconds)
        return map(PassSample._make, zip(*columns, strict=True))

    def where(self, keep: Callable[[PassSample], bool]) -> "PassSamples":
        """The passes for which a condition holds."""
        return PassSamples.from_passes(filter(keep, self))

    def by_name(self) -> dict[PassName, list[PassSample]]:
        """The passes grouped by kind, stage and rows."""
        groups: defaultdict[PassName, list[PassSample]] = defaultdict(list)
        for sample in self:
            groups[sample.name].append(sample)
        return dict(groups)


def graph_width(rows: int) -> int | None:
    """The width to which a captured pass is padded; None for wider passes, which are launched kernel by kernel."""
    return next((width for width in GRAPH_ROW_WIDTHS if width >= rows), None)


def kind_label(kind: PassKind) -> str:
    """The kind in messages: `target prefill`."""
    return kind.replace("_", " ")


def weights_key(kind: PassKind, stage: int) -> WeightsKey:
    """The weights that a pass reads; all exits share one norm and head."""
    return kind, 0 if kind == "exit" else stage


def can_be_cold(kind: PassKind) -> bool:
    """Whether the other model may evict the weights of such a pass within a round: draft passes and verifications."""
    return kind == "verify" or (PASS_MODEL[kind] == "draft" and kind not in PREFILL_KINDS)


def is_cold(kind: PassKind, place: int) -> bool:
    """Whether a pass finds fewer of its weights in the caches than usual: early in a round, or after several segments."""
    return can_be_cold(kind) and (place > 1 if kind == "verify" else place <= COLD_PLACES)


def places(passes: Iterable[WeightsKey]) -> Iterator[int]:
    """The place of every pass, from kind and stage in the order they ran. Each `round` pass ends a round."""
    num_passes: Counter[WeightsKey] = Counter()
    for kind, stage in passes:
        if kind == "verify":
            yield len({segment for ran_kind, segment in num_passes if ran_kind in SEGMENT_KINDS})
            continue
        weights = weights_key(kind, stage)
        num_passes[weights] += 1
        yield num_passes[weights]
        if kind == "round":
            num_passes.clear()
