"""Text before a run and after a calibration: what is about to run, and the confidence curves of a draft."""

from collections.abc import Sequence

from perfmodel.core.blocks import Facts, Paragraph, Table, as_text
from perfmodel.core.units import format_frac
from perfmodel.results.plan import Plan
from perfmodel.results.plan_text import policy_label
from perfmodel.results.report_text import UNKNOWN
from s2d.decoding.pair import EncodedPrompt, Pair
from s2d.loading.sidecar import Sidecar
from s2d.running.run_report import RunRequest

SHOWN_CONFIDENCES = (0.1, 0.3, 0.5, 0.7, 0.9)


def understood_text(pair: Pair, plan: Plan, prompts: Sequence[EncodedPrompt], request: RunRequest) -> str:
    """What is about to run."""
    policy = policy_label(plan.chosen.policy)
    if request.frontier:
        policy = f"adapting, along the {len(request.frontier)} policies of the plan's frontier"
    num_turns = sum(prompt.num_turns for prompt in prompts)
    texts = f"{len(prompts)}" + (f" in {num_turns} turns" if num_turns > len(prompts) else "")
    facts = [
        ("models", pair.label),
        ("device", pair.device_key.label),
        ("policy", policy),
        ("sampling", plan.workload.sampling.label),
        ("prompts", f"{texts}, at most {request.max_new_tokens} new tokens each"),
    ]
    return as_text([Facts(facts)])


def calibration_text(sidecar: Sidecar) -> str:
    """The agreement that each exit's curve predicts at several confidences."""
    fitted = sidecar.calibration
    if fitted is None:
        return "no calibration"
    rows = [
        [f"exit {layer}", *(format_frac(curve(confidence)) if curve else UNKNOWN for confidence in SHOWN_CONFIDENCES)]
        for layer, curve in zip(sidecar.exit_layers, fitted.curves, strict=True)
    ]
    headers = ["agreement", *(f"at {confidence:.1f}" for confidence in SHOWN_CONFIDENCES)]
    source = (
        f"Fitted to {fitted.num_positions} positions of text by {', '.join(fitted.targets)}; confidence: {fitted.confidence}."
    )
    return as_text([Table(rows, headers), Paragraph(source)])
