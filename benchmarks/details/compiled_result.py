"""What compiled.py says: one arm's seconds beside the lean decoder's, a table per target, and the figures that end it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from details.compiled_arms import LEAN, LEAN_AGAIN, Arm, Shape
from perfmodel.core.console import table
from perfmodel.core.units import Seconds, format_seconds
from shared.common import median, quantile

CLEARLY = 0.10
"""Less time than the lean decoder's, as a share of it: what a second way to run layers would have to give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One arm doing one thing, beside the lean decoder."""

    setting: str
    turns_s: Sequence[Sequence[Seconds]]
    lean_turns_s: Sequence[Sequence[Seconds]]

    @property
    def quartiles_s(self) -> tuple[Seconds, Seconds, Seconds]:
        """Over all turns."""
        seconds = list(chain.from_iterable(self.turns_s))
        return quantile(seconds, 0.25), median(seconds), quantile(seconds, 0.75)

    @property
    def over_lean(self) -> float:
        """Seconds over the lean decoder's of the same turn, the median over turns."""
        turns = zip(self.turns_s, self.lean_turns_s, strict=True)
        return median(median(mine) / median(lean) for mine, lean in turns)

    @property
    def as_json(self) -> dict[str, object]:
        """Its quartiles and its ratio."""
        low, middle, high = self.quartiles_s
        return {"setting": self.setting, "median_s": middle, "low_s": low, "high_s": high, "over_lean": self.over_lean}

    @property
    def cell(self) -> str:
        """`820 µs, 0.97`."""
        return f"{format_seconds(self.quartiles_s[1])}, {self.over_lean:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All of one target."""

    target: str
    arms: Sequence[Arm]
    passes: dict[Shape, list[Timing]]
    loops: list[Timing]
    loop_tokens: int
    num_late_graphs: int
    """Compiled after the first pass of every shape."""

    def over_lean(self, setting: str, rows: int) -> float | None:
        """The worst ratio over the contexts; None where it was not measured."""
        some = chain.from_iterable(timings for shape, timings in self.passes.items() if shape[0] == rows)
        return max((one.over_lean for one in some if one.setting == setting), default=None)

    def loop_over_lean(self, setting: str) -> float | None:
        """None where it was not measured."""
        return next((one.over_lean for one in self.loops if one.setting == setting), None)

    def is_clearly_faster(self, setting: str) -> bool:
        """On every pass of one row and in the loop."""
        ratios = self.over_lean(setting, 1), self.loop_over_lean(setting)
        return all(ratio is not None and ratio <= 1 - CLEARLY for ratio in ratios)

    @property
    def noise_frac(self) -> float:
        """The lean decoder against itself, at its worst."""
        again = (one for timings in (*self.passes.values(), self.loops) for one in timings if one.setting == LEAN_AGAIN.name)
        return max(abs(one.over_lean - 1) for one in again)

    @property
    def as_json(self) -> dict[str, object]:
        """Every arm, every shape."""
        arms = [
            {
                "setting": arm.setting.name,
                "compile_s": arm.compile_s if arm.setting.is_compiled else None,
                "num_graphs": arm.num_graphs,
                "failure": arm.failure,
            }
            for arm in self.arms
        ]
        passes = [
            {"rows": rows, "context_tokens": context, "arms": [one.as_json for one in timings]}
            for (rows, context), timings in self.passes.items()
        ]
        loops = {"num_tokens": self.loop_tokens, "arms": [one.as_json for one in self.loops]}
        late = self.num_late_graphs
        return {"target": self.target, "arms": arms, "passes": passes, "loop": loops, "num_late_graphs": late}


def result_of(found: Sequence[Found]) -> dict[str, object]:
    """The figures that end it: ratios are the worst over the contexts."""
    names = [arm.setting.name for arm in found[0].arms if arm.setting is not LEAN]
    widths = sorted({rows for one in found for rows, _ in one.passes})
    return {
        "clearly_faster": [name for name in names if all(one.is_clearly_faster(name) for one in found)],
        "passes_over_lean": {
            f"{one.target}, {rows} row{'s' if rows > 1 else ''}": {name: one.over_lean(name, rows) for name in names}
            for one in found
            for rows in widths
        },
        "loop_over_lean": {one.target: {name: one.loop_over_lean(name) for name in names} for one in found},
        "lean_tokens_per_s": {one.target: _lean_tokens_per_s(one) for one in found},
        "compile_s": {
            one.target: {arm.setting.name: arm.compile_s for arm in one.arms if arm.setting.is_compiled} for one in found
        },
        "failures": {one.target: {arm.setting.name: arm.failure for arm in one.arms if arm.failure} for one in found},
        "noise_frac": max(one.noise_frac for one in found),
    }


def _lean_tokens_per_s(found: Found) -> float:
    [lean] = [one for one in found.loops if one.setting == LEAN.name]
    return found.loop_tokens / lean.quartiles_s[1]


def found_table(found: Found) -> str:
    """A line per arm: what compiling took, then the median and the ratio to the lean decoder of everything it ran."""
    columns = [*found.passes.values(), found.loops]
    headers = [
        found.target,
        "compiling",
        "graphs",
        *(f"{rows} row{'s' if rows > 1 else ''} after {context}" for rows, context in found.passes),
        f"loop of {found.loop_tokens}",
    ]
    rows = []
    for arm in found.arms:
        cells = [next((one.cell for one in timings if one.setting == arm.setting.name), "") for timings in columns]
        compiling = format_seconds(arm.compile_s) if arm.setting.is_compiled else ""
        rows.append([arm.setting.name, "failed" if arm.failure else compiling, str(arm.num_graphs or ""), *cells])
    failures = [f"{arm.setting.name}: {arm.failure}" for arm in found.arms if arm.failure]
    return "\n".join([table(rows, headers=headers), *failures])
