"""An engine report: counters and seconds that an engine or its benchmark tool reports about a run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.stats import Interval
from perfmodel.core.units import Seconds, Tokens, TokensPerS
from perfmodel.replay.estimate import Decoded, mean_round_cost, measured_speedup


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCounts:
    """Counters of one request, or of several together. None: the engine does not report it.

    A round is a verification, or a step of plain decoding between verifications.
    """

    prompt: str | None = None
    """Name of the prompt; None if the file has no names, or for several requests."""
    num_requests: int | None = 1
    num_tokens: Tokens | None
    """Delivered tokens that `decode_s` covers and that the rounds emitted. In most engines the pass over the prompt emits the
    first token of a request, which is not counted here."""
    num_rounds: int | None = None
    num_drafted: int | None = None
    num_accepted: int | None = None
    """As the engine counts it. Engines differ in the last round of a request, which the length limit may cut."""
    accepted_by_position: tuple[int, ...] = ()
    """Entry i: rounds that accepted at least i + 1 tokens; empty if unknown."""
    acceptance_length: float | None = None
    """Mean tokens per round, where the engine reports only this mean."""
    decode_s: Seconds | None = None
    """Without the passes over the prompts, summed over the requests."""
    draft_s: Seconds | None = None
    verify_s: Seconds | None = None

    @property
    def tokens_per_round(self) -> float | None:
        """Emitted tokens per round, bonus included; None if the engine does not report enough.

        Delivered tokens over rounds if both are known. Otherwise accepted tokens plus the bonus, which may include tokens
        beyond the length limit; or the engine's own mean.
        """
        if self.num_rounds:
            if self.num_tokens is not None:
                return self.num_tokens / self.num_rounds
            if self.num_accepted is not None:
                return 1 + self.num_accepted / self.num_rounds
        return self.acceptance_length

    @property
    def drafted_per_round(self) -> float | None:
        """Drafted tokens per round; None if the engine does not report both counts."""
        return self.num_drafted / self.num_rounds if self.num_drafted is not None and self.num_rounds else None

    @property
    def tokens_per_s(self) -> TokensPerS | None:
        """Decoding speed of one sequence; None if the engine does not report it."""
        return self.num_tokens / self.decode_s if self.num_tokens and self.decode_s else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSource:
    """A file that was read."""

    name: str
    """Its name without the folder."""
    file_format: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport(Printable):
    """What an engine reports about a run, and about plain decoding beside it."""

    files: tuple[MetricsSource, ...]
    engine: str | None
    """Name in the table of engines; None if the files do not name it."""
    version: str | None
    model: str | None
    """Name under which the target was served; None if the files do not name it."""
    weights: str | None = None
    """Storage of the weights, in the engine's words; None if the files do not name it."""
    target_sha256: str | None = None
    draft_sha256: str | None = None
    exit_layer: int | None = None
    """The exit that drafted; None if the files do not name it."""
    draft_tokens: Tokens | None
    """Draft length that the engine was given; None if the files do not state it."""
    concurrency: int | None
    """Most requests at a time; None if unknown."""
    runs: tuple[EngineCounts, ...]
    plain_runs: tuple[EngineCounts, ...] = ()
    """Plain decoding of the same prompts; empty if it was not measured."""
    plain_token_s: Seconds | None = None
    """Seconds of a token of plain decoding by the engine's own estimate, used if it was not measured."""
    notes: tuple[str, ...] = ()
    """What the files do not contain, and how the engine counts."""

    @property
    def total(self) -> EngineCounts:
        """Counters of all requests."""
        return sum_counts(self.runs)

    @property
    def num_prompts(self) -> int | None:
        """Different prompts, each of which may have been repeated; None if the engine does not count its requests."""
        names = {run.prompt for run in self.runs}
        return self.total.num_requests if None in names else len(names)

    @property
    def plain_tokens_per_s(self) -> TokensPerS | None:
        """Speed of plain decoding; None if neither measured nor estimated by the engine."""
        if self.plain_runs:
            return sum_counts(self.plain_runs).tokens_per_s
        return 1 / self.plain_token_s if self.plain_token_s else None

    @property
    def speedup_value(self) -> float | None:
        """Measured speed over plain decoding; None if one of the two is unknown."""
        speed, plain = self.total.tokens_per_s, self.plain_tokens_per_s
        return speed / plain if speed and plain else None

    @property
    def speedup(self) -> Interval | None:
        """`speedup_value` with its 90 % interval over the prompts; None unless both files time every prompt.

        Repeats of a prompt are one sample. Requests without names are paired in their order.
        """
        runs, plain = _by_prompt(self.runs), _by_prompt(self.plain_runs)
        if runs is None or plain is None or runs.keys() != plain.keys() or len(runs) < 2:
            return None
        paired = [plain[prompt] for prompt in runs]
        return measured_speedup(list(runs.values()), paired, mean_round_cost({}, num_rounds=1)).speedup

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """What was read, as blocks of text."""
        from perfmodel.results.engine_report_text import engine_report_blocks

        return engine_report_blocks(self)


def sum_counts(parts: Iterable[EngineCounts]) -> EngineCounts:
    """Add up the counters of several requests. A count that one part lacks is unknown; no part at all is zero tokens."""
    counts = tuple(parts)
    if len(counts) == 1:
        return counts[0]

    def total(name: str) -> int | None:
        values = [getattr(part, name) for part in counts]
        return None if None in values or not values else sum(values)

    def total_s(name: str) -> Seconds | None:
        values = [getattr(part, name) for part in counts]
        return None if None in values or not values else math.fsum(values)

    positions = [part.accepted_by_position for part in counts]
    return EngineCounts(
        num_requests=total("num_requests"),
        num_tokens=total("num_tokens"),
        num_rounds=total("num_rounds"),
        num_drafted=total("num_drafted"),
        num_accepted=total("num_accepted"),
        accepted_by_position=tuple(map(sum, zip_longest(*positions, fillvalue=0))) if all(positions) else (),
        acceptance_length=_mean_length(counts),
        decode_s=total_s("decode_s"),
        draft_s=total_s("draft_s"),
        verify_s=total_s("verify_s"),
    )


def _mean_length(counts: Sequence[EngineCounts]) -> float | None:
    """Mean tokens per round over parts that report only their means: total tokens over total rounds."""
    parts = [(part.num_tokens, part.acceptance_length) for part in counts]
    known = [(tokens, length) for tokens, length in parts if tokens and length]
    if not parts or len(known) < len(parts):
        return None
    return sum(tokens for tokens, _ in known) / math.fsum(tokens / length for tokens, length in known)


def _by_prompt(runs: Sequence[EngineCounts]) -> dict[str, Decoded] | None:
    """Tokens and seconds of each prompt, its repeats together; None if one of them is unknown.

    Keys are names of prompts, or numbers of requests if a request has no name.
    """
    has_names = all(run.prompt is not None for run in runs)
    totals: dict[str, list[EngineCounts]] = {}
    for number, run in enumerate(runs):
        if not run.num_tokens or not run.decode_s or run.num_requests != 1:
            return None
        totals.setdefault(str(run.prompt if has_names else number), []).append(run)
    return {
        prompt: Decoded(
            num_tokens=sum(run.num_tokens or 0 for run in repeats),
            decode_s=math.fsum(run.decode_s or 0.0 for run in repeats),
        )
        for prompt, repeats in totals.items()
    }
