"""A portfolio as text for people: every part's own policy, and what one for all would cost."""

from __future__ import annotations

import textwrap
from dataclasses import replace

from calibrate.pricing.pricing import key_text
from calibrate.text.plan_text import (
    PAGE_CHARS,
    draft_label,
    evidence_facts,
    facts_text,
    interval_text,
    note_text,
)
from perfmodel.core.console import table
from perfmodel.core.units import format_bytes, format_frac, format_number, format_speedup
from perfmodel.policies.policy import ExitPolicy
from perfmodel.results.plan import Evidence
from perfmodel.results.portfolio import Choice, Part, Portfolio

_CHOICE_NAMES: dict[Choice, str] = {
    "own": "a policy for each",
    "single": "one exit for each",
    "common": "one policy for all",
    "robust": "the best worst case",
}


def portfolio_text(portfolio: Portfolio, *, next_command: str) -> str:
    """The whole answer of `s2d-plan --targets` and `s2d-plan --by-category`.

    Args:
        portfolio: what was found.
        next_command: plans for one part alone.
    """
    blocks = [_understood(portfolio), _own(portfolio), _choices(portfolio), _verdict(portfolio)]
    if portfolio.of == "targets" and portfolio.draft.kind == "separate":
        blocks.append(_memory(portfolio))
    blocks += map(note_text, portfolio.notes)
    return "\n\n".join([*blocks, f"next: {next_command}"])


def _understood(portfolio: Portfolio) -> str:
    facts = [("draft", draft_label(portfolio.draft))]
    if portfolio.of == "categories":
        first = portfolio.parts[0]
        facts += [("target", first.target), ("device", key_text(first.device))]
    return facts_text(facts + evidence_facts(_shared(portfolio)))


def _shared(portfolio: Portfolio) -> list[Evidence]:
    """What all parts rest on, in words; what differs is in the plan of each."""
    first, *others = ([replace(one, sha256=None) for one in part.evidence] for part in portfolio.parts)
    return [one for one in first if all(one in other for other in others)]


def _own(portfolio: Portfolio) -> str:
    rows = [
        [
            part.name,
            str(part.num_prompts) if portfolio.of == "categories" else key_text(part.device),
            _policy_text(part.own.policy),
            format_number(part.own.speedup.tokens_per_s),
            format_speedup(part.own.speedup.speedup.value),
            "" if part.own.policy is None else interval_text(part.own.speedup.speedup),
        ]
        for part in portfolio.parts
    ]
    of, place = ("category", "prompts") if portfolio.of == "categories" else ("target", "device")
    headers = [of, place, "its own policy", "tokens/s", "speedup", "90 % interval"]
    return table(rows, headers=headers, align="lrlrrr" if portfolio.of == "categories" else "lllrrr")


def _policy_text(policy: ExitPolicy | None) -> str:
    return "do not speculate" if policy is None else policy.label


def _choices(portfolio: Portfolio) -> str:
    policies: dict[Choice, str] = {
        "own": "as above",
        "single": ", ".join(_single_text(part) for part in portfolio.parts),
        "common": _policy_text(portfolio.common),
        "robust": _policy_text(portfolio.robust),
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
    headers = ["configuration", "policy", *(part.name for part in portfolio.parts), "geometric mean", "worst"]
    headers += ["mean held out"] if portfolio.held_out else []
    return table(rows, headers=headers, align="ll" + "r" * (len(headers) - 2))


def _single_text(part: Part) -> str:
    policy = part.single.policy
    return "none" if policy is None else f"{policy.exit_layers[0]} x {policy.length.draft_cap}"


def _verdict(portfolio: Portfolio) -> str:
    each = "target" if portfolio.of == "targets" else "category"
    own, single, common = (_mean(portfolio, choice) for choice in ("own", "single", "common"))
    where = ", on prompts it was not searched on (one half of them, then the other)" if portfolio.held_out else ""
    text = (
        f"In the geometric mean, a policy for each {each} is predicted to give {_more(own / single - 1)} one exit chosen for "
        f"each, and {_more(own / common - 1)} one policy for all{where}."
    )
    if portfolio.held_out and own <= common:
        text += " Policies of their own are fitted to these prompts: run one policy for all."
    assumed = any(one.role == "acceptance" and one.level == "published" for part in portfolio.parts for one in part.evidence)
    caution = " Thresholds rest on assumed confidences: record traces before relying on what they add." if assumed else ""
    return textwrap.fill(text + caution, PAGE_CHARS)


def _mean(portfolio: Portfolio, choice: Choice) -> float:
    """Held out, where that could be done."""
    held_out = portfolio.held_out
    mean: float = portfolio.mean_speedup(choice) if held_out is None else getattr(held_out, choice)
    return mean


def _more(gain: float) -> str:
    if abs(gain) < 0.0005:
        return "as much as"
    return f"{format_frac(abs(gain))} {'more' if gain > 0 else 'less'} than"


def _memory(portfolio: Portfolio) -> str:
    exits = sorted({part.single.policy.exit_layers[0] for part in portfolio.parts if part.single.policy})
    if not exits:
        return f"The nested draft's weights take {format_bytes(portfolio.nested_draft_bytes)}."
    several = f"drafts of {' and '.join(map(str, exits))} layers" if len(exits) > 1 else f"a draft of {exits[0]} layers"
    text = (
        f"The one nested draft's weights take {format_bytes(portfolio.nested_draft_bytes)}; {several} instead, one for each "
        f"exit chosen alone, would take {format_bytes(portfolio.single_drafts_bytes)}."
    )
    return textwrap.fill(text, PAGE_CHARS)
