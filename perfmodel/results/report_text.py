"""A run report as text: measured speed, costs and acceptance, and the prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Paragraph, Table
from perfmodel.core.units import (
    format_frac,
    format_number,
    format_rate,
    format_seconds,
    format_signed_frac,
    format_speedup,
)
from perfmodel.passes.passes import PASS_KINDS, PREFILL_KINDS
from perfmodel.passes.pauses import kind_seconds
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan_text import PASS_NAMES, interval_text, policy_label

if TYPE_CHECKING:
    from perfmodel.results.plan import Candidate, Plan
    from perfmodel.results.report import Adaptation, Arm, Check, RunReport

UNKNOWN = "-"
DRIFT_FRAC = 0.15
"""A larger difference between plain decoding and the target's profile is not noise."""
MAX_DIVERGENCES = 5
"""Outputs that the default text names."""


def report_blocks(report: RunReport, *, explain: bool) -> list[Block]:
    """The answer of `s2d-run`.

    Args:
        report: the result.
        explain: whether to add the cost of a round, acceptance by position, exits, and the policies of an adapting run.
    """
    rounds, predicted = report.plan_arm.rounds, report.predicted
    blocks: list[Block] = [_rates_table(report, rounds), Paragraph(_accepted_text(report.plan_arm, rounds))]
    if explain:
        blocks.append(_costs_table(report.plan_arm, rounds, predicted))
        if rounds.num_drafted:
            expected = None if predicted is None else predicted.rounds
            blocks += [_positions_table(rounds, expected), _exits_table(report.draft.exit_layers, rounds, expected)]
        blocks += [] if report.adaptation is None else [_adaptation_table(report.adaptation)]
    blocks += [] if report.adaptation is None else [Paragraph(_adaptation_text(report.adaptation))]
    blocks += [] if report.check is None else _check_blocks(report.check, explain=explain)
    return blocks


def drift_text(report: RunReport, plan: Plan) -> str | None:
    """A warning where plain decoding is not as fast as in the target's profile; None where it is, or where it is unknown."""
    is_profiled = any((evidence.role, evidence.level) == ("target latency", "measured") for evidence in plan.evidence)
    if report.measured is None or not is_profiled:
        return None
    measured, profiled = report.measured.plain_tokens_per_s, plan.chosen.speedup.plain_tokens_per_s
    if abs(measured / profiled - 1) <= DRIFT_FRAC:
        return None
    return (
        f"plain decoding reaches {format_rate(measured)} here, {format_rate(profiled)} by the plan's profile. If the prompts "
        "have similar lengths, the machine was or is under load, and another plan may be faster. Profile again"
    )


def _rates_table(report: RunReport, rounds: RoundStats) -> Table:
    measured, predicted = report.measured, report.predicted
    expected = None if predicted is None else predicted.speedup
    rate = rounds.num_tokens / sum(run.decode_s for run in report.plan_arm.runs)
    rows = [_compared_row("speed", rate, None if expected is None else expected.tokens_per_s, format_rate)]
    if measured is not None:
        speedup, plain = measured.speedup, measured.plain_tokens_per_s
        rows += [
            _compared_row("speedup", speedup.value, None if expected is None else expected.speedup.value, format_speedup),
            ["  90 % interval", interval_text(speedup), UNKNOWN if expected is None else interval_text(expected.speedup), ""],
            _compared_row("plain decoding", plain, None if expected is None else expected.plain_tokens_per_s, format_rate),
        ]
    tokens = None if predicted is None else predicted.rounds.tokens_per_round
    rows.append(_compared_row("tokens per round", rounds.tokens_per_round, tokens, format_number))
    return Table(rows, ["", "measured", "predicted", "error"])


def _compared_row(label: str, measured: float, predicted: float | None, format_value: Callable[[float], str]) -> list[str]:
    if predicted is None:
        return [label, format_value(measured), UNKNOWN, ""]
    return [label, format_value(measured), format_value(predicted), format_signed_frac(predicted / measured - 1)]


