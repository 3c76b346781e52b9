"""A log of passes in the order they ran, thinned evenly; its missing and unsteady passes."""

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
"""More samples are thinned evenly in time: a profile stays at a few megabytes."""
WIDE_IQR_FRAC: Frac = 0.1
MIN_SAMPLES_FOR_IQR = 8
MIN_SHARE_TO_WARN: Frac = 0.005
"""Passes with a smaller share of the measured time cause no warning."""


class PassLog:
    """Passes in the order they ran."""

    def __init__(self) -> None:
        self._passes: list[PassSample] = []
        self.counts: Counter[PassKey] = Counter()

    def __len__(self) -> int:
        return len(self._passes)

    def add(self, samples: PassSamples) -> Counter[PassKey]:
        """Append passes. Returns their number by key."""
        added = Counter(map(_key, samples))
        self._passes.extend(samples)
        self.counts.update(added)
        return added

    def samples(self, model: PassModel | None = None) -> PassSamples:
        """The passes of one model or both, with at most `MAX_SAMPLES_PER_PASS` of each key."""
        indices: defaultdict[PassKey, list[int]] = defaultdict(list)
        for index, sample in enumerate(self._passes):
            if model is None or PASS_MODEL[sample.kind] == model:
                indices[_key(sample)].append(index)
        kept = sorted(index for group in indices.values() for index in thinned(group, MAX_SAMPLES_PER_PASS))
        return PassSamples.from_passes(self._passes[index] for index in kept)

    def seconds_by_key(self) -> dict[PassKey, list[Seconds]]:
        """The seconds of all passes by key, in the order they ran."""
        seconds: defaultdict[PassKey, list[Seconds]] = defaultdict(list)
        for sample in self._passes:
            seconds[_key(sample)].append(sample.seconds)
        return dict(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsteadyPass:
    """A pass with scattered times."""

    key: PassKey
    num_samples: int
    median_s: Seconds
    iqr_frac: Frac
    """The interquartile range over the median."""


def unsteady_passes(log: PassLog) -> list[UnsteadyPass]:
    """Passes whose interquartile range is above `WIDE_IQR_FRAC` of the median, by total time, longest first."""
    seconds = log.seconds_by_key()
    # The median limits the weight of a pause.
    taken_s = {key: len(values) * float(np.median(values)) for key, values in seconds.items()}
    total_s = sum(taken_s.values())
    unsteady = []
    for key, values in sorted(seconds.items(), key=lambda item: -taken_s[item[0]]):
        if key.kind in PREFILL_KINDS or len(values) < MIN_SAMPLES_FOR_IQR or taken_s[key] < MIN_SHARE_TO_WARN * total_s:
            continue
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        if high - low > WIDE_IQR_FRAC * median:
            iqr_frac = float((high - low) / median)
            unsteady.append(UnsteadyPass(key=key, num_samples=len(values), median_s=float(median), iqr_frac=iqr_frac))
    return unsteady


def missing_passes(log: PassLog, needed: Collection[PassKey], enough_samples: int) -> frozenset[PassKey]:
    """The needed passes with too few samples."""
    return frozenset(key for key in needed if log.counts[key] < enough_samples)


def keys_label(keys: Iterable[PassKey]) -> str:
    """Passes as text, with consecutive rows joined: `segment 3 of 9 to 14 rows, verify of 13 rows`."""
    parts = []
    for (kind, stage), group in groupby(sorted(keys), key=lambda key: (key.kind, key.stage)):
        rows = [key.rows for key in group]
        for first, last in _stretches(rows):
            label = PassKey(kind=kind, stage=stage, rows=last).label
            parts.append(label if first == last else label.replace(f"of {last}", f"of {first} to {last}"))
    return ", ".join(parts)


def thinned(items: Sequence[int], max_items: int) -> list[int]:
    """At most `max_items` of the items, evenly spread."""
    if len(items) <= max_items:
        return list(items)
    return [items[index] for index in np.linspace(0, len(items) - 1, max_items).round().astype(int)]


def _key(sample: PassSample) -> PassKey:
    return PassKey(kind=sample.kind, stage=sample.stage, rows=sample.rows)


def _stretches(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """The first and last number of each stretch of consecutive numbers."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in group]
        yield stretch[0], stretch[-1]
