"""The fit of an engine profile: seconds of the draft, of verification and of the rest of a round, with their errors.

A round of K tokens drafted at exit e takes

    T(e, K) = V(K + 1) + overhead + n (a + b e) + c e

V is the verification, as measured at each profiled length; a + b e is one of the n draft passes; c e is what the first draft
passes of a round cost more, because the target has pushed the draft's weights out of the caches. A step of plain decoding
takes V(1).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from perfmodel.core.errors import OutOfDomain
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.engine_profile import EngineSetting

LENGTHS_SLACK = 2
"""A fit prices drafts up to this factor longer than the longest that was profiled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyPoint:
    """Seconds of one verification of some rows."""

    rows: int
    """Drafted tokens + 1."""
    seconds: Seconds
    """Without the overhead of a speculative round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedRun:
    """One profiled configuration, as measured and as the fit gives it back."""

    exit_layer: int
    draft_tokens: Tokens
    num_rounds: float
    tokens_per_round: float
    round_s: Seconds
    """Measured."""
    fitted_round_s: Seconds
    draft_s: Seconds | None
    """Seconds a round in the draft, by the engine's own timers; None if it reports none."""
    fitted_draft_s: Seconds

    @property
    def error_frac(self) -> Frac:
        """Fitted over measured seconds, minus 1."""
        return self.fitted_round_s / self.round_s - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """Seconds of an engine's passes, from one profile."""

    setting: EngineSetting
    exit_layers: tuple[int, ...]
    """All exits of the draft."""
    round_shape: RoundShape
    verify: tuple[VerifyPoint, ...]
    """Rising rows; the first has one row and is a step of plain decoding."""
    overhead_s: Seconds
    """Of a speculative round, beyond its passes. 0 if only the sum of verification and overhead is known."""
    draft_pass_s: Seconds
    """`a`: of a draft pass, whatever its layers. Includes the LM head."""
    draft_layer_s: Seconds
    """`b`: of each layer of a draft pass."""
    cold_layer_s: Seconds
    """`c`: further seconds a round for each layer of the draft."""
    exit_extra_s: tuple[Seconds, ...]
    """By exit: what its passes take beyond `a + b e`; 0 for exits that were not run as drafts."""
    profiled_exits: tuple[int, ...]
    """Exits that drafted in the profile."""
    timed_exits: tuple[int, ...]
    """Exits that drafted or were decoded alone. With one of them only, no other exit has a price."""
    context_tokens: Tokens
    """Cached tokens at the end of the longest profiled output."""
    agreement_kept_frac: Frac | None
    """Share of the trace's agreement that is left in the engine, from its rounds on the profile's prompts; None if the trace
    has none of these prompts or no trace was given."""
    error_frac: Frac
    """One standard deviation of the relative error of a speedup that the fit predicts, within its exits and lengths."""
    noise_frac: Frac
    """One standard deviation of a repeat: plain decoding against itself."""
    runs: tuple[FittedRun, ...]

    def __post_init__(self) -> None:
        if not self.verify or self.verify[0].rows != 1:
            raise ValueError("an engine fit starts with a step of plain decoding")
        if any(point.seconds <= 0 for point in self.verify) or len(self.exit_extra_s) != len(self.exit_layers):
            raise ValueError("an engine fit has verifications above 0 s, and a value for each exit")

    @property
    def plain_s(self) -> Seconds:
        """A step of plain decoding."""
        return self.verify[0].seconds

    @property
    def lengths(self) -> tuple[Tokens, ...]:
        """Profiled draft lengths."""
        return tuple(sorted({run.draft_tokens for run in self.runs}))

    @property
    def label(self) -> str:
        """`2 exits x 3 lengths run in llama.cpp b11434`."""
        exits, lengths = len(self.profiled_exits), len(self.lengths)
        counts = f"{exits} exit{'s' if exits > 1 else ''} x {lengths} length{'s' if lengths > 1 else ''}"
        return f"{counts} run in {self.setting.engine} {self.setting.version}"

    @property
    def timers_error_frac(self) -> Frac | None:
        """Median difference between the fitted seconds of the draft and the engine's own timers; None without timers."""
        errors = [abs(run.fitted_draft_s / run.draft_s - 1) for run in self.runs if run.draft_s]
        return median(errors) if errors else None

    def verify_s(self, rows: float) -> Seconds:
        """Seconds of a verification: linear between the measured points, and with the last slope beyond, if it rises.

        Raises:
            OutOfDomain: so many rows were not profiled, not even half of them.
        """
        last = self.verify[-1]
        if rows > LENGTHS_SLACK * (last.rows - 1) + 1 and rows > 1:
            fix = "Profile longer drafts: s2d-profile engine --lengths"
            raise OutOfDomain("draft tokens", rows - 1, low=1, high=LENGTHS_SLACK * (last.rows - 1), fix=fix)
        for low, high in pairwise(self.verify):
            if rows <= high.rows:
                return _between(low, high, rows)
        if len(self.verify) == 1:
            return last.seconds
        return max(last.seconds, _between(self.verify[-2], last, rows))

    def draft_s(self, exit_layer: int) -> Seconds:
        """Seconds of a draft pass of one row.

        Raises:
            OutOfDomain: only one exit was timed, and this is another one.
        """
        self.check_exit(exit_layer)
        return self.draft_pass_s + self.draft_layer_s * exit_layer + self.exit_extra_s[self.exit_layers.index(exit_layer)]

    def check_exit(self, exit_layer: int) -> None:
        """Refuse an exit whose seconds do not follow from the exits that were timed.

        Raises:
            OutOfDomain: only one exit was timed, and this is another one.
        """
        if exit_layer not in self.timed_exits and len(self.timed_exits) < 2:
            [timed] = self.timed_exits or (0,)
            fix = "Profile two exits or more: s2d-profile engine --exits"
            raise OutOfDomain("layers of the exit", exit_layer, low=timed, high=timed, fix=fix)

    def is_beyond(self, exit_layer: int | None, draft_tokens: Tokens, context_tokens: Tokens) -> bool:
        """Whether a configuration lies outside the profile. A length between two profiled ones does not.

        Args:
            exit_layer: the exit that drafts; None for plain decoding.
            draft_tokens: draft length.
            context_tokens: cached at the end of the output; 0 if unknown.
        """
        if self._context_doublings(context_tokens):
            return True
        if exit_layer is None or not self.runs:
            return False
        lengths, exits = self.lengths, self.profiled_exits
        return not (lengths[0] <= draft_tokens <= lengths[-1] and exits[0] <= exit_layer <= exits[-1])

    def doublings(self, exit_layer: int | None, draft_tokens: Tokens, context_tokens: Tokens) -> float:
        """How far a configuration is from those profiled, in doublings, added up.

        From the nearest profiled length, because verification curves bend between lengths too: kernels have widths. From the
        range of the exits, counted half, and from twice the longest context.

        Args:
            exit_layer: the exit that drafts; None for plain decoding.
            draft_tokens: draft length.
            context_tokens: cached at the end of the output; 0 if unknown.
        """
        beyond = self._context_doublings(context_tokens)
        if exit_layer is None or not self.runs:
            return beyond
        exits = self.profiled_exits
        nearest = min(abs(math.log2(draft_tokens / length)) for length in self.lengths)
        return beyond + nearest + max(0.0, math.log2(exits[0] / exit_layer), math.log2(exit_layer / exits[-1])) / 2

    def _context_doublings(self, context_tokens: Tokens) -> float:
        """Doublings beyond twice the longest profiled context."""
        return max(0.0, math.log2(context_tokens / max(1, self.context_tokens)) - 1) if context_tokens else 0.0


def _between(low: VerifyPoint, high: VerifyPoint, rows: float) -> Seconds:
    """Seconds on the line through two points."""
    return low.seconds + (high.seconds - low.seconds) * (rows - low.rows) / (high.rows - low.rows)
