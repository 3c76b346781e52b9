"""When a draft leaves, and when it stops drafting.

An exit policy is a function of what the exits said, never of the token that was sampled from them: testing the sampled
token's own probability is not lossless.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from perfmodel.core.errors import BadPolicy

Confidence = Literal["max-prob", "margin", "entropy"]
"""A number in [0, 1] from an exit's distribution q: its largest probability; the gap between the two largest; or
1 - H(q) / log V."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationCurve:
    """Probability that the target agrees, as a rising piecewise-linear function of one exit's confidence.

    Flat outside the knots. Fitted on traces (`calibrate/fit/fit_acceptance.py`), because a weak draft agrees with its target
    far more often than its own largest probability says.
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
class FixedLength:
    """Draft `draft_cap` tokens every round."""

    draft_cap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FloorStop:
    """Stop after a token whose confidence is below `floor` (the token is kept), or at the cap. Kangaroo, HF assisted."""

    draft_cap: int
    floor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SurvivalStop:
    """Stop once the product of calibrated confidences, the chance that the whole block survives, is below `floor`.

    The token that brought it there is kept. The optimal form of a stop: SpecDec++ (arXiv 2405.19715), Theorem 1.
    """

    draft_cap: int
    floor: float
    calibration: tuple[CalibrationCurve, ...]
    """One curve per looked-at exit, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeuristicLength:
    """+2 after a fully accepted round, otherwise -1, at least 1: the published S2D and transformers' heuristic schedule.

    Starts at `start` for every prompt.
    """

    start: int
    draft_cap: int


LengthRule = FixedLength | FloorStop | SurvivalStop | HeuristicLength


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitPolicy:
    """Which exits are looked at, when a token may leave at each, and when the block ends.

    A token leaves at the first looked-at exit whose confidence is at least its threshold (`>=`: the paper's text); the
    last looked-at exit always answers. Exits that are not named are disabled: not looked at, not paid for.

    Running ahead, the segment after a looked-at exit is launched before the exit's answer is read: the wait for the answer is
    hidden where the token goes on, and a segment's pass is spent on one that leaves. The tokens are the same.

    Catching up at once, a token that leaves runs through the other segments down to the last looked-at exit before the next
    one is drafted, so that their passes stay short; otherwise a segment catches up when a token comes to it. The tokens are
    the same here too.
    """

    exit_layers: tuple[int, ...]
    thresholds: tuple[float, ...]
    """One per looked-at exit but the last."""
    confidence: Confidence
    length: LengthRule
    runs_ahead: bool = False
    catches_up_at_once: bool = False

    def __post_init__(self) -> None:
        layers = self.exit_layers
        if not layers or list(layers) != sorted(set(layers)):
            raise BadPolicy(f"exits {layers!r}", "at least one exit, rising layer counts")
        if len(self.thresholds) != len(layers) - 1:
            given = f"{len(self.thresholds)} thresholds for {len(layers)} exits"
            raise BadPolicy(given, "one for every exit but the last, which always answers")
        for layer, threshold in zip(layers, self.thresholds, strict=False):
            if not 0 <= threshold <= 1:
                raise BadPolicy(f"threshold {threshold!r} of exit {layer}", "a number from 0 to 1")
        self._check_passes()
        self._check_length()

    def _check_passes(self) -> None:
        first, *others = self.exit_layers
        if self.runs_ahead and not others:
            raise BadPolicy(f"running ahead of exit {first} alone", "two exits at least: the last one always answers")
        if self.catches_up_at_once and not others:
            raise BadPolicy(
                f"catching up at once with exit {first} alone", "two exits at least: no token leaves before the last"
            )
        if self.runs_ahead and self.catches_up_at_once:
            raise BadPolicy("running ahead and catching up at once", "one of them at most")

    def _check_length(self) -> None:
        rule = self.length
        if rule.draft_cap < 1:
            raise BadPolicy(f"draft cap {rule.draft_cap!r}", "at least 1 (not to speculate is to have no policy)")
        if isinstance(rule, FloorStop | SurvivalStop) and not 0 <= rule.floor <= 1:
            raise BadPolicy(f"stop floor {rule.floor!r}", "a number from 0 to 1")
        if isinstance(rule, SurvivalStop) and len(rule.calibration) != len(self.exit_layers):
            raise BadPolicy(
                f"{len(rule.calibration)} calibration curves for {len(self.exit_layers)} exits", "one for every looked-at exit"
            )
        if isinstance(rule, HeuristicLength) and not 1 <= rule.start <= rule.draft_cap:
            raise BadPolicy(f"heuristic start {rule.start!r}", f"from 1 to its cap of {rule.draft_cap}")

    @property
    def label(self) -> str:
        """`exits 2/4/6 at .30/.45, running ahead, up to 8 tokens, stop below .20`: one line for tables."""
        exits = ("exit " if len(self.exit_layers) == 1 else "exits ") + "/".join(map(str, self.exit_layers))
        gates = " at " + "/".join(f"{t:.2f}".removeprefix("0") for t in self.thresholds) if self.thresholds else ""
        ahead = ", running ahead" if self.runs_ahead else ""
        at_once = ", catching up at once" if self.catches_up_at_once else ""
        return f"{exits}{gates}{ahead}{at_once}, {length_label(self.length)}"


def length_label(rule: LengthRule) -> str:
    """A length rule in words, for tables."""
    match rule:
        case FixedLength():
            return f"{rule.draft_cap} tokens"
        case FloorStop():
            return f"up to {rule.draft_cap} tokens, stop below {rule.floor:.2f}"
        case SurvivalStop():
            return f"up to {rule.draft_cap} tokens, stop at survival {rule.floor:.2f}"
        case HeuristicLength():
            return f"+2/-1 from {rule.start}, at most {rule.draft_cap}"
