"""A pass: one call of the runtime whose seconds can be measured and predicted.

A round is cut into consecutive laps without gaps, so that the seconds of its passes add up to its wall time:

    segment  one block of draft layers over `rows` tokens (backlog and new), the embedding included in the first
    exit     norm, LM head, softmax, and the host's reading of token and confidence, at one looked-at exit
    ahead    an exit check, and a pass of the segment after it that was launched before its answer was read; the rows are those
             of the segment
    verify   the target's forward over `rows` = drafted + 1 positions, its head, and the decision
    round    what is left: rollback and bookkeeping; `rows` = tokens drafted in the round (handing text to a reader is
             the reader's time, and in no pass)

Passes over the prompt are in no round's time:

    draft_prefill   through one segment of a draft with weights of its own, before the first pass that needs the segment; none
                    where no pass does
    target_prefill  through all layers of the target, before the first round

Draft and target push each other out of the caches: the first passes after a verification fetch the draft's weights anew, and
a verification takes the longer, the more of the draft ran before it. A pass therefore has a *place*. That of a draft's pass
is the how-manieth of its kind it is in its round through its weights (segments have their own, all exits share one norm and
head); that of a verification is the number of segments that ran in its round.
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
"""The model whose profile holds the passes of a kind and whose latency prices them. A self-draft is both."""
PASS_KINDS: tuple[PassKind, ...] = tuple(PASS_MODEL)
PassName: TypeAlias = tuple[PassKind, int, int]
"""Kind, stage, and rows or place."""
PREFILL_KINDS: tuple[PassKind, ...] = ("draft_prefill", "target_prefill")
"""Over the prompt, and in no round."""
SEGMENT_KINDS: tuple[PassKind, ...] = ("segment", "ahead")
"""In which a segment of the draft runs."""
LAYER_KINDS: tuple[PassKind, ...] = (*SEGMENT_KINDS, "verify", *PREFILL_KINDS)
"""In which layers run."""
GRAPH_ROW_WIDTHS = (1, 2, 4, 8, 16, 32)
"""Rows of the passes through layers that the runtime captures as CUDA graphs; it pads narrower passes to the next of them."""
MAX_COUNT = 2**31 - 1
"""Of stage, rows and cached tokens of a pass: what a 32-bit integer holds."""
COLD_PLACES = 3
"""Places of a segment's or exit's passes that are told apart; from the next one on they count as warm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassShape:
    """What one pass is, as far as its seconds care."""

    kind: PassKind
    stage: int
    """Zero-based segment or exit of the draft (among all its exits, looked at or not), of an ahead pass the segment; 0 for the
    target's passes."""
    rows: int
    """Tokens in the pass."""
    cached_tokens: float
    """Tokens in the KV cache before it; 0 for exit and round. A mean is allowed where many passes are summed up."""


class Line(NamedTuple):
    """Seconds of passes of one kind, stage and number of rows: linear in the cached tokens."""

    base_s: Seconds
    """With nothing cached."""
    per_token_s: Seconds
    """For each cached token."""

    def at(self, cached_tokens: float) -> Seconds:
        """Seconds of one pass over so many cached tokens."""
        return self.base_s + self.per_token_s * cached_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PassCount:
    """Many passes of one kind, stage and number of rows, and the cached tokens they saw in sum."""

    kind: PassKind
    stage: int
    rows: int
    num_passes: int
    cached_tokens_sum: int

    @property
    def mean_shape(self) -> PassShape:
        """The shape whose seconds, times `num_passes`, are these passes' seconds (latency is linear in cached tokens)."""
        mean = self.cached_tokens_sum / self.num_passes
        return PassShape(kind=self.kind, stage=self.stage, rows=self.rows, cached_tokens=mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdCount:
    """Passes at one place that is cold (`is_cold`)."""

    kind: PassKind
    stage: int
    """Zero-based segment; 0 for exits, which share their weights, and for verifications."""
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
    """The width at which a pass of so many rows is captured; None for wider ones, which are launched kernel by kernel."""
    return next((width for width in GRAPH_ROW_WIDTHS if width >= rows), None)


def kind_label(kind: PassKind) -> str:
    """A kind as messages name it: `target prefill`."""
    return kind.replace("_", " ")


def weights_of(kind: PassKind, stage: int) -> tuple[PassKind, int]:
    """The weights a pass runs through, by kind and stage: all exits share one norm and head."""
    return kind, 0 if kind == "exit" else stage


def is_cold(kind: PassKind, place: int) -> bool:
    """Whether a pass finds less of its weights in the caches than others: early in a round, or after more than one segment."""
    if kind == "verify":
        return place > 1
    return PASS_MODEL[kind] == "draft" and kind not in PREFILL_KINDS and place <= COLD_PLACES


def places(passes: Iterable[tuple[PassKind, int]]) -> Iterator[int]:
    """The place of every pass, given kind and stage in the order they ran: each `round` pass ends a round."""
    so_far: Counter[tuple[PassKind, int]] = Counter()
    for kind, stage in passes:
        if kind == "verify":
            yield len({segment for ran, segment in so_far if ran in SEGMENT_KINDS})
            continue
        weights = weights_of(kind, stage)
        so_far[weights] += 1
        yield so_far[weights]
        if kind == "round":
            so_far.clear()
