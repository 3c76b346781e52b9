"""A run report as plain text: what was run, how fast, and predicted beside measured."""

from collections.abc import Sequence
from itertools import zip_longest

from perfmodel.core.console import table
from perfmodel.core.units import (
    format_frac,
    format_interval,
    format_number,
    format_rate,
    format_seconds,
    format_signed_frac,
    format_speedup,
)
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from perfmodel.results.plan import Candidate, Plan
from perfmodel.results.report import Adaptation, Arm, Check, RunReport
from s2d.decoding.pair import EncodedPrompt, Pair
from s2d.loading.sidecar import Sidecar
from s2d.running.run_report import RunSettings, seconds_by_kind

_UNKNOWN = "-"
SHOWN_CONFIDENCES = (0.1, 0.3, 0.5, 0.7, 0.9)
DRIFT_FRAC = 0.15
"""Plain decoding that is faster or slower than the target's profile by more ran on another machine, as it were."""


def understood_text(pair: Pair, plan: Plan, prompts: Sequence[EncodedPrompt], request: RunSettings) -> str:
    """What is about to be run."""
    key = pair.device_key
    where = f"{key.device}, {key.dtype}" + (f", {key.num_threads} CPU thread" if key.num_threads else "")
    where += "s" if key.num_threads and key.num_threads > 1 else ""
    policy = plan.chosen.policy
    policy_text = policy.label if policy else "do not speculate: plain decoding"
    if request.frontier:
        policy_text = f"adapting, along the {len(request.frontier)} policies of the plan's frontier"
    num_turns = sum(prompt.num_turns for prompt in prompts)
    texts = f"{len(prompts)}" + (f" in {num_turns} turns" if num_turns > len(prompts) else "")
    return "\n".join(
        [
            f"models    {pair.label}",
            f"device    {where}",
            f"policy    {policy_text}",
            f"sampling  {plan.workload.sampling.label}",
            f"prompts   {texts}, at most {request.max_new_tokens} new tokens each",
        ]
    )


def report_text(report: RunReport, chosen: Candidate) -> str:
    """Tokens/s, where the rounds' time went, acceptance by position and exits taken, each beside the prediction."""
    rounds = sum_rounds(run.rounds for run in report.plan_arm.runs)
    parts = [_rates(report, chosen), _costs(report.plan_arm, rounds, chosen)]
    if rounds.num_drafted:
        parts += [_positions(rounds, chosen.rounds), _exits(report.draft.exit_layers, rounds, chosen.rounds)]
    if report.adaptation is not None:
        parts.append(adaptation_text(report.adaptation))
    if report.check is not None:
        parts.append(check_text(report.check))
    return "\n\n".join(parts)


def adaptation_text(adaptation: Adaptation) -> str:
    """How often the policy changed, and how the time was shared out."""
    total_s = sum(one.decode_s for one in adaptation.shares)
    rows = [
        [
            one.policy.label if one.policy else "plain decoding",
            str(one.num_rounds),
            format_seconds(one.decode_s),
            format_frac(one.decode_s / total_s),
            format_rate(one.num_tokens / one.decode_s) if one.num_rounds else _UNKNOWN,
        ]
        for one in adaptation.shares
    ]
    text = table(rows, headers=["frontier, from cautious to bold", "rounds", "time", "share", "speed"])
    return f"{text}\nthe policy changed {adaptation.num_switches} times; what is predicted above is of the plan's throughout"


def drift_text(report: RunReport, plan: Plan) -> str | None:
    """What to do where plain decoding is not as fast as when the target was profiled; None where it is, or nobody knows."""
    is_profiled = any((one.role, one.level) == ("target latency", "measured") for one in plan.evidence)
    if report.measured is None or not is_profiled:
        return None
    here, then = report.measured.plain_tokens_per_s, plan.chosen.speedup.plain_tokens_per_s
    if abs(here / then - 1) <= DRIFT_FRAC:
        return None
    return (
        f"plain decoding makes {format_rate(here)} here and {format_rate(then)} by the plan's profile: unless these texts are "
        "of another length, something shared the machine then or does now, and another plan may be faster. Profile again"
    )


def check_text(check: Check) -> str:
    """Whether the output is the target's own, with the first divergences and their gaps."""
    lines = [
        f"check: {check.num_equal} of {check.num_prompts} outputs equal the plain target's, token by token; "
        f"largest gap to the target's own choice {format_number(check.worst_gap)}"
    ]
    lines += [
        f"  {one.prompt}: first differs at new token {one.position}, gap {format_number(one.gap)}" for one in check.divergences
    ]
    return "\n".join(lines)


