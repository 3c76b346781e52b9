"""Results of compiled.py: the time of each arm relative to the lean decoder, a table per target, and the summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from details.compiled_arms import LEAN, LEAN_AGAIN, Arm, Shape
from perfmodel.core.console import table
from perfmodel.core.units import Seconds, format_seconds
from shared.common import median, quantile

CLEARLY = 0.10
"""Share of the lean decoder's time that a second way to run the layers would have to save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of one arm for one task, and those of the lean decoder."""

    setting: str
    turns_s: Sequence[Sequence[Seconds]]
    lean_turns_s: Sequence[Sequence[Seconds]]

    @property
    def quartiles_s(self) -> tuple[Seconds, Seconds, Seconds]:
        """Over all runs."""
        seconds = list(chain.from_iterable(self.turns_s))
        return quantile(seconds, 0.25), median(seconds), quantile(seconds, 0.75)

    @property
    def over_lean(self) -> float:
        """Seconds over the lean decoder's of the same run, the median over runs."""
        turns = zip(self.turns_s, self.lean_turns_s, strict=True)
        return median(median(mine) / median(lean) for mine, lean in turns)

    @property
    def as_json(self) -> dict[str, object]:
        """The quartiles and the ratio."""
        low, middle, high = self.quartiles_s
        return {"setting": self.setting, "median_s": middle, "low_s": low, "high_s": high, "over_lean": self.over_lean}

    @property
    def cell(self) -> str:
        """For example `820 µs, 0.97`."""
        return f"{format_seconds(self.quartiles_s[1])}, {self.over_lean:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledResult:
    """All measurements of one target."""

    target: str
    arms: Sequence[Arm]
    passes: dict[Shape, list[Timing]]
    loops: list[Timing]
    loop_tokens: int
    num_late_graphs: int
    """Graphs compiled after the first pass of every shape."""

    def over_lean(self, setting: str, rows: int) -> float | None:
        """The largest ratio over the contexts; None if not measured."""
        of_width = chain.from_iterable(timings for shape, timings in self.passes.items() if shape[0] == rows)
        return max((timing.over_lean for timing in of_width if timing.setting == setting), default=None)

    def loop_over_lean(self, setting: str) -> float | None:
        """The ratio in the loop; None if not measured."""
        return next((timing.over_lean for timing in self.loops if timing.setting == setting), None)

    def is_clearly_faster(self, setting: str) -> bool:
        """Whether a setting is faster on every pass of one row and in the loop."""
        ratios = self.over_lean(setting, 1), self.loop_over_lean(setting)
        return all(ratio is not None and ratio <= 1 - CLEARLY for ratio in ratios)

    @property
    def noise_frac(self) -> float:
        """The largest difference between the lean decoder and itself."""
        again = (
            timing for timings in (*self.passes.values(), self.loops) for timing in timings if timing.setting == LEAN_AGAIN.name
        )
        return max(abs(timing.over_lean - 1) for timing in again)

    @property
    def as_json(self) -> dict[str, object]:
        """All arms and shapes."""
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
            {"rows": rows, "context_tokens": context, "arms": [timing.as_json for timing in timings]}
            for (rows, context), timings in self.passes.items()
        ]
        loops = {"num_tokens": self.loop_tokens, "arms": [timing.as_json for timing in self.loops]}
        late = self.num_late_graphs
        return {"target": self.target, "arms": arms, "passes": passes, "loop": loops, "num_late_graphs": late}


def result_of(results: Sequence[CompiledResult]) -> dict[str, object]:
    """The summary. Ratios are the largest over the contexts."""
    names = [arm.setting.name for arm in results[0].arms if arm.setting is not LEAN]
    widths = sorted({rows for result in results for rows, _ in result.passes})
    return {
        "clearly_faster": [name for name in names if all(result.is_clearly_faster(name) for result in results)],
        "passes_over_lean": {
            f"{result.target}, {rows} row{'s' if rows > 1 else ''}": {name: result.over_lean(name, rows) for name in names}
            for result in results
            for rows in widths
        },
        "loop_over_lean": {result.target: {name: result.loop_over_lean(name) for name in names} for result in results},
        "lean_tokens_per_s": {result.target: _lean_tokens_per_s(result) for result in results},
        "compile_s": {
            result.target: {arm.setting.name: arm.compile_s for arm in result.arms if arm.setting.is_compiled}
            for result in results
        },
        "failures": {
            result.target: {arm.setting.name: arm.failure for arm in result.arms if arm.failure} for result in results
        },
        "noise_frac": max(result.noise_frac for result in results),
    }


def _lean_tokens_per_s(result: CompiledResult) -> float:
    [lean] = [timing for timing in result.loops if timing.setting == LEAN.name]
    return result.loop_tokens / lean.quartiles_s[1]


def compiled_table(result: CompiledResult) -> str:
    """A row per arm: its compile time, then the median and the ratio to the lean decoder for each task."""
    columns = [*result.passes.values(), result.loops]
    headers = [
        result.target,
        "compiling",
        "graphs",
        *(f"{rows} row{'s' if rows > 1 else ''} after {context}" for rows, context in result.passes),
        f"loop of {result.loop_tokens}",
    ]
    rows = []
    for arm in result.arms:
        cells = [next((timing.cell for timing in timings if timing.setting == arm.setting.name), "") for timings in columns]
        compiling = format_seconds(arm.compile_s) if arm.setting.is_compiled else ""
        rows.append([arm.setting.name, "failed" if arm.failure else compiling, str(arm.num_graphs or ""), *cells])
    failures = [f"{arm.setting.name}: {arm.failure}" for arm in result.arms if arm.failure]
    return "\n".join([table(rows, headers=headers), *failures])
