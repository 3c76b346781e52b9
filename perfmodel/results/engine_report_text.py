"""An engine report as text: what was read, and what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Facts
from perfmodel.core.units import format_frac, format_interval, format_rate, format_speedup

if TYPE_CHECKING:
    from perfmodel.results.engine_report import EngineReport

_UNKNOWN = "not reported"


def engine_report_blocks(report: EngineReport) -> list[Block]:
    """What was read from an engine's metrics."""
    return [Facts([*_facts(report), *(("note", note) for note in report.notes)])]


def _facts(report: EngineReport) -> list[tuple[str, str]]:
    files = ", ".join(f"{file.name} ({file.file_format})" for file in report.files)
    names = [name for name in (report.engine, report.version, report.model) if name is not None]
    requests = report.num_prompts
    plain = report.plain_tokens_per_s
    return [
        ("files", files),
        ("engine", " ".join(names) or _UNKNOWN),
        ("prompts", _UNKNOWN if requests is None else str(requests)),
        ("acceptance", _acceptance_text(report)),
        ("speed", _UNKNOWN if report.total.tokens_per_s is None else format_rate(report.total.tokens_per_s)),
        ("plain", _UNKNOWN if plain is None else format_rate(plain)),
        ("speedup", _speedup_text(report)),
    ]


def _acceptance_text(report: EngineReport) -> str:
    total = report.total
    if total.tokens_per_round is None:
        return _UNKNOWN
    text = f"{total.tokens_per_round:.2f} tokens per round"
    if total.num_rounds:
        text += f", {total.num_rounds} rounds"
    if total.num_drafted and total.num_accepted is not None:
        share = format_frac(total.num_accepted / total.num_drafted)
        text += f", {total.num_accepted} of {total.num_drafted} drafted tokens accepted ({share})"
    return text


def _speedup_text(report: EngineReport) -> str:
    if report.speedup_value is None:
        return _UNKNOWN
    interval = report.speedup
    limits = "" if interval is None else f" ({format_interval(interval.low, interval.high, format_speedup)})"
    return format_speedup(report.speedup_value) + limits