def _rates(report: RunReport, chosen: Candidate) -> str:
    rounds = sum_rounds(run.rounds for run in report.plan_arm.runs)
    measured = rounds.num_tokens / sum(run.decode_s for run in report.plan_arm.runs)
    predicted = chosen.speedup.tokens_per_s
    rows = [
        ["speed", format_rate(measured), format_rate(predicted), format_signed_frac(predicted / measured - 1)],
        _row("tokens per round", rounds.tokens_per_round, chosen.rounds.tokens_per_round),
    ]
    if report.measured is not None:
        found, said = report.measured.speedup, chosen.speedup.speedup
        error = format_signed_frac(said.value / found.value - 1)
        rows.insert(1, ["speedup", format_speedup(found.value), format_speedup(said.value), error])
        rows.insert(2, ["  90 % interval", _interval(found.low, found.high), _interval(said.low, said.high), ""])
        plain, expected = report.measured.plain_tokens_per_s, chosen.speedup.plain_tokens_per_s
        rows.insert(3, ["plain decoding", format_rate(plain), format_rate(expected), format_signed_frac(expected / plain - 1)])
    distinct = sum(run.distinct_6gram_frac for run in report.plan_arm.runs) / len(report.plan_arm.runs)
    accepted = rounds.accepted_frac
    drafted = "nothing drafted" if accepted is None else f"{format_frac(accepted)} of drafted tokens accepted"
    text = table(rows, headers=["", "measured", "predicted", "error"])
    return f"{text}\n{drafted}; distinct 6-grams {format_frac(distinct)} (text that repeats itself is accepted more easily)"


def _costs(arm: Arm, rounds: RoundStats, chosen: Candidate) -> str:
    seconds, said = seconds_by_kind(arm.samples), chosen.speedup.round_cost.by_kind
    rows = [
        [kind, format_seconds(seconds[kind] / rounds.num_rounds), format_seconds(said[kind])]
        for kind in said
        if seconds[kind] or said[kind]
    ]
    return table(rows, headers=["seconds a round", "measured", "predicted"])


def _positions(rounds: RoundStats, predicted: RoundStats) -> str:
    columns = zip_longest(_kept(rounds), _kept(predicted), fillvalue=None)
    rows = [[str(place), _share(mine), _share(said)] for place, (mine, said) in enumerate(columns, start=1)]
    return table(rows, headers=["accepted at position", "measured", "predicted"])


def _kept(rounds: RoundStats) -> list[float]:
    """Of the rounds that drafted a position, the share that accepted it."""
    return [a / d for a, d in zip(rounds.accepted_by_position, rounds.drafted_by_position, strict=False) if d]


def calibration_text(sidecar: Sidecar) -> str:
    """What each exit's curve makes of a low, a middling and a high confidence."""
    fitted = sidecar.calibration
    if fitted is None:
        return "no calibration"
    rows = [
        (f"exit {layer}", *(format_frac(curve(said)) if curve else _UNKNOWN for said in SHOWN_CONFIDENCES))
        for layer, curve in zip(sidecar.exit_layers, fitted.curves, strict=True)
    ]
    headers = ("agreement", *(f"at {said:.1f}" for said in SHOWN_CONFIDENCES))
    lines = table(rows, headers=headers)
    return f"{lines}\n{fitted.confidence}, {fitted.num_positions} positions of text by {', '.join(fitted.targets)}"


def _exits(exit_layers: Sequence[int], rounds: RoundStats, predicted: RoundStats) -> str:
    columns = zip_longest(exit_layers, _shares(rounds.exits_taken), _shares(predicted.exits_taken), fillvalue=None)
    rows = [[str(layer), _share(mine), _share(said)] for layer, mine, said in columns]
    return table(rows, headers=["left at exit", "measured", "predicted"])


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts] if total else []


def _share(value: float | None) -> str:
    return _UNKNOWN if value is None else format_frac(value)


def _row(label: str, measured: float, predicted: float) -> list[str]:
    error = format_signed_frac(predicted / measured - 1)
    return [label, format_number(measured), format_number(predicted), error]


def _interval(low: float, high: float) -> str:
    return format_interval(low, high, format_speedup)
