"""Compare a policy for each target or category of prompts with one policy for all.

Each part has the policy of its own plan. Two alternatives are compared with it: the best exit alone for each part, which needs
no nested exits, and one policy for all parts, the best in the mean or in the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calibrate.inputs.acceptance import Acceptance, load_acceptance
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.candidates import price_candidates
from calibrate.planning.engine_evidence import check_bundled
from calibrate.planning.make_plan import gather_evidence
from calibrate.pricing.measured import select_profiles
from calibrate.pricing.pricing import Pricing
from calibrate.search.cross_validation import log_speedups, split_halves
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.units import Bytes
from perfmodel.models.find_model import unpublished_note
from perfmodel.models.geometry import DraftGeometry
from perfmodel.policies.policy import Policy
from perfmodel.quantisation.weight_format import WeightFormat, layers_bytes, model_weight_bytes
from perfmodel.results.plan_text import is_published
from perfmodel.results.portfolio import CHOICES, Choice, HeldOut, Part, Portfolio


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PartEvidence:
    """A target or a category before its policies are known."""

    name: str
    acceptance: Acceptance
    pricing: Pricing

    @property
    def scenario(self) -> Scenario:
        return Scenario(self.acceptance.trace, self.pricing.draft, self.pricing.target)


def by_target(requests: Sequence[PlanRequest]) -> Portfolio:
    """One draft at several targets.

    Args:
        requests: one for each target.

    Raises:
        UserInputError: fewer than two targets, one given twice, or anything that a plan of one of them raises.
        Mismatch: the targets are not traced with the same draft.
    """
    parts = []
    for request in requests:
        check_bundled(request, "a plan for several targets")
        acceptance, pricing = gather_evidence(request)
        parts.append(_PartEvidence(name=acceptance.trace.header.target.name, acceptance=acceptance, pricing=pricing))
    names = [part.name for part in parts]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if len(parts) < 2 or repeated:
        given = f"target {repeated[0]} is given twice" if repeated else f"only target {names[0]} is given"
        raise UserInputError(f"{given}: expected two different targets or more. For one target, give --target.")
    first = parts[0]
    for part in parts[1:]:
        _check_same_draft(first, part)
    return _portfolio("targets", parts)


def by_category(request: PlanRequest) -> Portfolio:
    """One draft and one target, by category of the prompts.

    Raises:
        UserInputError: all prompts are of one category, or anything that a plan raises.
    """
    check_bundled(request, "--by-category")
    acceptance, pricing = gather_evidence(request)
    prompts = acceptance.trace.header.prompts
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    if len(categories) < 2:
        raise UserInputError(
            f"--by-category: all {len(prompts)} prompts are of category {categories[0]!r}, expected several. Record a trace of "
            'prompts that have a "category" in the JSONL.'
        )
    parts = []
    for category in categories:
        kept = [number for number, prompt in enumerate(prompts) if prompt.category == category]
        in_category = replace(acceptance, trace=acceptance.trace.subset(kept))
        parts.append(_PartEvidence(name=category, acceptance=in_category, pricing=pricing))
    return _portfolio("categories", parts)


def with_own_profiles(requests: Sequence[PlanRequest]) -> list[PlanRequest]:
    """The same requests, each with the profiles of its own pair only.

    Args:
        requests: each with a trace; all list the profiles of all pairs.

    Raises:
        UserInputError: no pair uses one of the profiles.
    """
    profiles = requests[0].profiles
    if not profiles:
        return list(requests)
    selected = []
    for request in requests:
        assert request.trace is not None
        header = load_acceptance(request.trace).trace.header
        selected.append(replace(request, profiles=select_profiles(header, profiles)))
    used = {path for request in selected for path in request.profiles}
    unused = [path.name for path in profiles if path not in used]
    if unused:
        raise UserInputError(
            f"profile {unused[0]!r} is of none of the traced models, or of a draft that has a profile beside each target. "
            "Give --profile once for every target and once for the draft."
        )
    return selected


def _check_same_draft(first: _PartEvidence, other: _PartEvidence) -> None:
    header, other_header = first.acceptance.trace.header, other.acceptance.trace.header
    if (header.draft, header.draft_sha256) != (other_header.draft, other_header.draft_sha256):
        raise Mismatch(
            f"the acceptance of target {first.name}",
            made_for=_draft_text(header.draft, header.draft_sha256),
            given=f"{_draft_text(other_header.draft, other_header.draft_sha256)} at target {other.name}",
            fix="Give traces of one draft at all targets",
        )
    if header.confidence != other_header.confidence:
        given = f"{other_header.confidence} at target {other.name}"
        fix = "Record all of them with the same --confidence"
        raise Mismatch(f"the trace of target {first.name}", made_for=header.confidence, given=given, fix=fix)


def _draft_text(draft: DraftGeometry, sha256: str | None) -> str:
    exits = "/".join(map(str, draft.exit_layers))
    return f"draft {draft.model.name} with exits {exits}" + (f" and weights {sha256[:12]}" if sha256 else "")


def _portfolio(of: Literal["targets", "categories"], evidence: Sequence[_PartEvidence]) -> Portfolio:
    scenarios = [part.scenario for part in evidence]
    policies = _choose(scenarios)
    parts = tuple(
        _priced_part(part, {choice: by_part[number] for choice, by_part in policies.items()})
        for number, part in enumerate(evidence)
    )
    draft = evidence[0].acceptance.trace.header.draft
    exits = {part.single.policy.exits[0] for part in parts if part.single.policy}
    weights = evidence[0].pricing.weights.draft
    note = unpublished_note(draft) if is_published(parts[0].evidence) else None
    return Portfolio(
        of=of,
        draft=draft,
        parts=parts,
        common=policies["common"][0],
        robust=policies["robust"][0],
        held_out=held_out_choices(scenarios),
        nested_draft_bytes=_weight_bytes(draft, draft.exit_layers[-1], weights),
        single_drafts_bytes=sum(_weight_bytes(draft, layer, weights) for layer in exits),
        next_command="",
        notes=() if note is None else (note,),
    )


def _choose(scenarios: Sequence[Scenario]) -> dict[Choice, list[Policy | None]]:
    """Every choice's policy for every scenario."""
    own = [search([scenario]) for scenario in scenarios]
    common, robust = search(scenarios, "mean").chosen.policy, search(scenarios, "worst").chosen.policy
    return {
        "own": [result.chosen.policy for result in own],
        "single": [result.single_exits[0] if result.single_exits else None for result in own],
        "common": [common] * len(scenarios),
        "robust": [robust] * len(scenarios),
    }


