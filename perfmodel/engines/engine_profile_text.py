"""An engine profile as text: the setting, and every configuration with its speed beside plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Facts, Table
from perfmodel.core.cpu_contention import BUSY_FRAC
from perfmodel.core.stats import INTERVAL_FRAC, Interval, resample_counts
from perfmodel.core.units import Seconds, Tokens, format_frac, format_interval, format_rate, format_seconds, format_speedup

if TYPE_CHECKING:
    from perfmodel.engines.engine_profile import EngineProfile, EngineRun

UNKNOWN = "-"


def profile_blocks(profile: EngineProfile, *, explain: bool) -> list[Block]:
    """The answer of `s2d-profile engine`.

    Args:
        profile: the result.
        explain: whether to add the engine's own timers and the calls.
    """
    setting, calls = profile.setting, len(profile.plain.calls)
    facts = [
        ("engine", setting.label),
        ("models", f"{profile.target.name} with {profile.draft.model.name}"),
        ("text", f"{len(prompt_names(profile.plain))} prompts, {profile.max_new_tokens} new tokens, {calls} plain calls"),
    ]
    facts += [("options", ", ".join(setting.options))] if setting.options else []
    blocks: list[Block] = [Facts(facts), _speeds_table(profile)]
    if explain:
        blocks.append(_timers_table(profile))
    return blocks


def profile_warnings(profile: EngineProfile) -> list[str]:
    """What makes a profile doubtful: texts that differ from plain decoding, and calls during which the processor was taken."""
    warnings = []
    for run in profile.runs:
        differing = differing_prompts(profile, run)
        if differing:
            warnings.append(
                f"{run.label}: the text of {len(differing)} of {len(prompt_names(run))} prompts differs from the engine's "
                f"own plain decoding, first that of {differing[0]!r}"
            )
    if len({(call.prompt, call.output_sha256) for call in profile.plain.calls}) > len(prompt_names(profile.plain)):
        warnings.append("plain: the engine writes different texts for the same prompt")
    waits = [call.waited_frac for run in profile.runs for call in run.calls if call.waited_frac is not None]
    if waits and median(waits) >= BUSY_FRAC:
        warnings.append(
            f"in the median call, the engine waited {format_frac(median(waits))} of the time for a processor that other "
            "programs used: stop them and measure again"
        )
    return warnings


def differing_prompts(profile: EngineProfile, run: EngineRun) -> list[str]:
    """Prompts that a configuration continued otherwise than the engine's own plain decoding. An exit alone is not compared."""
    if run.is_draft_alone:
        return []
    plain: dict[str, set[str]] = {}
    for call in profile.plain.calls:
        plain.setdefault(call.prompt, set()).add(call.output_sha256)
    wrong = {call.prompt for call in run.calls if call.output_sha256 not in plain.get(call.prompt, {call.output_sha256})}
    return [name for name in prompt_names(run) if name in wrong]


def prompt_names(run: EngineRun) -> list[str]:
    """The prompts of a configuration, in the order of its calls."""
    return list(dict.fromkeys(call.prompt for call in run.calls))


def measured_speedup(profile: EngineProfile, run: EngineRun) -> Interval:
    """Seconds per token of plain decoding over those of a configuration, with a bootstrap over their common prompts.

    Seconds and tokens of a prompt are means over its calls. Both configurations of a prompt are drawn together.
    """
    import numpy as np

    plain, other = _prompt_means(profile.plain), _prompt_means(run)
    names = [name for name in other if name in plain]
    columns = np.array([(*plain[name], *other[name]) for name in names])  # [P, 4]
    totals = np.vstack([columns.sum(axis=0), resample_counts(len(names)) @ columns])  # [1 + resamples, 4]
    ratios = (totals[:, 0] / totals[:, 1]) / (totals[:, 2] / totals[:, 3])
    low, high = np.quantile(ratios[1:], [(1 - INTERVAL_FRAC) / 2, (1 + INTERVAL_FRAC) / 2])
    return Interval(value=float(ratios[0]), low=float(low), high=float(high))


def tokens_per_round(run: EngineRun) -> float | None:
    """Emitted tokens per round; None if the engine does not report rounds."""
    counted = [call for call in run.calls if call.num_rounds]
    num_rounds = sum(call.num_rounds or 0 for call in counted)
    return sum(call.num_tokens - call.untimed_tokens for call in counted) / num_rounds if num_rounds else None


def _prompt_means(run: EngineRun) -> dict[str, tuple[Seconds, float]]:
    """Mean seconds and tokens of a call, by prompt."""
    sums: dict[str, tuple[Seconds, Tokens, int]] = {}
    for call in run.calls:
        seconds, tokens, count = sums.get(call.prompt, (0.0, 0, 0))
        sums[call.prompt] = (seconds + call.decode_s, tokens + call.num_tokens - call.untimed_tokens, count + 1)
    return {name: (seconds / count, tokens / count) for name, (seconds, tokens, count) in sums.items()}


def _speeds_table(profile: EngineProfile) -> Table:
    rows = []
    for run in profile.runs:
        speedup, length = measured_speedup(profile, run), tokens_per_round(run)
        interval = UNKNOWN if run.is_plain else format_interval(speedup.low, speedup.high, format_speedup)
        rows.append(
            [
                run.label,
                format_rate(run.decode_tokens / run.decode_s),
                UNKNOWN if run.is_plain else format_speedup(speedup.value),
                interval,
                UNKNOWN if length is None else f"{length:.2f}",
            ]
        )
    return Table(rows, headers=("configuration", "speed", "speedup", "90 % interval", "tokens per round"))


def _timers_table(profile: EngineProfile) -> Table:
    """Counters and timers of the engine, as far as it has them."""
    rows = [
        [
            run.label,
            _sum_text([call.num_rounds for call in run.calls]),
            _sum_text([call.num_drafted for call in run.calls]),
            _sum_text([call.num_accepted for call in run.calls]),
            _seconds_text([call.draft_s for call in run.calls]),
            _seconds_text([call.verify_s for call in run.calls]),
            format_seconds(run.decode_s),
        ]
        for run in profile.runs
    ]
    headers = ("configuration", "rounds", "drafted", "accepted", "draft", "verify", "decoding")
    return Table(rows, headers=headers, title="as the engine reports, over all calls:")


def _sum_text(values: Sequence[int | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known):,}" if len(known) == len(values) else UNKNOWN


def _seconds_text(values: Sequence[Seconds | None]) -> str:
    known = [value for value in values if value is not None]
    return format_seconds(sum(known)) if len(known) == len(values) else UNKNOWN
