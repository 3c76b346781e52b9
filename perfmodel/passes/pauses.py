"""Pauses: passes during which the process was stopped or the machine suspended.

Such a pass does not measure the device. Prices leave it out, sums of seconds replace it, and a warning reports it.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from statistics import median_low

from perfmodel.core.units import Seconds, format_seconds
from perfmodel.passes.passes import PASS_KINDS, PassKind, PassSample, PassSamples, kind_label

MIN_PAUSE_S: Seconds = 1.0
"""A shorter stall is ordinary competition for the processor; prices clamp it."""
MIN_PAUSE_RATIO = 30
"""A pass below this ratio may be slow for its own reasons: a long context, weights read from a disk."""

_LONGEST_SHOWN_S = 1_000_000
_LARGEST_SHOWN_RATIO = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """One pass that took at least `MIN_PAUSE_S` and `MIN_PAUSE_RATIO` times its typical seconds."""

    kind: PassKind
    rows: int
    seconds: Seconds
    typical_s: Seconds
    """Median of its kind and stage, scaled up in proportion for a pass of more rows."""

    @property
    def ratio(self) -> float:
        """Its seconds over the typical ones."""
        return self.seconds / self.typical_s


def find_pauses(samples: PassSamples) -> dict[int, Pause]:
    """The paused passes by their index in the samples."""
    if max(samples.seconds, default=0.0) < MIN_PAUSE_S:
        return {}
    medians = _medians(samples)
    pauses = {}
    for index, sample in enumerate(samples):
        median_rows, median_s = medians[sample.kind, sample.stage]
        typical_s = median_s * max(1.0, sample.rows / max(1, median_rows))
        if sample.seconds >= max(MIN_PAUSE_S, MIN_PAUSE_RATIO * typical_s):
            pauses[index] = Pause(kind=sample.kind, rows=sample.rows, seconds=sample.seconds, typical_s=typical_s)
    return pauses


def without_pauses(samples: PassSamples) -> PassSamples:
    """The samples without paused passes."""
    pauses = find_pauses(samples)
    if not pauses:
        return samples
    return PassSamples.from_passes(sample for index, sample in enumerate(samples) if index not in pauses)


def replace_pauses(samples: PassSamples) -> PassSamples:
    """The samples with typical seconds in place of every pause. A paused pass emits its tokens, so it must cost something."""
    pauses = find_pauses(samples)
    seconds = list(samples.seconds)
    for index, pause in pauses.items():
        seconds[index] = pause.typical_s
    return replace(samples, seconds=tuple(seconds)) if pauses else samples


def kind_seconds(samples: PassSamples) -> dict[PassKind, Seconds]:
    """Seconds of all passes of each kind, with the typical seconds in place of each pause."""
    totals: dict[PassKind, Seconds] = dict.fromkeys(PASS_KINDS, 0.0)
    for sample in replace_pauses(samples):
        totals[sample.kind] += sample.seconds
    return totals


def pauses_text(pauses: Collection[Pause]) -> str | None:
    """`1 verify pass of 25.0 s, 4,000 times the typical one, was left out: ...`; None without pauses."""
    if not pauses:
        return None
    longest = max(pauses, key=lambda pause: pause.seconds)
    name, took = kind_label(longest.kind), f"{_seconds_text(longest.seconds)}, {_ratio_text(longest.ratio)} the typical one"
    if len(pauses) == 1:
        counted = f"1 {name} pass of {took}, was left out"
    else:
        counted = f"{len(pauses)} passes, the longest a {name} pass of {took}, were left out"
    return f"{counted}: was the process stopped, or the machine suspended?"


def _seconds_text(seconds: Seconds) -> str:
    return format_seconds(seconds) if seconds < _LONGEST_SHOWN_S else f"more than {_LONGEST_SHOWN_S:,} s"


def _ratio_text(ratio: float) -> str:
    return f"{round(ratio):,} times" if ratio < _LARGEST_SHOWN_RATIO else f"more than {_LARGEST_SHOWN_RATIO:,} times"


def _medians(samples: PassSamples) -> dict[tuple[PassKind, int], tuple[int, Seconds]]:
    """Median rows and seconds by kind and stage; of two values the lower, which detects a pause in one of two passes."""
    groups: defaultdict[tuple[PassKind, int], list[PassSample]] = defaultdict(list)
    for sample in samples:
        groups[sample.kind, sample.stage].append(sample)
    return {
        key: (median_low(sample.rows for sample in group), median_low(sample.seconds for sample in group))
        for key, group in groups.items()
    }
