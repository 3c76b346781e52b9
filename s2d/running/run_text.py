"""Text before a run: models, device, policy, sampling and prompts."""

from collections.abc import Sequence

from perfmodel.core.blocks import Facts, as_text
from perfmodel.results.plan import Plan
from perfmodel.results.plan_text import policy_label
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.pair import Pair
from s2d.running.run_prompts import RunSettings


def understood_text(pair: Pair, plan: Plan, prompts: Sequence[EncodedPrompt], settings: RunSettings) -> str:
    """What is about to run."""
    policy = policy_label(plan.chosen.policy)
    if settings.frontier:
        policy = f"adapting, along the {len(settings.frontier)} policies of the plan's frontier"
    num_turns = sum(prompt.num_turns for prompt in prompts)
    texts = f"{len(prompts)}" + (f" in {num_turns} turns" if num_turns > len(prompts) else "")
    facts = [
        ("models", pair.label),
        ("device", pair.device_key.label),
        ("policy", policy),
        ("sampling", plan.workload.sampling.label),
        ("prompts", f"{texts}, at most {settings.max_new_tokens} new tokens each"),
    ]
    return as_text([Facts(facts)])
