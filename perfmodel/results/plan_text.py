"""A plan as text: request, policy, prediction, evidence, and next command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from perfmodel.core.blocks import (
    PAGE_CHARS,
    Block,
    Command,
    Facts,
    Paragraph,
    Table,
    leading_clauses,
    sentence_blocks,
    short_note,
)
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
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.passes import PassKind
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor
from perfmodel.quantisation.weight_format import WeightFormat
from perfmodel.replay.round_stats import RoundStats

if TYPE_CHECKING:
    from perfmodel.results.plan import BatchPoint, BatchSchedule, Candidate, Evidence, Memory, Overfitting, Plan

PASS_NAMES: dict[PassKind, str] = {
    "segment": "draft segments",
    "exit": "exit checks",
    "ahead": "segments run ahead",
    "verify": "verification",
    "round": "host",
    "draft_prefill": "draft prefill",
    "target_prefill": "target prefill",
}
LABEL_CHARS = len("acceptance")
_VALUE_CHARS = PAGE_CHARS - LABEL_CHARS - len("  ")
"""Width of a line of the summary after its label."""
PLAIN_TOLERANCE = 1.05
"""Plain decoding rates that differ by more come from different machines, or from one machine under different load."""


def plan_blocks(plan: Plan, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan`.

    Args:
        plan: the result.
        explain: whether to add the parts of a round, the memory, the alternatives, the batch sizes and whole notes.
    """
    blocks = _details(plan) if explain else _summary(plan)
    return [*blocks, *([Command(plan.next_command)] if plan.next_command else [])]


def drafts_blocks(plans: Sequence[Plan]) -> list[Block]:
    """A row per draft of one target, the fastest first, and how certain that order is.

    Args:
        plans: one for each draft, by predicted speedup; at least two.
    """
    rows = [
        [
            plan.draft.model.name,
            str(plan.draft.model.num_head_tokens),
            format_bytes(plan.memory.draft_weight_bytes),
            policy_label(plan.chosen.policy),
            *_rate_cells(plan.chosen),
        ]
        for plan in plans
    ]
    headers = ["draft", "head tokens", "weights", "its best policy", "tokens/s", "speedup", "90 % interval"]
    return [Table(rows, headers, "lrrlrrr"), Paragraph(_drafts_verdict(plans))]


def _drafts_verdict(plans: Sequence[Plan]) -> str:
    first, second = (plan.chosen.speedup for plan in plans[:2])
    ratio = format_speedup(first.speedup.value / second.speedup.value)
    text = f"By speedup, {plans[0].draft.model.name} is predicted to be {ratio} as fast as the next draft."
    plain = [plan.chosen.speedup.plain_tokens_per_s for plan in plans]
    if max(plain) > PLAIN_TOLERANCE * min(plain):
        rates = format_rate(min(plain)), format_rate(max(plain))
        text += f" Plain decoding ran at {rates[0]} to {rates[1]} in these profiles: compare speedups, not tokens/s."
    if second.speedup.high > first.speedup.low:
        text += " Their intervals overlap. To compare them on other prompts, run both plans with s2d-run --check."
    return text


def _summary(plan: Plan) -> list[Block]:
    """One screen: request, plan and prediction, each in a few lines."""
    chosen = plan.chosen
    answer = [("plan", _plan_text(plan)), *([] if chosen.policy is None else [("prediction", _prediction_text(plan))])]
    answer += [(role, leading_clauses(text, _VALUE_CHARS)) for role, text in evidence_facts(plan.evidence, is_short=True)]
    answer.append(("memory", _memory_text(plan.memory)))
    answer += [("batches", _batches_text(plan.batch_schedules[:1]))] if plan.batch_schedules else []
    notes = [*cautions(plan), *(short_note(note).partition(". ")[0] for note in plan.notes)]
    remarks = [Facts([("note" if number == 0 else "", note) for number, note in enumerate(notes)], LABEL_CHARS)]
    return [Facts(_request_facts(plan), LABEL_CHARS), Facts(answer, LABEL_CHARS), *(remarks if notes else [])]


def _details(plan: Plan) -> list[Block]:
    """Everything that is known of a plan."""
    policy = plan.chosen.policy
    facts = [("plan", _plan_text(plan))]
    if policy is not None:
        facts = [("plan", "speculate"), *policy_facts(policy), ("prediction", _prediction_text(plan))]
    remarks = [*([_overfitting_text(plan.overfitting)] if plan.overfitting else []), *cautions(plan)]
    return [
        Facts([*_request_facts(plan), *evidence_facts(plan.evidence)]),
        Facts(facts),
        *map(Paragraph, remarks),
        _round_table(plan.chosen),
        _memory_table(plan.memory),
        _alternatives_table((plan.chosen, *plan.runners_up)),
        *([_batch_table(plan.batch_schedules)] if plan.batch_schedules else []),
        *(block for note in plan.notes for block in sentence_blocks(note)),
    ]