def held_out_choices(scenarios: Sequence[Scenario]) -> HeldOut | None:
    """Speedups of the choices on the half of the prompts on which they were not searched; None if a half is empty."""
    halves = split_halves(scenarios)
    if halves is None:
        return None
    logs: dict[Choice, list[float]] = {choice: [] for choice in CHOICES}
    for seen, unseen in (halves, halves[::-1]):
        chosen = _choose(seen)
        for number, scenario in enumerate(unseen):
            speedups = log_speedups(scenario, [chosen[choice][number] for choice in CHOICES])
            for choice, log_speedup in zip(CHOICES, speedups, strict=True):
                logs[choice].append(log_speedup)
    return HeldOut(**{choice: math.exp(math.fsum(values) / len(values)) for choice, values in logs.items()})


def _priced_part(evidence: _PartEvidence, policies: Mapping[Choice, Policy | None]) -> Part:
    trace, pricing = evidence.acceptance.trace, evidence.pricing
    own, single, common, robust = price_candidates({choice: policies[choice] for choice in CHOICES}, trace, pricing)
    return Part(
        name=evidence.name,
        target=trace.header.target.name,
        device=pricing.device,
        num_prompts=len(trace.header.prompts),
        own=own,
        single=single,
        common=common,
        robust=robust,
        evidence=(*pricing.evidence, evidence.acceptance.evidence),
    )


def _weight_bytes(draft: DraftGeometry, num_layers: int, weights: WeightFormat) -> Bytes:
    """Bytes of a draft cut off after some layers; 0 if its weights are the target's."""
    if draft.kind == "self":
        return 0
    removed_bytes = layers_bytes(draft.model, weights, draft.exit_layers[-1] - num_layers)
    return round(model_weight_bytes(draft.model, weights) - removed_bytes)
