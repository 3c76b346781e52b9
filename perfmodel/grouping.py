"""Histograms over the places of policies: by policy, or by prompt.

Letters: Q policies, C columns, M prompts, G groups, S places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from perfmodel.tape import Counts, Floats, Integers, Lengths, Tape, places_of

_EXACT = 2.0**53
"""Up to here a float holds every whole number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What was found at some places."""

    at: Counts  # [S]; prompt after prompt, as the tape has them
    value: Integers  # [S]
    times: Lengths | None  # [S]; how often each was found; once where it is None

    @property
    def most(self) -> int:
        """No fewer than were found in all."""
        return len(self.at) * (1 if self.times is None else int(self.times.max(initial=0)))


class Grouping:
    """The places of Q policies by policy, G = Q, or by prompt, G = Q * M."""

    def __init__(self, tape: Tape, num_policies: int, *, by_prompt: bool) -> None:
        num_prompts, columns = len(tape.begin), np.diff([*tape.begin, tape.num_columns])
        self.known = tape.known
        self.begins = places_of(tape, num_policies).policies  # [Q + 1]
        self.prompt = np.repeat(np.arange(num_prompts), columns) if by_prompt else None  # [C]
        self.per_policy = num_prompts if by_prompt else 1
        self.num_groups = num_policies * self.per_policy  # G

    def histogram(self, at: Counts, value: Integers, width: int) -> Counts:
        """How often each value below a width was found in each group. [G, width]."""
        return self._sums([Found(at=at, value=value, times=None)], width, None)

    def totals(self, found: Sequence[Found], width: int) -> tuple[Counts, Counts]:
        """The same, and the tokens known where it was found, in sum. [G, width] each.

        Both are summed as one number, the first in units that no sum of known tokens reaches, wherever a float holds that
        exactly: sums with weights are what replay spends most on.
        """
        most = sum(some.most for some in found)
        digits = int(most * self.known.max()).bit_length()
        if most * 2.0**digits > _EXACT:
            return self._sums(found, width, np.ones_like(self.known)), self._sums(found, width, self.known)
        both = self._sums(found, width, self.known + 2.0**digits)
        return both >> digits, both & ((1 << digits) - 1)

    def _sums(self, found: Sequence[Found], width: int, of_column: Floats | None) -> Counts:
        """By group, numbers of the columns where each value was found, in sum; how many they are where there are none."""
        total = np.zeros((len(self.begins) - 1, self.per_policy * width))
        for some in found:
            for policy, (begin, part) in enumerate(self._parts(some.at)):
                column, value, weights = some.at[part] - begin, some.value[part], None
                if self.prompt is not None:
                    value = value + self.prompt.take(column) * width
                if of_column is not None:
                    weights = of_column.take(column)
                    if some.times is not None:
                        weights *= some.times[part]
                total[policy] += np.bincount(value, weights, minlength=total.shape[1])
        sums: Counts = total.reshape(-1, width).astype(np.int64)
        return sums

    def _parts(self, at: Counts) -> Iterator[tuple[int, slice]]:
        """By policy, where its places begin, and which of some they are."""
        past = np.searchsorted(at, self.begins).tolist()
        return zip(self.begins[:-1].tolist(), (slice(*part) for part in pairwise(past)), strict=True)