def _request_facts(plan: Plan) -> list[tuple[str, str]]:
    work = plan.workload
    lengths = f"{work.prompt_tokens} prompt tokens, {work.output_tokens} output tokens"
    return [
        ("target", model_label(plan.target) + weights_text(plan.target_weights)),
        ("draft", draft_label(plan.draft) + _placement_text(plan)),
        ("device", plan.device.label + origin_text(plan.evidence)),
        *([] if plan.engine == "s2d" else [("engine", engine_text(plan))]),
        ("workload", f"batch {work.batch}, {lengths}, {work.sampling.label}"),
    ]


def engine_text(plan: Plan) -> str:
    """`llama.cpp b11434, weights f32`, or that the engine was not run."""
    setting = plan.engine_setting
    if setting is None:
        return f"{plan.engine}, not profiled"
    options = f", {', '.join(setting.options)}" if setting.options else ""
    return f"{plan.engine} {setting.version}, weights {setting.weights}{options}"


def _placement_text(plan: Plan) -> str:
    """Which of several devices hold a draft with weights of its own."""
    if plan.draft.kind == "self" or plan.device.num_devices == 1:
        return ""
    return "; split over all devices" if plan.draft_num_devices > 1 else "; whole on the first device"


def evidence_facts(evidence: Sequence[Evidence], *, is_short: bool = False) -> list[tuple[str, str]]:
    """The evidence for latency and acceptance, with its level.

    Args:
        evidence: of a plan. Draft and target latency share a line where their evidence is the same.
        is_short: whether they also share a line where only the level is the same.
    """
    parts = {part.role: part for part in evidence if part.role != "device"}
    texts: dict[str, str] = {role: evidence_text(part) for role, part in parts.items()}
    draft, target = parts.get("draft latency"), parts.get("target latency")
    if draft is None or target is None or draft.level != target.level:
        return list(texts.items())
    latency = evidence_text(draft)
    if draft.description != target.description:
        if not is_short:
            return list(texts.items())
        latency = _joined_text(latency, target.description)
    return [("latency", latency), *((role, text) for role, text in texts.items() if not role.endswith(" latency"))]


def _joined_text(draft: str, target: str) -> str:
    """The evidence for both models on one line: in full, or the first clause of each."""
    joined = f"{draft}; {target}"
    return joined if len(joined) <= _VALUE_CHARS else ", ".join(text.partition(", ")[0] for text in (draft, target))


def origin_text(evidence: Sequence[Evidence]) -> str:
    """How the device was chosen; empty where the user named it."""
    return "".join(f" ({evidence_text(part)})" for part in evidence if part.role == "device")


def evidence_text(part: Evidence) -> str:
    """`traced: 384 positions of 6 prompts`."""
    return f"{part.level}: {part.description}"


def model_label(model: ModelGeometry) -> str:
    """`llama-2-70b, 80 layers, 69.0 billion weights`."""
    count = model.num_params
    size = f"{format_number(count / GIGA)} billion" if count >= GIGA else f"{format_number(count / MEGA)} million"
    return f"{model.name}, {model.num_layers} layers, {size} weights"


def weights_text(weights: WeightFormat) -> str:
    """Storage of quantised weights: `; weights AWQ int4, groups of 128, 4.16 bits; head 16 bits`. Empty for plain weights."""
    return "" if weights.is_plain else f"; weights {weights.text}"


def draft_label(draft: DraftGeometry) -> str:
    """The draft with its exits, and the size of a reduced head. A self-draft shows which layers of the target it uses."""
    exits = f"exits at {'/'.join(map(str, draft.exit_layers))}"
    if draft.kind == "self":
        return f"the first {draft.exit_layers[-1]} layers of {draft.model.name}, {exits}"
    head = f", {draft.model.head_label}" if draft.model.has_reduced_head else ""
    return f"{model_label(draft.model)}, {exits}{head}"


def policy_label(policy: Policy | None) -> str:
    """A policy in one line."""
    return "do not speculate" if policy is None else policy.label


def interval_text(interval: Interval) -> str:
    """`1.91x to 2.82x`."""
    return format_interval(interval.low, interval.high, format_speedup)


def _plan_text(plan: Plan) -> str:
    policy = plan.chosen.policy
    if policy is None:
        plain = format_rate(plan.chosen.speedup.plain_tokens_per_s)
        return f"do not speculate: no configuration is predicted to beat plain decoding ({plain})"
    return f"speculate: {_policy_text(policy)}"


