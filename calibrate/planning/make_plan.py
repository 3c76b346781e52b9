"""Evidence -> Plan: what was asked, on what it rests, what to run, and what else was considered."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.batch_schedule import batch_schedules
from calibrate.planning.evidence import gather_evidence
from calibrate.planning.next_command import next_command, plan_notes
from calibrate.pricing.datasheet_pricing import Pricing
from calibrate.search.cross_validation import overfitting
from calibrate.search.find_frontier import find_frontier
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.splits import document_of
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import OutOfDomain
from perfmodel.models.find_model import release_note
from perfmodel.policies.policy import HeuristicLength, Policy
from perfmodel.replay.estimate import estimate
from perfmodel.replay.replay import replay_batch
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from perfmodel.results.plan import Candidate, Plan, Workload

_LOG = logging.getLogger(__name__)

PLAIN_NAME = "plain decoding"
PLAN_NAME = "plan"
PAPER_NAME = "paper thresholds"
DERIVED_NAME = "costs alone"
"""No threshold of it was searched."""

PAPER_THRESHOLD = 0.5
PAPER_LENGTH = HeuristicLength(start=5)
PAPER_TOKENS = 64
"""transformers' schedule, as the published S2D runs it; it has no cap, and no accepted run reported is longer than this."""


def make_plan(request: PlanRequest) -> Plan:
    """Answer a request from the evidence it names, or from the evidence in the box.

    Raises:
        UserInputError: something asked for is unknown, does not fit together or is not covered by the evidence.
    """
    acceptance, pricing = gather_evidence(request)
    header = acceptance.trace.header
    context_tokens = acceptance.prompt_tokens + acceptance.output_tokens
    chosen, runners_up = decide(acceptance.trace, pricing)
    is_traced = acceptance.evidence.level == "traced"
    scenario = Scenario(acceptance.trace, pricing.draft, pricing.target)
    schedules = batch_schedules(acceptance.trace, pricing, context_tokens=context_tokens)
    evidence = (*pricing.evidence, acceptance.evidence)
    workload = Workload(
        batch=request.batch,
        prompt_tokens=acceptance.prompt_tokens,
        output_tokens=acceptance.output_tokens,
        sampling=header.sampling,
    )
    plan = Plan(
        target=header.target,
        target_sha256=header.target_sha256,
        draft=header.draft,
        draft_name=header.draft.model.name,
        draft_sha256=header.draft_sha256,
        tokenizer_sha256=header.tokenizer_sha256,
        target_weights=pricing.weights.target,
        draft_weights=pricing.weights.draft,
        device=pricing.device,
        draft_num_devices=pricing.draft_num_devices,
        workload=workload,
        chosen=chosen,
        runners_up=runners_up,
        frontier=find_frontier(scenario, chosen.policy, [candidate.policy for candidate in runners_up]) if is_traced else (),
        batch_schedules=schedules,
        overfitting=overfitting(scenario) if is_traced else None,
        memory=pricing.memory,
        evidence=evidence,
        next_command="",
    )
    release = None if request.target is None else release_note(request.target, plan.target)
    notes = (*(() if release is None else (release,)), *plan_notes(plan))
    return replace(plan, next_command=next_command(plan), notes=notes)


def decide(trace: Trace, pricing: Pricing) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The best configuration, and what it was held against, fastest first."""
    searched = search([Scenario(trace, pricing.draft, pricing.target)])
    policies = {PLAN_NAME: searched.chosen.policy, PLAIN_NAME: None}
    policies |= {f"exit {policy.exits[0]}": policy for policy in searched.single_exits}
    if searched.optimal_stopping is not None:
        policies[DERIVED_NAME] = searched.optimal_stopping
    chosen, *found = price_candidates(policies, trace, pricing)
    found += price_paper(trace, pricing)
    return chosen, tuple(sorted(found, key=lambda one: one.speedup.tokens_per_s, reverse=True))


def price_paper(trace: Trace, pricing: Pricing) -> Sequence[Candidate]:
    """The paper's policy, with the longest drafts that the latency evidence covers; a warning says so if it covers none."""
    uncovered = None
    for policy in paper_policies(trace):
        try:
            return price_candidates({PAPER_NAME: policy}, trace, pricing)
        except OutOfDomain as err:
            uncovered = err
    if uncovered is not None:
        _LOG.warning("%s left out of the comparison: %s", PAPER_NAME, uncovered)
    return ()


def price_candidates(policies: Mapping[str, Policy | None], trace: Trace, pricing: Pricing) -> tuple[Candidate, ...]:
    """Configurations, replayed and priced.

    Args:
        policies: by what tables call them; None is plain decoding.
        trace: to replay.
        pricing: of their passes.

    Raises:
        OutOfDomain: one needs a pass that the latency evidence does not cover.
    """
    rounds = rounds_by_document(trace, [None, *policies.values()])
    return tuple(
        Candidate(
            name=name,
            policy=policy,
            rounds=sum_rounds(rounds[policy]),
            speedup=estimate(pricing.draft, pricing.target, rounds[policy], rounds[None]),
        )
        for name, policy in policies.items()
    )


def rounds_by_document(trace: Trace, policies: Iterable[Policy | None]) -> dict[Policy | None, list[RoundStats]]:
    """The replayed rounds of every document that prompts were cut from, by policy.

    What an interval draws must be independent, and prompts of one document are not: they are accepted alike.
    """
    different = list(dict.fromkeys(policies))
    names = [document_of(prompt.name) for prompt in trace.header.prompts]
    replayed = iter(replay_batch(trace, different, by_prompt=True).stats())
    found = {}
    for policy in different:
        grouped: dict[str, list[RoundStats]] = {}
        for name, rounds in zip(names, replayed, strict=False):
            grouped.setdefault(name, []).append(rounds)
        found[policy] = [sum_rounds(group) for group in grouped.values()]
    return found


def paper_policies(trace: Trace) -> list[Policy]:
    """All exits at .5 with the +2/-1 length, as published and with the cap of the search, for profiles of short drafts.

    None where there is one exit only, or another confidence.
    """
    layers = trace.header.exit_layers
    if len(layers) < 2 or trace.header.confidence != "max-prob":
        return []
    thresholds = (PAPER_THRESHOLD,) * (len(layers) - 1)
    caps = (PAPER_TOKENS, MAX_DRAFT_TOKENS)
    return [Policy(exits=layers, thresholds=thresholds, tokens=cap, stop=PAPER_LENGTH) for cap in caps]
