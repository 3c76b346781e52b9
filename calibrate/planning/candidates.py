"""Replay and price configurations: the chosen policy, its alternatives and plain decoding."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from calibrate.inputs.published_acceptance import PUBLISHED_LENGTH, PUBLISHED_TOKENS
from calibrate.pricing.pricing import Pricing
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from calibrate.search.search import SearchResult
from perfmodel.acceptance.splits import document_name
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import OutOfDomain
from perfmodel.core.units import Frac, format_frac
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import estimate
from perfmodel.replay.replay import replay_batch
from perfmodel.replay.round_stats import RoundStats, sum_rounds
from perfmodel.results.plan import Candidate, Evidence, EvidenceLevel, EvidenceRole

_LOG = logging.getLogger(__name__)

PLAIN_NAME = "plain decoding"
PLAN_NAME = "plan"
PAPER_NAME = "paper thresholds"
DERIVED_NAME = "costs alone"
"""The policy that the costs imply; none of its thresholds was searched."""

PAPER_THRESHOLD = 0.5


def price_searched(searched: SearchResult, trace: Trace, pricing: Pricing) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The chosen configuration of a search, and its alternatives, fastest first.

    The alternatives are plain decoding, each exit alone, the policy that costs imply, and the paper's thresholds.
    """
    policies = {PLAN_NAME: searched.chosen.policy, PLAIN_NAME: None}
    policies |= {f"exit {policy.exits[0]}": policy for policy in searched.single_exits}
    if searched.optimal_stopping is not None:
        policies[DERIVED_NAME] = searched.optimal_stopping
    chosen, *alternatives = price_candidates(policies, trace, pricing)
    alternatives += price_paper(trace, pricing)
    return chosen, tuple(sorted(alternatives, key=lambda candidate: candidate.speedup.tokens_per_s, reverse=True))


def price_engine_searched(searched: SearchResult, trace: Trace, pricing: Pricing) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The chosen configuration of a search for an engine, plain decoding, and each exit alone, fastest first."""
    policies = {PLAN_NAME: searched.chosen.policy, PLAIN_NAME: None}
    policies |= {f"exit {policy.exits[0]}": policy for policy in searched.single_exits}
    chosen, *alternatives = price_candidates(policies, trace, pricing)
    return chosen, tuple(sorted(alternatives, key=lambda candidate: candidate.speedup.tokens_per_s, reverse=True))


def levelled_evidence(pricing: Pricing, policy: Policy | None) -> tuple[Evidence, ...]:
    """The evidence for the prices of a policy, with the error that holds for it.

    Extrapolated where the policy lies outside of what was measured.
    """
    if pricing.for_policy is None:
        return pricing.evidence
    draft, target = pricing.models_for(policy)
    levels: dict[EvidenceRole, EvidenceLevel] = {"draft latency": draft.level, "target latency": target.level}
    return tuple(
        replace(part, level=levels[part.role], description=_with_error(part.description, draft.error_frac))
        if part.role in levels
        else part
        for part in pricing.evidence
    )


def _with_error(description: str, error_frac: Frac) -> str:
    """A description with the error of a speedup, before its further clauses."""
    first, separator, others = description.partition("; ")
    return f"{first}, ± {format_frac(error_frac)} (one sigma){separator}{others}"


def price_paper(trace: Trace, pricing: Pricing) -> Sequence[Candidate]:
    """The paper's policy at the longest cap that the latency evidence covers; logs a warning if it covers none."""
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
    """Replay policies on a trace and price their rounds.

    Args:
        policies: by the name that tables show; None is plain decoding.
        trace: acceptance evidence.
        pricing: of the passes.

    Raises:
        OutOfDomain: the latency evidence does not cover a pass that a policy needs.
    """
    by_policy = rounds_by_document(trace, [None, *policies.values()])
    rounds = {
        policy: [with_round_shape(stats, pricing.round_shape, policy) for stats in documents]
        for policy, documents in by_policy.items()
    }
    return tuple(
        Candidate(
            name=name,
            policy=policy,
            rounds=sum_rounds(rounds[policy]),
            speedup=estimate(*pricing.models_for(policy), rounds[policy], rounds[None]),
        )
        for name, policy in policies.items()
    )


def rounds_by_document(trace: Trace, policies: Iterable[Policy | None]) -> dict[Policy | None, list[RoundStats]]:
    """The replayed rounds of every policy, summed over the prompts of each document.

    A bootstrap needs independent samples. Prompts that were cut from one document are not: their acceptance is similar.
    """
    distinct = list(dict.fromkeys(policies))
    documents = [document_name(prompt.name) for prompt in trace.header.prompts]
    replayed = iter(replay_batch(trace, distinct, by_prompt=True).stats())
    by_policy = {}
    for policy in distinct:
        by_document: dict[str, list[RoundStats]] = {}
        for document, rounds in zip(documents, replayed, strict=False):
            by_document.setdefault(document, []).append(rounds)
        by_policy[policy] = [sum_rounds(rounds) for rounds in by_document.values()]
    return by_policy


def paper_policies(trace: Trace) -> list[Policy]:
    """The paper's policy: all exits at a threshold of 0.5 with the +2/-1 draft length.

    First with the published cap, then with the cap of the search, which profiles of shorter drafts cover. Empty for a draft
    with one exit or for another confidence.
    """
    layers = trace.header.exit_layers
    if len(layers) < 2 or trace.header.confidence != "max-prob":
        return []
    thresholds = (PAPER_THRESHOLD,) * (len(layers) - 1)
    caps = (PUBLISHED_TOKENS, MAX_DRAFT_TOKENS)
    return [Policy(exits=layers, thresholds=thresholds, tokens=cap, stop=PUBLISHED_LENGTH) for cap in caps]