def _policy_text(policy: Policy) -> str:
    """A policy in words: `exits 6/12 at confidence .68; draft at most 8 tokens; stop when …`."""
    thresholds = "/".join(f"{threshold:.2f}".removeprefix("0") for threshold in policy.thresholds)
    exits = f"exit{'s' if thresholds else ''} {'/'.join(map(str, policy.exits))}"
    order = "running ahead" if policy.runs_ahead else "catching up at once" if policy.catches_up_at_once else ""
    parts = [
        f"{exits} at {_measure_text(policy)} {thresholds}" if thresholds else exits,
        order,
        f"draft {_length_text(policy)}",
        f"stop {_stop_text(policy)}" if isinstance(policy.stop, ConfidenceFloor | SurvivalFloor) else "",
    ]
    return "; ".join(part for part in parts if part)


def _prediction_text(plan: Plan) -> str:
    predicted = plan.chosen.speedup
    rate, plain = format_rate(predicted.tokens_per_s), format_rate(predicted.plain_tokens_per_s)
    speedup, interval = format_speedup(predicted.speedup.value), interval_text(predicted.speedup)
    return f"{rate}, {speedup} plain decoding's {plain} (90 % interval {interval})"


def _overfitting_text(overfitting: Overfitting) -> str:
    """How much of the speedup remains on prompts that the search did not use."""
    seen, unseen = format_speedup(overfitting.seen_speedup), format_speedup(overfitting.unseen_speedup)
    lost = f"{format_frac(abs(overfitting.lost_frac))} {'less' if overfitting.lost_frac >= 0 else 'more'}"
    return f"Searched on one half of the prompts, a plan gives {seen} there and {unseen} on the other half: {lost}."


def cautions(plan: Plan) -> list[str]:
    """Reasons to trust the predicted speedup less than its value suggests."""
    speedup, texts = plan.chosen.speedup.speedup, []
    if speedup.is_clipped:
        texts.append(
            f"The interval is cut at a factor of {WIDEST_FACTOR:.0f}: the evidence scatters too much to predict a speed. "
            "Measure again on a quiet machine."
        )
    if plan.policy is not None and speedup.low < 1:
        texts.append("The interval reaches below 1.00x: speculation may not pay. Measure before relying on it.")
    single = next((other for other in plan.runners_up if other.policy is not None and len(other.policy.exits) == 1), None)
    if is_published(plan.evidence) and single is not None and single.speedup.tokens_per_s < plan.chosen.speedup.tokens_per_s:
        name = single.name[:1].upper() + single.name[1:]
        texts.append(
            f"{name} alone: {format_speedup(single.speedup.speedup.value)} from published rates; the rest depends on assumed "
            "confidences."
        )
    return texts


def is_published(evidence: Sequence[Evidence]) -> bool:
    """Whether the acceptance comes from a paper's figures."""
    return any(part.role == "acceptance" and part.level == "published" for part in evidence)


def policy_facts(policy: Policy) -> list[tuple[str, str]]:
    """A policy setting by setting."""
    *gated, last = policy.exits
    gates = [f"{layer} at {_measure_text(policy)} >= {gate:.3f}" for layer, gate in zip(gated, policy.thresholds, strict=True)]
    exits = ", ".join([*gates, f"{last} always" if gates else f"{last} alone"])
    facts = [("exits", exits)]
    if policy.runs_ahead:
        facts.append(("running ahead", "the next segment starts before the exit's answer is read"))
    elif policy.catches_up_at_once:
        facts.append(("catching up", "at once: a token that left early runs through the deeper segments before the next token"))
    return [*facts, ("draft length", _length_text(policy)), ("stop rule", _stop_text(policy))]


def _length_text(policy: Policy) -> str:
    match policy.stop:
        case None:
            return _tokens_text(policy.tokens)
        case HeuristicLength(start=start):
            return f"{start} at first; +2 after a round that accepts all, else -1; from 1 to {policy.tokens}"
        case _:
            return f"at most {_tokens_text(policy.tokens)}"


def _measure_text(policy: Policy) -> str:
    """`confidence` if it is the largest probability, else the name of the measure."""
    return "confidence" if policy.confidence == "max-prob" else policy.confidence


def _stop_text(policy: Policy) -> str:
    match policy.stop:
        case ConfidenceFloor(floor=floor, keeps_token=False):
            return f"before a token of {_measure_text(policy)} below {floor:.3f}, which is dropped"
        case ConfidenceFloor(floor=floor):
            return f"after a token of {_measure_text(policy)} below {floor:.3f}"
        case SurvivalFloor(floor=floor):
            return f"when the probability that the whole block is accepted falls below {floor:.3f}"
        case _:
            return "none"


