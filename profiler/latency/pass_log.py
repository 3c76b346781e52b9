"""Passes as they come: kept in order, thinned evenly, and looked through for what is missing or unsteady."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from perfmodel.core.units import Frac, Seconds
from perfmodel.passes.passes import PREFILL_KINDS, PassKind, PassSamples
from profiler.latency.pass_grid import PassKey

MAX_SAMPLES_PER_PASS = 1500
"""More are thinned evenly in time, so that a profile stays a few megabytes."""
WIDE_IQR_FRAC: Frac = 0.1
MIN_SAMPLES_FOR_IQR = 8
MIN_SHARE_TO_WARN: Frac = 0.005
"""A pass that takes less of the measured time than this is not worth a warning."""

Row = tuple[PassKind, int, int, int, int, Seconds]
"""Kind, stage, rows, cached tokens, place, seconds: one pass."""


class PassLog:
    """Passes in the order they ran."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self.counts: Counter[PassKey] = Counter()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, samples: PassSamples) -> Counter[PassKey]:
        """Append passes; returns how many there were of each key."""
        rows = rows_of(samples)
        added = Counter(map(_key, rows))
        self._rows.extend(rows)
        self.counts.update(added)
        return added

    def samples(self, keep: Callable[[PassKey], bool] = lambda key: True) -> PassSamples:
        """The passes of the keys to keep, every key thinned to `MAX_SAMPLES_PER_PASS`."""
        places: defaultdict[PassKey, list[int]] = defaultdict(list)
        for place, row in enumerate(self._rows):
            places[_key(row)].append(place)
        kept = sorted(place for key, found in places.items() if keep(key) for place in thinned(found, MAX_SAMPLES_PER_PASS))
        return samples_of(self._rows[place] for place in kept)

    def seconds_by_key(self) -> dict[PassKey, list[Seconds]]:
        """All seconds of each key, in the order they ran."""
        found: defaultdict[PassKey, list[Seconds]] = defaultdict(list)
        for row in self._rows:
            found[_key(row)].append(row[-1])
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


def lacking_passes(log: PassLog, needed: Collection[PassKey], enough_samples: int) -> frozenset[PassKey]:
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


def rows_of(samples: PassSamples) -> list[Row]:
    """Columns to rows."""
    columns = (samples.kind, samples.stage, samples.rows, samples.cached_tokens, samples.place, samples.seconds)
    return list(zip(*columns, strict=True))


def samples_of(rows: Iterable[Row]) -> PassSamples:
    """Rows to columns."""
    columns = tuple(zip(*rows, strict=True)) or ((),) * 6
    kind, stage, num_rows, cached, place, seconds = columns
    return PassSamples(kind=kind, stage=stage, rows=num_rows, cached_tokens=cached, place=place, seconds=seconds)


def _key(row: Row) -> PassKey:
    return PassKey(kind=row[0], stage=row[1], rows=row[2])


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    """First and last of every stretch of consecutive rising numbers."""
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        stretch = [number for _, number in group]
        yield stretch[0], stretch[-1]