def _accepted_text(arm: Arm, rounds: RoundStats) -> str:
    distinct = format_frac(sum(run.distinct_6gram_frac for run in arm.runs) / len(arm.runs))
    accepted = rounds.accepted_frac
    drafted = "Nothing was drafted" if accepted is None else f"{format_frac(accepted)} of the drafted tokens were accepted"
    return f"{drafted}. {distinct} of the 6-grams are distinct (repetitive text is accepted more often)."


def _costs_table(arm: Arm, rounds: RoundStats, predicted: Candidate | None) -> Table:
    measured_s = kind_seconds(arm.samples)
    predicted_s = {} if predicted is None else predicted.speedup.round_cost.by_kind
    rows = [
        [
            PASS_NAMES[kind],
            format_seconds(measured_s[kind] / rounds.num_rounds),
            format_seconds(predicted_s[kind]) if kind in predicted_s else UNKNOWN,
        ]
        for kind in PASS_KINDS
        if kind not in PREFILL_KINDS and (measured_s[kind] or predicted_s.get(kind))
    ]
    return Table(rows, ["time per round", "measured", "predicted"])


def _positions_table(rounds: RoundStats, predicted: RoundStats | None) -> Table:
    columns = zip_longest(_accepted_shares(rounds), _accepted_shares(predicted))
    rows = [[str(position), *map(_share_text, shares)] for position, shares in enumerate(columns, start=1)]
    return Table(rows, ["accepted at position", "measured", "predicted"])


def _accepted_shares(rounds: RoundStats | None) -> list[float]:
    """For each drafted position, the share of the rounds drafting it that accepted it."""
    if rounds is None:
        return []
    counts = zip(rounds.accepted_by_position, rounds.drafted_by_position, strict=False)
    return [accepted / drafted for accepted, drafted in counts if drafted]


def _exits_table(exit_layers: Sequence[int], rounds: RoundStats, predicted: RoundStats | None) -> Table:
    columns = zip_longest(exit_layers, _exit_shares(rounds), _exit_shares(predicted))
    rows = [[str(layer), *map(_share_text, shares)] for layer, *shares in columns]
    return Table(rows, ["left at exit", "measured", "predicted"])


def _exit_shares(rounds: RoundStats | None) -> list[float]:
    counts = () if rounds is None else rounds.exits_taken
    total = sum(counts)
    return [count / total for count in counts] if total else []


def _share_text(share: float | None) -> str:
    return UNKNOWN if share is None else format_frac(share)


def _adaptation_text(adaptation: Adaptation) -> str:
    return f"The policy changed {adaptation.num_switches} times. The predictions assume the plan's policy throughout."


def _adaptation_table(adaptation: Adaptation) -> Table:
    """Rounds and time of each policy of the frontier."""
    total_s = sum(share.decode_s for share in adaptation.shares)
    rows = [
        [
            "plain decoding" if share.policy is None else policy_label(share.policy),
            str(share.num_rounds),
            format_seconds(share.decode_s),
            format_frac(share.decode_s / total_s),
            format_rate(share.num_tokens / share.decode_s) if share.num_rounds else UNKNOWN,
        ]
        for share in adaptation.shares
    ]
    return Table(rows, ["frontier, from cautious to bold", "rounds", "time", "share", "speed"])


def _check_blocks(check: Check, *, explain: bool) -> list[Block]:
    """Whether the output equals the plain target's, and the first differences."""
    text = (
        f"check: {check.num_equal} of {check.num_prompts} outputs equal the plain target's, token by token. The largest gap to "
        f"the target's own choice is {format_number(check.worst_gap)}."
    )
    if not check.divergences:
        return [Paragraph(text)]
    shown = check.divergences if explain else check.divergences[:MAX_DIVERGENCES]
    rows = [[divergence.prompt, str(divergence.position), format_number(divergence.gap)] for divergence in shown]
    hidden = len(check.divergences) - len(shown)
    more = f" {hidden} more differ; --explain shows them." if hidden else ""
    return [Paragraph(text + more), Table(rows, ["output", "first different new token", "gap"])]
