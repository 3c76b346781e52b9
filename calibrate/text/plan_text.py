"""A plan as text for people: what was understood, what to do, why, what else, and what next."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from calibrate.pricing.pricing import key_text
from perfmodel.core.console import table
from perfmodel.core.stats import WIDEST_FACTOR, Interval
from perfmodel.core.units import (
    GIGA,
    MEGA,
    format_bytes,
    format_frac,
    format_interval,
    format_number,
    format_rate,
    format_seconds,
    format_speedup,
)
from perfmodel.models.find_model import other_releases
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import ExitPolicy, FixedLength, FloorStop, HeuristicLength, LengthRule, SurvivalStop
from perfmodel.quantisation.weight_format import WeightFormat
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import BatchPoint, BatchSchedule, Candidate, Evidence, Memory, Overfitting, Plan, is_published

PAGE_CHARS = 100

PASS_NAMES: dict[PassKind, str] = {
    "segment": "draft segments",
    "exit": "exit checks",
    "ahead": "segments run ahead",
    "verify": "verification",
    "round": "host",
    "draft_prefill": "draft prefill",
    "target_prefill": "target prefill",
}


def plan_text(plan: Plan, *, asked_target: str) -> str:
    """The whole answer of `s2d-plan`.

    Args:
        plan: what was found.
        asked_target: the target as it was asked for, an alias perhaps.
    """
    blocks = [_understood(plan, asked_target), _answer(plan), _one_round(plan.chosen), _memory(plan.memory)]
    blocks.append(_alternatives((plan.chosen, *plan.runners_up)))
    if plan.batch_schedules:
        blocks.append(_batches(plan.batch_schedules))
    blocks += map(note_text, plan.notes)
    blocks += [f"next: {plan.next_command}"] if plan.next_command else []
    return "\n\n".join(blocks)


def note_text(note: str) -> str:
    """A note folded at the width of a page, unless it ends with a command, which has to stay on one line."""
    return note if ": s2d-" in note else textwrap.fill(note, PAGE_CHARS)


def facts_text(pairs: Sequence[tuple[str, str]]) -> str:
    """Labelled lines, their texts under one another and folded at the width of a page."""
    width = max(len(label) for label, _ in pairs)
    indent = " " * (width + 2)
    folded = (textwrap.fill(text, PAGE_CHARS, initial_indent=indent, subsequent_indent=indent) for _, text in pairs)
    return "\n".join(label.ljust(width) + text[width:] for (label, _), text in zip(pairs, folded, strict=True))


def _understood(plan: Plan, asked_target: str) -> str:
    work = plan.workload
    asked = f"batch {work.batch}, {work.prompt_tokens} prompt tokens, {work.output_tokens} output tokens, {work.sampling.label}"
    facts = [
        ("target", model_label(plan.target) + weights_text(plan.target_weights) + asked_text(asked_target, plan.target)),
        ("draft", draft_label(plan.draft) + _placement_text(plan)),
        ("device", key_text(plan.device) + origin_text(plan.evidence)),
        ("asked", asked),
    ]
    return facts_text(facts + evidence_facts(plan.evidence))


def _placement_text(plan: Plan) -> str:
    """Which of several devices have a draft with weights of its own."""
    if plan.draft.kind == "self" or plan.device.num_devices == 1:
        return ""
    return "; shared like the target" if plan.draft_num_devices > 1 else "; whole on the first device"


def evidence_facts(evidence: Sequence[Evidence]) -> list[tuple[str, str]]:
    """What each thing but the device rests on; draft and target latency in one line where they rest on the same."""
    texts: dict[str, str] = {part.role: _evidence_text(part) for part in evidence if part.role != "device"}
    draft, target = texts.get("draft latency"), texts.get("target latency")
    if draft is not None and draft == target:
        texts = {"latency": draft} | {role: text for role, text in texts.items() if not role.endswith(" latency")}
    return list(texts.items())


def origin_text(evidence: Sequence[Evidence]) -> str:
    """How the device was chosen, where it was not named."""
    return "".join(f" ({_evidence_text(part)})" for part in evidence if part.role == "device")


def _evidence_text(part: Evidence) -> str:
    return f"{part.level}: {part.description}"


def model_label(model: ModelGeometry) -> str:
    """`llama-2-70b, 80 layers, 69.0 billion weights`."""
    return f"{model.name}, {model.num_layers} layers, {_weights_text(model.num_params)}"


def weights_text(weights: WeightFormat) -> str:
    """How weights are stored, where they are quantised: `; weights AWQ int4, groups of 128, 4.16 bits; head 16 bits`."""
    return "" if weights.is_plain else f"; weights {weights.text}"


def asked_text(asked: str, model: ModelGeometry) -> str:
    """How a model was asked for where that is not its name, and what else the name may mean; empty where it is plain."""
    parts = [] if asked == model.name else [f"asked for as {asked!r}"]
    if others := other_releases(asked, model):
        parts.append(f"other releases: --target {' or '.join(others)}")
    return f" ({'; '.join(parts)})" if parts else ""


def draft_label(draft: DraftGeometry) -> str:
    """The draft with its exits, and its head where that is reduced; a self-draft says whose layers it uses."""
    exits = f"exits at {'/'.join(map(str, draft.exit_layers))}"
    if draft.kind == "self":
        return f"{draft.model.name}'s own first {draft.exit_layers[-1]} layers, {exits}"
    head = f", {draft.model.head_label}" if draft.model.has_reduced_head else ""
    return f"{model_label(draft.model)}, {exits}{head}"


def _weights_text(count: int) -> str:
    if count >= GIGA:
        return f"{format_number(count / GIGA)} billion weights"
    return f"{format_number(count / MEGA)} million weights"


def _answer(plan: Plan) -> str:
    chosen = plan.chosen
    plain = format_rate(chosen.speedup.plain_tokens_per_s)
    if chosen.policy is None:
        return f"plan: do not speculate. No configuration is predicted to beat plain decoding's {plain}."
    rate, speedup = format_rate(chosen.speedup.tokens_per_s), format_speedup(chosen.speedup.speedup.value)
    predicted = f"{rate}, {speedup} plain decoding's {plain} (90 % interval {interval_text(chosen.speedup.speedup)})"
    lines = ["plan: speculate", "", facts_text([*policy_facts(chosen.policy), ("predicted", predicted)])]
    lines += [f"\n{textwrap.fill(_overfitting_text(plan.overfitting), PAGE_CHARS)}"] if plan.overfitting else []
    return "\n".join(lines + [f"\n{textwrap.fill(caution, PAGE_CHARS)}" for caution in cautions(plan)])


def _overfitting_text(found: Overfitting) -> str:
    """What a plan of this kind is worth on prompts that it was not made for."""
    seen, unseen = (format_speedup(speedup) for speedup in (found.seen_speedup, found.unseen_speedup))
    lost = f"{format_frac(abs(found.lost_frac))} {'less' if found.lost_frac >= 0 else 'more'}"
    return f"Searched on one half of the prompts, a plan gives {seen} there and {unseen} on the other half: {lost}."


def cautions(plan: Plan) -> list[str]:
    """What a reader should not take the predicted speedup for."""
    found = []
    if plan.chosen.speedup.speedup.is_cut:
        found.append(
            f"The interval is cut at a factor of {WIDEST_FACTOR:.0f}: the evidence scatters so much that it does not tell how "
            "fast the plan is. Measure again on a quiet machine."
        )
    if plan.chosen.speedup.speedup.low < 1:
        found.append("The interval reaches below 1.00x: speculation may not pay here. Measure before relying on it.")
    single = next((one for one in plan.runners_up if one.policy is not None and len(one.policy.exit_layers) == 1), None)
    if is_published(plan.evidence) and single is not None and single.speedup.tokens_per_s < plan.chosen.speedup.tokens_per_s:
        found.append(
            f"{_capitalised(single.name)} alone is predicted to give {format_speedup(single.speedup.speedup.value)}. That uses "
            "published agreement rates only; the rest of the gain depends on assumed confidences."
        )
    return found


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def policy_facts(policy: ExitPolicy) -> list[tuple[str, str]]:
    """What to set, field by field."""
    gates = [f"{layer} at confidence >= {gate:.3f}" for layer, gate in zip(policy.exit_layers, policy.thresholds, strict=False)]
    exits = ", ".join([*gates, f"{policy.exit_layers[-1]} always" if gates else f"{policy.exit_layers[-1]} alone"])
    length = [("draft length", _length_text(policy.length)), ("stop rule", _stop_text(policy.length))]
    return [("exits", exits), *_order_facts(policy), *length]


def _order_facts(policy: ExitPolicy) -> list[tuple[str, str]]:
    """When segments run, where that is not when a token comes to them."""
    if policy.runs_ahead:
        return [("running ahead", "the next segment starts before an exit's answer is read")]
    if policy.catches_up_at_once:
        return [("catching up", "at once: a token that left runs through the deeper segments before the next is drafted")]
    return []


def _length_text(rule: LengthRule) -> str:
    match rule:
        case FixedLength():
            return _tokens_text(rule.draft_cap)
        case HeuristicLength():
            return f"{rule.start} at first, +2 when all were accepted, else -1, from 1 to {rule.draft_cap}"
        case _:
            return f"at most {_tokens_text(rule.draft_cap)}"


def _stop_text(rule: LengthRule) -> str:
    match rule:
        case FloorStop():
            return f"after a token of confidence below {rule.floor:.3f}"
        case SurvivalStop():
            return f"when the chance that the whole block survives falls below {rule.floor:.3f}"
        case _:
            return "none"


def _tokens_text(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _one_round(chosen: Candidate) -> str:
    cost, rounds = chosen.speedup.round_cost, chosen.rounds
    rows = [
        [PASS_NAMES[kind], format_seconds(seconds), format_frac(seconds / cost.total_s), _passes_text(rounds, kind)]
        for kind, seconds in cost.by_kind.items()
        if kind != "ahead" or seconds
    ]
    rows.append(["one round", format_seconds(cost.total_s), format_frac(1.0), ""])
    title = f"One round gives {rounds.tokens_per_round:.2f} tokens" + _drafted_text(rounds)
    return f"{title}\n\n{table(rows, headers=['part', 'time', 'share', 'passes per round'])}"


def _drafted_text(rounds: RoundStats) -> str:
    """What was drafted and where it left, in half a sentence."""
    if rounds.accepted_frac is None:
        return "."
    drafted = f"{rounds.num_drafted / rounds.num_rounds:.2f}"
    return f": {drafted} drafted, {format_frac(rounds.accepted_frac)} of them accepted, and the target's own."


def _passes_text(rounds: RoundStats, kind: PassKind) -> str:
    passes = sum(count.num_passes for count in rounds.passes if count.kind == kind)
    return f"{passes / rounds.num_rounds:.2f}"


def _memory(memory: Memory) -> str:
    parts = [
        ("target weights", memory.target_weight_bytes),
        ("draft weights", memory.draft_weight_bytes),
        ("target KV cache", memory.target_kv_bytes),
        ("draft KV cache", memory.draft_kv_bytes),
    ]
    capacity = memory.capacity_bytes
    parts.append(("in all", memory.total_bytes))
    if capacity is None:
        return table([[name, format_bytes(size)] for name, size in parts], headers=["memory", "size"])
    rows = [[name, format_bytes(size), format_frac(size / capacity)] for name, size in parts]
    return table(rows, headers=["memory", "size", f"of {format_bytes(capacity)}"])


def _alternatives(candidates: Sequence[Candidate]) -> str:
    rows = [
        [
            candidate.name,
            "" if candidate.policy is None else candidate.policy.label,
            format_number(candidate.speedup.tokens_per_s),
            format_speedup(candidate.speedup.speedup.value),
            "" if candidate.policy is None else interval_text(candidate.speedup.speedup),
            f"{candidate.rounds.tokens_per_round:.2f}",
        ]
        for candidate in candidates
    ]
    headers = ["configuration", "policy", "tokens/s", "speedup", "90 % interval", "tokens per round"]
    return table(rows, headers=headers, align="llrrrr")


def _batches(schedules: Sequence[BatchSchedule]) -> str:
    """What to draft by batch, a column per context, and where it stops paying."""
    columns = [{point.batch: point for point in schedule.points} for schedule in schedules]
    rows = [
        [str(batch), *(_point_text(column.get(batch)) for column in columns)]
        for batch in sorted({batch for column in columns for batch in column})
    ]
    headers = ["batch", *(f"at {schedule.context_tokens} tokens of context" for schedule in schedules)]
    stops = "; ".join(f"{_stop_batch_text(schedule)} at {schedule.context_tokens} tokens of context" for schedule in schedules)
    title = textwrap.fill(f"In a batch, one exit at a fixed length: speculation {stops}.", PAGE_CHARS)
    return f"{title}\n\n{table(rows, headers=headers, align='r' + 'l' * len(columns))}"


def _stop_batch_text(schedule: BatchSchedule) -> str:
    stops = schedule.stops_at_batch
    text = f"pays up to {schedule.max_batch} sequences at least" if stops is None else f"stops paying at {stops} sequences"
    return text if schedule.fitting_batch is None else f"{text} (memory holds {schedule.fitting_batch})"


def _point_text(point: BatchPoint | None) -> str:
    if point is None:
        return ""
    if point.exit_layer is None:
        return "do not speculate"
    return f"exit {point.exit_layer}, {_tokens_text(point.draft_tokens)}, {format_speedup(point.speedup)}"


def interval_text(interval: Interval) -> str:
    """`1.91x to 2.82x`."""
    return format_interval(interval.low, interval.high, format_speedup)
