"""The passes of a draft's segments, by the looked-at exits that they lie between.

Letters: G groups, E segments, R rows, P places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.passes import COLD_PLACES
from perfmodel.tape import Counts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passes:
    """Passes of a segment."""

    number: Counts  # [G, R]; by their rows
    cached: Counts  # [G, R]; cached tokens before them
    cold: Counts  # [G, P]

    def before(self, last: Passes) -> Passes:
        """These, and one more a round that comes after them."""
        number, cached = (_sum(getattr(self, name), getattr(last, name)) for name in ("number", "cached"))
        return Passes(number=number, cached=cached, cold=np.hstack([last.cold[:, :1], self.cold[:, :-1]]))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Level:
    """What the segments from one looked-at exit down to the next run, each alike."""

    drafting: Passes
    pushed: Passes | None
    """Of a self draft's verification."""
    rounds: Counts  # [G]; in which these segments drafted
    tokens: Counts  # [G]; that came to the exit below them

    @property
    def passes(self) -> Passes:
        """All of them."""
        return self.drafting if self.pushed is None else self.drafting.before(self.pushed)


def chosen_passes(choices: Sequence[Passes], chosen: Counts, group: Counts) -> Passes:
    """The chosen of several passes by group and segment, [G, E], each padded to the widest: [G, any] each -> [G, E, any]."""

    def stacked(name: str) -> Counts:
        tables = [getattr(passes, name) for passes in choices]
        padded = np.zeros((len(tables), len(group), max(table.shape[1] for table in tables)), np.int64)
        for place, table in enumerate(tables):
            padded[place, :, : table.shape[1]] = table
        by_segment: Counts = padded[chosen, group]
        return by_segment

    return Passes(number=stacked("number"), cached=stacked("cached"), cold=stacked("cold"))


def _sum(one: Counts, other: Counts) -> Counts:
    """Both, as wide as the wider. [G, any]."""
    wide, narrow = (one, other) if one.shape[1] >= other.shape[1] else (other, one)
    total = wide.copy()
    total[:, : narrow.shape[1]] += narrow
    return total


def cold_of(by_number: Counts) -> Counts:
    """Passes at places 1, 2, ... of their rounds, from the rounds by their number of passes: [G, any] -> [G, P]."""
    at_least = by_number[:, :0:-1].cumsum(axis=1)[:, ::-1][:, :COLD_PLACES]
    cold = np.zeros((len(by_number), COLD_PLACES), np.int64)
    cold[:, : at_least.shape[1]] = at_least
    return cold
