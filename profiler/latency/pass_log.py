"""Passes as they come: kept in order, thinned evenly, and looked through for what is missing or unsteady."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.passes import PASS_MODEL, PREFILL_KINDS, PassModel, PassSample, PassSamples
from profiler.latency.pass_grid import PassKey

MAX_SAMPLES_PER_PASS = 1500
"""More are thinned evenly in time, so that a profile stays a few megabytes."""
WIDE_IQR_FRAC: Frac = 0.1
MIN_SAMPLES_FOR_IQR = 8
MIN_SHARE_TO_WARN: Frac = 0.005
"""A pass that takes less of the measured time than this is not worth a warning."""


class PassLog:
    """Passes in the order they ran."""

    def __init__(self) -> None:
        self._passes: list[PassSample] = []
        self.counts: Counter[PassKey] = Counter()

    def __len__(self) -> int:
        return len(self._passes)

    def add(self, samples: PassSamples) -> Counter[PassKey]:
        """Append passes; returns how many there were of each key."""
        added = Counter(map(_key, samples))
        self._passes.extend(samples)
        self.counts.update(added)
        return added

    def samples(self, model: PassModel | None = None) -> PassSamples:
        """The passes of a model, or of both, every key thinned to `MAX_SAMPLES_PER_PASS`."""
        indices: defaultdict[PassKey, list[int]] = defaultdict(list)
        for index, sample in enumerate(self._passes):
            if model is None or PASS_MODEL[sample.kind] == model:
                indices[_key(sample)].append(index)
        kept = sorted(index for group in indices.values() for index in thinned(group, MAX_SAMPLES_PER_PASS))
        return PassSamples.from_passes(self._passes[index] for index in kept)

    def seconds_by_key(self) -> dict[PassKey, list[Seconds]]:
        """All seconds of each key, in the order they ran."""
        found: defaultdict[PassKey, list[Seconds]] = defaultdict(list)
        for sample in self._passes:
            found[_key(sample)].append(sample.seconds)
        return dict(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsteadyPass:
    """A pass whose seconds scatter."""

    key: PassKey
    num_samples: int
    median_s: Seconds
    iqr_frac: Frac
    """Distance of the quartiles over the median."""


def unsteady_passes(log: PassLog) -> list[UnsteadyPass]:
    """Passes whose quartiles are more than `WIDE_IQR_FRAC` of the median apart, those that took most time first."""
    seconds = log.seconds_by_key()
    taken_s = {key: len(values) * float(np.median(values)) for key, values in seconds.items()}  # one long pause counts little
    total_s = sum(taken_s.values())
    found = []
    for key, values in sorted(seconds.items(), key=lambda item: -taken_s[item[0]]):
        if key.kind in PREFILL_KINDS or len(values) < MIN_SAMPLES_FOR_IQR or taken_s[key] < MIN_SHARE_TO_WARN * total_s:
            continue
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        if high - low > WIDE_IQR_FRAC * median:
            iqr_frac = float((high - low) / median)
            found.append(UnsteadyPass(key=key, num_samples=len(values), median_s=float(median), iqr_frac=iqr_frac))
    return found


def missing_passes(log: PassLog, needed: Collection[PassKey], enough_samples: int) -> frozenset[PassKey]:
    """The needed passes with fewer samples than enough."""
    return frozenset(key for key in needed if log.counts[key] < enough_samples)


def keys_label(keys: Iterable[PassKey]) -> str:
    """Passes in words, rows that follow each other joined: `segment 3 of 9 to 14 rows, verify of 13 rows`."""
    parts = []
    for (kind, stage), group in groupby(sorted(keys), key=lambda key: (key.kind, key.stage)):
        rows = [key.rows for key in group]
        for first, last in _runs(rows):
            label = PassKey(kind=kind, stage=stage, rows=last).label
            parts.append(label if first == last else label.replace(f"of {last}", f"of {first} to {last}"))
    return ", ".join(parts)


def thinned(items: Sequence[int], most: int) -> list[int]:
    """At most so many of the items, evenly spread over them."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _key(sample: PassSample) -> PassKey:
    return PassKey(kind=sample.kind, stage=sample.stage, rows=sample.rows)


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """First and last of every stretch of consecutive rising numbers."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in group]
        yield stretch[0], stretch[-1]