def _tokens_text(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"


def _round_table(chosen: Candidate) -> Table:
    cost, rounds = chosen.speedup.round_cost, chosen.rounds
    rows = [
        [PASS_NAMES[kind], format_seconds(seconds), format_frac(seconds / cost.total_s), _passes_text(rounds, kind)]
        for kind, seconds in cost.by_kind.items()
        if kind != "ahead" or seconds
    ]
    rows.append(["one round", format_seconds(cost.total_s), format_frac(1.0), ""])
    return Table(rows, ["part", "time", "share", "passes per round"], title=_round_text(rounds))


def _round_text(rounds: RoundStats) -> str:
    if rounds.accepted_frac is None:
        return f"One round yields {rounds.tokens_per_round:.2f} tokens."
    drafted = f"{rounds.num_drafted / rounds.num_rounds:.2f}"
    return (
        f"One round yields {rounds.tokens_per_round:.2f} tokens: {drafted} are drafted, {format_frac(rounds.accepted_frac)} of "
        "them are accepted, and the target adds its own."
    )


def _passes_text(rounds: RoundStats, kind: PassKind) -> str:
    return f"{rounds.num_passes(kind) / rounds.num_rounds:.2f}"


def _memory_text(memory: Memory) -> str:
    total = format_bytes(memory.total_bytes)
    if memory.capacity_bytes is None:
        return f"{total}; the memory of this device is unknown"
    return f"{total} of {format_bytes(memory.capacity_bytes)} ({format_frac(memory.total_bytes / memory.capacity_bytes)})"


def _memory_table(memory: Memory) -> Table:
    parts = [
        ("target weights", memory.target_weight_bytes),
        ("draft weights", memory.draft_weight_bytes),
        ("target KV cache", memory.target_kv_bytes),
        ("draft KV cache", memory.draft_kv_bytes),
        ("total", memory.total_bytes),
    ]
    capacity = memory.capacity_bytes
    if capacity is None:
        return Table([[name, format_bytes(size)] for name, size in parts], ["memory", "size"])
    rows = [[name, format_bytes(size), format_frac(size / capacity)] for name, size in parts]
    return Table(rows, ["memory", "size", f"of {format_bytes(capacity)}"])


def _alternatives_table(candidates: Sequence[Candidate]) -> Table:
    rows = [
        [
            candidate.name,
            "" if candidate.policy is None else candidate.policy.label,
            *_rate_cells(candidate),
            f"{candidate.rounds.tokens_per_round:.2f}",
        ]
        for candidate in candidates
    ]
    return Table(rows, ["configuration", "policy", "tokens/s", "speedup", "90 % interval", "tokens/round"], "llrrrr")


def _rate_cells(candidate: Candidate) -> list[str]:
    """Tokens/s, speedup and its interval."""
    speedup = candidate.speedup
    interval = "" if candidate.policy is None else interval_text(speedup.speedup)
    return [format_number(speedup.tokens_per_s), format_speedup(speedup.speedup.value), interval]


def _batch_table(schedules: Sequence[BatchSchedule]) -> Table:
    """The draft length by batch size, one column per context."""
    columns = [{point.batch: point for point in schedule.points} for schedule in schedules]
    rows = [
        [str(batch), *(_point_text(column.get(batch)) for column in columns)]
        for batch in sorted({batch for column in columns for batch in column})
    ]
    headers = ["batch", *(f"at {schedule.context_tokens} tokens of context" for schedule in schedules)]
    title = f"One exit and a fixed draft length for all sequences of a batch: {_batches_text(schedules)}."
    return Table(rows, headers, "r" + "l" * len(columns), title)


def _batches_text(schedules: Sequence[BatchSchedule]) -> str:
    """Up to which batch size speculation pays: `pays below batch 240 at 768 tokens of context; …`."""
    contexts: dict[str, list[str]] = {}
    for schedule in schedules:
        contexts.setdefault(_paying_text(schedule), []).append(str(schedule.context_tokens))
    return "; ".join(f"{verdict} at {' and '.join(tokens)} tokens of context" for verdict, tokens in contexts.items())


def _paying_text(schedule: BatchSchedule) -> str:
    stops, fits = schedule.stops_at_batch, schedule.fitting_batch
    if fits == 0:
        return "memory holds no sequence"
    if stops == 1:
        return "does not pay at any batch size"
    if fits is not None and (fits <= schedule.max_batch if stops is None else fits < stops):
        return f"pays {_up_to(fits)} (all that memory holds)"
    return f"pays {_up_to(schedule.max_batch)} (the largest tried)" if stops is None else f"pays below batch {stops}"


def _up_to(batch: int) -> str:
    return f"{'at' if batch == 1 else 'up to'} batch {batch}"


def _point_text(point: BatchPoint | None) -> str:
    if point is None:
        return ""
    if point.exit_layer is None:
        return "do not speculate"
    return f"exit {point.exit_layer}, {_tokens_text(point.draft_tokens)}, {format_speedup(point.speedup)}"
