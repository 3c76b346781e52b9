"""A portfolio as text: a policy for each part, and the cost of one for all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from perfmodel.core.blocks import Block, Command, Facts, Paragraph, Table, sentence_blocks
from perfmodel.core.units import format_bytes, format_frac, format_number, format_speedup
from perfmodel.results.plan_text import draft_label, evidence_facts, interval_text, is_published, policy_label

if TYPE_CHECKING:
    from perfmodel.results.plan import Evidence
    from perfmodel.results.portfolio import Choice, Part, Portfolio

_CHOICE_NAMES: dict[Choice, str] = {
    "own": "a policy for each",
    "single": "a single exit for each",
    "common": "one policy for all",
    "robust": "the best worst case",
}
MAX_PARTS = 10
"""Rows that the default text shows."""
MAX_POLICIES = 2
"""Policies that the default text shows: each takes several lines."""


def portfolio_blocks(portfolio: Portfolio, *, explain: bool) -> list[Block]:
    """The answer of `s2d-plan --targets` and `s2d-plan --by-category`.

    Args:
        portfolio: the result.
        explain: whether to add all choices, their policies and the memory.
    """
    blocks: list[Block] = [Facts(_request_facts(portfolio)), _parts_table(portfolio, explain=explain)]
    blocks += [_choices_table(portfolio)] if explain else []
    blocks.append(Paragraph(_verdict(portfolio)))
    if explain:
        has_memory = portfolio.of == "targets" and portfolio.draft.kind == "separate"
        blocks += [Paragraph(_memory(portfolio))] if has_memory else []
        blocks += [block for note in portfolio.notes for block in sentence_blocks(note)]
    return [*blocks, *([Command(portfolio.next_command)] if portfolio.next_command else [])]


def _request_facts(portfolio: Portfolio) -> list[tuple[str, str]]:
    facts = [("draft", draft_label(portfolio.draft))]
    if portfolio.of == "categories":
        first = portfolio.parts[0]
        facts += [("target", first.target), ("device", first.device.label)]
    return facts + evidence_facts(_shared_evidence(portfolio))


def _shared_evidence(portfolio: Portfolio) -> list[Evidence]:
    """Evidence with the same description in all parts."""
    first, *others = ([replace(evidence, sha256=None) for evidence in part.evidence] for part in portfolio.parts)
    return [evidence for evidence in first if all(evidence in other for other in others)]


def _parts_table(portfolio: Portfolio, *, explain: bool) -> Table:
    is_by_category = portfolio.of == "categories"
    shown = portfolio.parts if explain else portfolio.parts[:MAX_PARTS]
    has_policies = explain or len(shown) <= MAX_POLICIES
    rows = [
        [
            part.name,
            str(part.num_prompts) if is_by_category else part.device.label,
            *([policy_label(part.own.policy)] if has_policies else []),
            format_number(part.own.speedup.tokens_per_s),
            format_speedup(part.own.speedup.speedup.value),
            "" if part.own.policy is None else interval_text(part.own.speedup.speedup),
        ]
        for part in shown
    ]
    headers = ["category", "prompts"] if is_by_category else ["target", "device"]
    headers += [*(["its best policy"] if has_policies else []), "tokens/s", "speedup", "90 % interval"]
    title = "" if has_policies else f"{len(shown)} of {len(portfolio.parts)} {portfolio.of}. --explain shows the policies."
    align = ("lr" if is_by_category else "ll") + ("l" if has_policies else "") + "rrr"
    return Table(rows, headers, align, title)


def _choices_table(portfolio: Portfolio) -> Table:
    policies: dict[Choice, str] = {
        "own": "as above",
        "single": ", ".join(map(_single_text, portfolio.parts)),
        "common": policy_label(portfolio.common),
        "robust": policy_label(portfolio.robust),
    }
    rows = [
        [
            name,
            policies[choice],
            *(format_speedup(part.chosen(choice).speedup.speedup.value) for part in portfolio.parts),
            format_speedup(portfolio.mean_speedup(choice)),
            format_speedup(portfolio.worst_speedup(choice)),
            *([format_speedup(getattr(portfolio.held_out, choice))] if portfolio.held_out else []),
        ]
        for choice, name in _CHOICE_NAMES.items()
    ]
    headers = ["configuration", "policy", *(part.name for part in portfolio.parts), "mean", "worst"]
    headers += ["held out"] if portfolio.held_out else []
    held_out = "; held out: the mean on prompts that the policy was not searched on" if portfolio.held_out else ""
    title = f"Speedups. Mean: the geometric mean{held_out}."
    return Table(rows, headers, "ll" + "r" * (len(headers) - 2), title)


def _single_text(part: Part) -> str:
    """`6 x 2`: exit and draft length."""
    policy = part.single.policy
    return "none" if policy is None else f"{policy.exits[0]} x {policy.tokens}"


def _verdict(portfolio: Portfolio) -> str:
    each = "target" if portfolio.of == "targets" else "category"
    own, single, common = (_mean_speedup(portfolio, choice) for choice in ("own", "single", "common"))
    where = ", on prompts that the policies were not searched on" if portfolio.held_out else ""
    text = (
        f"In the geometric mean{where}, a policy for each {each} is predicted to give {_gain_text(own / single - 1)} a "
        f"single exit for each, and {_gain_text(own / common - 1)} one policy for all."
    )
    if portfolio.held_out and own <= common:
        text += " The separate policies are overfitted to these prompts: run one policy for all."
    if any(is_published(part.evidence) for part in portfolio.parts):
        text += " Thresholds depend on assumed confidences: record traces before relying on their gain."
    return text


def _mean_speedup(portfolio: Portfolio, choice: Choice) -> float:
    """On held-out prompts where there are some."""
    held_out = portfolio.held_out
    mean: float = portfolio.mean_speedup(choice) if held_out is None else getattr(held_out, choice)
    return mean


def _gain_text(gain: float) -> str:
    if abs(gain) < 0.0005:
        return "as much as"
    return f"{format_frac(abs(gain))} {'more' if gain > 0 else 'less'} than"


def _memory(portfolio: Portfolio) -> str:
    nested = format_bytes(portfolio.nested_draft_bytes)
    exits = sorted({part.single.policy.exits[0] for part in portfolio.parts if part.single.policy})
    if not exits:
        return f"The weights of the nested draft take {nested}."
    several = f"drafts of {' and '.join(map(str, exits))} layers" if len(exits) > 1 else f"a draft of {exits[0]} layers"
    single = format_bytes(portfolio.single_drafts_bytes)
    return f"The weights of the nested draft take {nested}. Instead, {several}, one per exit chosen above, would take {single}."
