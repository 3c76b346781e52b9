"""Policies: where a drafted token may leave, and when drafting stops.

A policy depends on the exits' distributions only, never on the token sampled from them. Testing the sampled token's own
probability would not be lossless.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from perfmodel.core.errors import BadPolicy

Confidence = Literal["max-prob", "margin", "entropy", "top10-prob"]
"""A number in [0, 1] computed from an exit's distribution q: the largest probability, the difference between the two
largest, 1 - H(q) / log V, or the largest probability over the sum of the ten largest (at least 0.1; llama.cpp's `p-min`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCurve:
    """Probability that the target agrees, as a rising piecewise-linear function of one exit's confidence.

    The curve is flat outside its knots. It is fitted to traces (`calibrate/fit/fit_acceptance.py`): a weak draft agrees with
    its target far more often than its own largest probability suggests.
    """

    confidence: tuple[float, ...]
    agreement: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = list(self.confidence) == sorted(set(self.confidence)) and list(self.agreement) == sorted(self.agreement)
        if not self.confidence or len(self.confidence) != len(self.agreement) or not rising:
            raise BadPolicy("calibration curve", "as many agreements as rising confidences, never falling")
        if not 0 <= self.agreement[0] <= self.agreement[-1] <= 1:
            raise BadPolicy(f"calibration curve from {self.agreement[0]!r} to {self.agreement[-1]!r}", "agreements from 0 to 1")

    def __call__(self, confidence: float) -> float:
        """Agreement at one confidence."""
        right = bisect_right(self.confidence, confidence)
        if right == 0:
            return self.agreement[0]
        if right == len(self.confidence):
            return self.agreement[-1]
        x0, x1 = self.confidence[right - 1], self.confidence[right]
        y0, y1 = self.agreement[right - 1], self.agreement[right]
        return y0 + (y1 - y0) * (confidence - x0) / (x1 - x0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceFloor:
    """Stop at a token whose confidence is below `floor`.

    The token is kept in Kangaroo and in assisted generation of transformers, and dropped in llama.cpp.
    """

    floor: float
    keeps_token: bool = True
    """False: the token is dropped. Its passes are paid for, but it is not verified. The block may then be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalFloor:
    """Stop when the product of calibrated confidences falls below `floor`; the token that caused it is kept.

    The product estimates the probability that the target accepts the whole block. A floor on it is the optimal form of a
    stop rule: SpecDec++ (arXiv 2405.19715), Theorem 1.
    """

    floor: float
    calibration: tuple[CalibrationCurve, ...]
    """One curve per active exit, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeuristicLength:
    """Draft `start` tokens in a prompt's first round, then 2 more after a fully accepted round and 1 fewer otherwise.

    The length stays from 1 to the policy's `tokens`. S2D publishes this schedule, and transformers calls it `heuristic`.
    """

    start: int


StopRule: TypeAlias = ConfidenceFloor | SurvivalFloor | HeuristicLength


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which exits are active, when a token leaves at each, and how many tokens a round drafts.

    A token leaves at the first active exit whose confidence is at least its threshold (`>=`, as in the S2D paper). The last
    active exit always answers. Other exits are not evaluated and cost nothing.

    Example:
        >>> s2d.Policy(exits=(6, 12), thresholds=(0.68,), tokens=12).label
        'exits 6/12 at .68, 12 tokens'
    """

    exits: tuple[int, ...]
    """Layer counts of the active exits, rising."""
    thresholds: tuple[float, ...] = ()
    """One per active exit but the last."""
    tokens: int
    """Maximum number of tokens drafted in a round (the engines' `num_speculative_tokens`)."""
    stop: StopRule | None = None
    """When a round drafts fewer tokens; None drafts `tokens` in every round."""
    confidence: Confidence = "max-prob"
    runs_ahead: bool = False
    """Launch the segment after an active exit before the exit's answer is read. This hides the wait when the token continues
    and wastes one segment pass when it leaves. The tokens are the same."""
    catches_up_at_once: bool = False
    """Run a token that leaves early through the remaining segments, down to the last active exit, before the next token is
    drafted. Otherwise a segment catches up when a later token reaches it, in a wider pass. The tokens are the same."""

    def __post_init__(self) -> None:
        for name in ("exits", "thresholds"):
            values = getattr(self, name)
            if isinstance(values, (int, float, str)):
                raise BadPolicy(f"{name} {values!r}", f"a sequence, such as {name}=({values!r},)")
            object.__setattr__(self, name, tuple(values))
        is_layers = all(isinstance(layer, Integral) and layer >= 1 for layer in self.exits)
        if not self.exits or not is_layers or list(self.exits) != sorted(set(self.exits)):
            raise BadPolicy(f"exits {self.exits!r}", "at least one exit, rising layer counts")
        if len(self.thresholds) != len(self.exits) - 1:
            given = f"{len(self.thresholds)} thresholds for {len(self.exits)} exits"
            raise BadPolicy(given, "one for every exit but the last, which always answers")
        for layer, threshold in zip(self.exits, self.thresholds, strict=False):
            if not isinstance(threshold, Real) or not 0 <= threshold <= 1:
                raise BadPolicy(f"threshold {threshold!r} of exit {layer}", "a number from 0 to 1")
        if self.confidence not in get_args(Confidence):
            raise BadPolicy(f"confidence {self.confidence!r}", f"{', '.join(map(repr, get_args(Confidence)))}")
        if self.stop is not None and not isinstance(self.stop, StopRule):
            raise BadPolicy(f"stop {self.stop!r}", "a stop rule, such as ConfidenceFloor(floor=0.5), or None")
        self._check_pass_order()
        self._check_length()

    def _check_pass_order(self) -> None:
        if self.runs_ahead and len(self.exits) == 1:
            raise BadPolicy(f"running ahead with exit {self.exits[0]} alone", "at least two exits: the last one always answers")
        if self.catches_up_at_once and len(self.exits) == 1:
            problem = f"catching up at once with exit {self.exits[0]} alone"
            raise BadPolicy(problem, "at least two exits: no token leaves before the last one")
        if self.runs_ahead and self.catches_up_at_once:
            raise BadPolicy("running ahead and catching up at once", "at most one of them")

    def _check_length(self) -> None:
        if not isinstance(self.tokens, Integral) or self.tokens < 1:
            raise BadPolicy(f"{self.tokens!r} tokens per round", "at least 1 (plain decoding has no policy: None)")
        match self.stop:
            case ConfidenceFloor(floor=floor) | SurvivalFloor(floor=floor) if not 0 <= floor <= 1:
                raise BadPolicy(f"stop floor {floor!r}", "a number from 0 to 1")
            case SurvivalFloor(calibration=curves) if len(curves) != len(self.exits):
                raise BadPolicy(f"{len(curves)} calibration curves for {len(self.exits)} exits", "one for every active exit")
            case HeuristicLength(start=start) if not 1 <= start <= self.tokens:
                raise BadPolicy(f"heuristic start {start!r}", f"1 to {self.tokens}, the most tokens of a round")

    @property
    def first_cap(self) -> int:
        """Maximum number of tokens to draft in a prompt's first round."""
        return self.stop.start if isinstance(self.stop, HeuristicLength) else self.tokens

    def next_cap(self, cap: int, *, num_drafted: int, num_accepted: int) -> int:
        """Maximum number of tokens to draft after a round with the limit `cap`; a round without drafts changes nothing."""
        if not isinstance(self.stop, HeuristicLength) or not num_drafted:
            return cap
        return min(cap + 2, self.tokens) if num_accepted == num_drafted else max(cap - 1, 1)

    def next_survival(self, survival: float, *, active_index: int, confidence: float) -> float:
        """Estimated probability that the target accepts the block and one more token.

        Args:
            survival: the estimate for the block so far; 1 for an empty block.
            active_index: zero-based index, among the active exits, of the exit where the token left.
            confidence: the exit's confidence in it.
        """
        return survival * self.stop.calibration[active_index](confidence) if isinstance(self.stop, SurvivalFloor) else survival

    def drops(self, *, confidence: float) -> bool:
        """Whether the block ends before a token that was predicted with this confidence."""
        stop = self.stop
        return isinstance(stop, ConfidenceFloor) and not stop.keeps_token and confidence < stop.floor

    def stops(self, *, confidence: float, survival: float) -> bool:
        """Whether the block ends after a token that was not dropped.

        Args:
            confidence: of the token.
            survival: `next_survival` of the block, the token included.
        """
        match self.stop:
            case ConfidenceFloor(floor=floor):
                return confidence < floor
            case SurvivalFloor(floor=floor):
                return survival < floor
            case _:
                return False

    @property
    def label(self) -> str:
        """One line for tables: `exits 2/4/6 at .30/.45, running ahead, up to 8 tokens, stop below .20`."""
        exits = ("exit " if len(self.exits) == 1 else "exits ") + "/".join(map(str, self.exits))
        thresholds = " at " + "/".join(f"{t:.2f}".removeprefix("0") for t in self.thresholds) if self.thresholds else ""
        ahead = ", running ahead" if self.runs_ahead else ""
        at_once = ", catching up at once" if self.catches_up_at_once else ""
        return f"{exits}{thresholds}{ahead}{at_once}, {self._length_label}"

    @property
    def _length_label(self) -> str:
        match self.stop:
            case None:
                return f"{self.tokens} tokens"
            case ConfidenceFloor(floor=floor, keeps_token=keeps_token):
                return f"up to {self.tokens} tokens, {'stop' if keeps_token else 'drop'} below {floor:.2f}"
            case SurvivalFloor(floor=floor):
                return f"up to {self.tokens} tokens, stop at survival {floor:.2f}"
            case HeuristicLength(start=start):
                return f"+2/-1 from {start}, at most {self.tokens}"
