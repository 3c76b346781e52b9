"""Counters in Prometheus text, as engines serve them at `/metrics`: one snapshot, or what grew between two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from calibrate.engine_metrics.fields import MAX_COUNT
from perfmodel.core.errors import BadFile, UserInputError, quoted
from perfmodel.engines.prometheus_text import BadSample, Sample, read_samples

_FIX = "Save the whole answer of /metrics: curl -sf http://127.0.0.1:PORT/metrics > metrics.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All samples of one answer of `/metrics`."""

    path: Path
    samples: tuple[Sample, ...]

    def named(self, name: str) -> tuple[Sample, ...]:
        """Samples of a name. Those of a draft that serves beside the target are left out."""
        return tuple(sample for sample in self.samples if sample.name == name and sample.label("engine_type") != "draft")

    def total(self, name: str) -> float | None:
        """Sum of the samples of a name over their labels; None if there is none.

        Raises:
            BadFile: a value is negative, NaN or infinite.
        """
        samples = self._counters(name)
        return math.fsum(sample.value for sample in samples) if samples else None

    def _counters(self, name: str) -> tuple[Sample, ...]:
        """Samples of a name, whose values are counts.

        Raises:
            BadFile: a value is negative, NaN or too large to be a count.
        """
        samples = self.named(name)
        for sample in samples:
            if not 0 <= sample.value <= MAX_COUNT:
                raise BadFile(self.path, f"{name} is {sample.value!r}, expected a finite number, 0 or more", _FIX)
        return samples

    def by_position(self, name: str) -> tuple[float, ...]:
        """Values by their label `position`, which counts from 0; empty if there is none.

        Raises:
            BadFile: a position is not a whole number, or a value is not a count.
        """
        totals: dict[int, float] = {}
        for sample in self._counters(name):
            position = sample.label("position") or ""
            if not position.isdecimal() or len(position) > 4:
                raise BadFile(self.path, f"{name} has the position {quoted(position)}, expected a whole number", _FIX)
            totals[int(position)] = totals.get(int(position), 0.0) + sample.value
        return tuple(totals.get(position, 0.0) for position in range(max(totals, default=-1) + 1))

    def models(self, prefix: str) -> tuple[str, ...]:
        """Values of the label `model_name` among the samples whose names start with a prefix, sorted."""
        found = {s.label("model_name") for s in self.samples if s.name.startswith(prefix) and s.label("engine_type") != "draft"}
        return tuple(sorted(name for name in found if name is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What the counters of a server grew by: between two snapshots, or from its start to one."""

    before: Snapshot | None
    after: Snapshot

    def counter(self, name: str) -> float | None:
        """What a counter grew by; None if the server does not have it.

        Raises:
            UserInputError: it fell, so the server restarted in between or the files are in the wrong order.
        """
        after = self.after.total(name)
        before = (self.before.total(name) if self.before else None) or 0.0
        if after is None:
            return None
        if after < before:
            raise self._fell(name, before, after)
        return after - before

    def count(self, name: str) -> int | None:
        """`counter` as a whole number."""
        value = self.counter(name)
        return None if value is None else round(value)

    def by_position(self, name: str) -> tuple[int, ...]:
        """What a counter by position grew by.

        Raises:
            UserInputError: one of them fell.
        """
        after = self.after.by_position(name)
        before = self.before.by_position(name) if self.before else ()
        padded = (*before, *(0.0,) * (len(after) - len(before)))
        for old, new in zip(padded, after, strict=True):
            if new < old:
                raise self._fell(name, old, new)
        return tuple(round(new - old) for old, new in zip(padded, after, strict=True))

    def _fell(self, name: str, before: float, after: float) -> UserInputError:
        assert self.before is not None
        return UserInputError(
            f"{name} fell from {before:g} in {str(self.before.path)!r} to {after:g} in {str(self.after.path)!r}, expected a "
            "counter that only grows: the server restarted in between, or the files are in the wrong order. Give the earlier "
            "file first, both from one life of the server."
        )


def parse_snapshot(path: Path, text: str) -> Snapshot:
    """The samples of Prometheus text.

    Raises:
        BadFile: a line is not a sample.
    """
    try:
        return Snapshot(path=path, samples=tuple(read_samples(text)))
    except BadSample as err:
        raise BadFile(path, f"line {err.number} is not a Prometheus sample: {quoted(err.line)}", _FIX) from err
