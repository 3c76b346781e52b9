"""Several drafts of one target as text for people: each at its best, before the plan of the fastest."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from calibrate.text.plan_text import PAGE_CHARS, interval_text
from perfmodel.core.console import table
from perfmodel.core.units import format_bytes, format_number, format_rate, format_speedup
from perfmodel.results.plan import Plan

PLAIN_TOLERANCE = 1.05
"""Plain decoding that differs by more was another machine's, or a slower hour's."""


def drafts_text(plans: Sequence[Plan]) -> str:
    """A line per draft, the fastest first, and what the interval says of the choice."""
    rows = [
        [
            plan.draft.model.name,
            f"{plan.draft.model.num_head_tokens}",
            format_bytes(plan.memory.draft_weight_bytes),
            "do not speculate" if plan.chosen.policy is None else plan.chosen.policy.label,
            format_number(plan.chosen.speedup.tokens_per_s),
            format_speedup(plan.chosen.speedup.speedup.value),
            "" if plan.chosen.policy is None else interval_text(plan.chosen.speedup.speedup),
        ]
        for plan in plans
    ]
    headers = ["draft", "says", "weights", "its own policy", "tokens/s", "speedup", "90 % interval"]
    first, second = (plan.chosen.speedup for plan in plans[:2])
    lead = first.speedup.value / second.speedup.value
    verdict = f"By speedup, {plans[0].draft.model.name} is predicted to be {format_speedup(lead)} as fast as the next."
    plain = [plan.chosen.speedup.plain_tokens_per_s for plan in plans]
    if max(plain) > PLAIN_TOLERANCE * min(plain):
        rates = format_rate(min(plain)), format_rate(max(plain))
        verdict += f" Plain decoding ran at {rates[0]} to {rates[1]} beside them, so that tokens/s tell of the machine too."
    if second.speedup.high > first.speedup.low:
        verdict += " Their intervals overlap: what is left of the lead on other prompts, s2d-run --check of both plans shows."
    return f"{table(rows, headers=headers, align='lrrlrrr')}\n\n{textwrap.fill(verdict, PAGE_CHARS)}"
