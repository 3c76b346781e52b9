"""Plans for several engines as text: a row for each, and what their difference rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.core.blocks import PAGE_CHARS, Block, Command, Facts, Paragraph, Table, leading_clauses, sentence_blocks
from perfmodel.core.units import format_number, format_rate, format_speedup
from perfmodel.results.plan_text import (
    LABEL_CHARS,
    draft_label,
    evidence_text,
    interval_text,
    model_label,
    policy_label,
)

if TYPE_CHECKING:
    from perfmodel.policies.policy import Policy
    from perfmodel.results.engine_plans import EnginePlan, EnginePlans
    from perfmodel.results.plan import Plan

_VALUE_CHARS = PAGE_CHARS - LABEL_CHARS - len("  ")
MAX_ROWS = 8
"""Plans that the default text prints, so that it fits one screen."""
_MAX_PROBLEMS = 2
"""Problems that the default text prints in full."""


def engine_plans_blocks(plans: EnginePlans, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan --engine all`.

    Args:
        plans: the result.
        explain: whether to add the evidence of each plan, and every reason for which an engine has none.
    """
    facts = Facts(_request_facts(plans, explain=explain), LABEL_CHARS)
    blocks: list[Block] = [facts, _table(plans, explain=explain), Paragraph(_verdict(plans))]
    if explain:
        blocks.append(Facts([(_name(plan), _evidence(plan)) for plan in plans.plans]))
        for entry in plans.engines:
            if entry.problem is not None:
                blocks += sentence_blocks(entry.problem, label=f"{entry.engine}: ")
    elif refused := _refused_text(plans):
        blocks.append(Paragraph(refused))
    return [*blocks, *([Command(plans.next_command)] if plans.next_command else [])]


def _request_facts(plans: EnginePlans, *, explain: bool) -> list[tuple[str, str]]:
    plan = plans.plans[0]
    work, [acceptance] = plan.workload, [part for part in plan.evidence if part.role == "acceptance"]
    lengths = f"{work.prompt_tokens} prompt tokens, {work.output_tokens} output tokens"
    facts = [
        ("target", model_label(plan.target)),
        ("draft", draft_label(plan.draft)),
        ("device", _devices_text(plans)),
    ]
    facts += [("workload", f"batch {work.batch}, {lengths}, {work.sampling.label}")] if explain else []
    return [*facts, ("acceptance", leading_clauses(evidence_text(acceptance).partition("; in ")[0], _VALUE_CHARS))]


def _table(plans: EnginePlans, *, explain: bool) -> Table:
    shown = plans.plans if explain or len(plans.plans) <= MAX_ROWS else plans.plans[: MAX_ROWS - 1]
    rows = [
        [
            _name(plan),
            policy_label(plan.policy) if explain else _short_policy(plan.policy),
            format_number(plan.chosen.speedup.plain_tokens_per_s),
            format_number(plan.tokens_per_s),
            format_speedup(plan.speedup.value),
            "" if plan.policy is None else interval_text(plan.speedup),
            _latency_level(plan),
        ]
        for plan in shown
    ]
    if len(shown) < len(plans.plans):
        rows.append([f"{len(plans.plans) - len(shown)} slower", "--explain prints them", "", "", "", "", ""])
    headers = ["engine", "its best policy", "plain", "tokens/s", "speedup", "90 % interval", "latency"]
    return Table(rows, headers, "llrrrrl")


def _short_policy(policy: Policy | None) -> str:
    """`exit 6, up to 9 tokens`: without thresholds and the stop rule's value."""
    if policy is None:
        return policy_label(None)
    exits = ("exit " if len(policy.exits) == 1 else "exits ") + "/".join(map(str, policy.exits))
    return f"{exits}, {'' if policy.stop is None else 'up to '}{policy.tokens} tokens"


def _name(plan: Plan) -> str:
    """`llama.cpp q8_0`."""
    weights = plan.device.dtype if plan.engine_setting is None else plan.engine_setting.weights
    return f"{plan.engine} {weights}"


def _devices_text(plans: EnginePlans) -> str:
    """The device; several, if the plans are for different ones."""
    devices = dict.fromkeys(f"{plan.device.num_devices} x {plan.device.device}{_threads(plan)}" for plan in plans.plans)
    return "; ".join(devices)


def _threads(plan: Plan) -> str:
    number = plan.device.num_threads
    return "" if number is None else f", {number} thread{'s' if number > 1 else ''}"


def _latency_level(plan: Plan) -> str:
    levels = dict.fromkeys(part.level for part in plan.evidence if part.role.endswith(" latency"))
    return "/".join(levels)


def _verdict(plans: EnginePlans) -> str:
    fastest = plans.plans[0]
    gains = [plan.speedup.value for plan in plans.plans]
    if len(gains) == 1:
        return f"{_name(fastest)} is predicted to decode {format_rate(fastest.tokens_per_s)}."
    text = f"{_name(fastest)} is predicted to be the fastest: {format_rate(fastest.tokens_per_s)}."
    text += f" The same draft is worth {format_speedup(min(gains))} to {format_speedup(max(gains))}, by engine."
    return " ".join([text, *_reservations(plans)])


def _reservations(plans: EnginePlans) -> list[str]:
    """What the order of the engines does not mean."""
    reservations = []
    if any(plan.engine_setting is None and plan.engine != "s2d" for plan in plans.plans):
        reservations.append(
            "Engines that were not run differ here in launches and in the passes of a round only: their order is no evidence."
        )
    if len({_latency_level(plan) for plan in plans.plans}) > 1:
        reservations.append("The latencies rest on different evidence.")
    if len({(plan.device.device, plan.device.num_devices, plan.device.num_threads) for plan in plans.plans}) > 1:
        reservations.append("Devices or threads differ: tokens/s compare machines too, speedups do not.")
    return reservations


def _evidence(plan: Plan) -> str:
    return next(evidence_text(part) for part in plan.evidence if part.role == "target latency")


def _refused_text(plans: EnginePlans) -> str:
    """The engines without a plan: those that share a reason together, the reason cut to its first sentence."""
    by_reason: dict[str, list[str]] = {}
    for entry in plans.engines:
        if entry.problem is not None:
            by_reason.setdefault(_short_reason(entry), []).append(entry.engine)
    shown = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    more = " …" if len(shown) > _MAX_PROBLEMS else ""
    return f"No plan for {'; '.join(shown[:_MAX_PROBLEMS])}.{more} --explain prints all reasons." if shown else ""


def _short_reason(entry: EnginePlan) -> str:
    """The first clause of a problem."""
    assert entry.problem is not None
    return entry.problem.partition(". ")[0].partition(": ")[0].rstrip(".")
