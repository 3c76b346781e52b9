"""Several traces of one draft -> Portfolio: is a policy of its own for every target, or every kind of prompt, worth having?

A part's own policy is what its plan says. Beside it stand what one would do without nested exits (the best exit alone, chosen
part by part) and what one would do without knowing the parts apart (one policy for all, by their mean or by the worst).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calibrate.inputs.load_acceptance import Acceptance
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.evidence import gather_acceptance, gather_evidence
from calibrate.planning.make_plan import price_candidates
from calibrate.pricing.datasheet_pricing import Pricing
from calibrate.pricing.measured_pricing import profiles_of
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
class _Place:
    """A part before its policies are known."""

    name: str
    acceptance: Acceptance
    pricing: Pricing

    @property
    def case(self) -> Scenario:
        return Scenario(self.acceptance.trace, self.pricing.draft, self.pricing.target)


def by_target(requests: Sequence[PlanRequest]) -> Portfolio:
    """One draft at several targets.

    Args:
        requests: one for each target.

    Raises:
        UserInputError: fewer than two targets, one given twice, or anything that a plan of one of them would raise.
        Mismatch: the targets are not traced with the same draft.
    """
    gathered = [gather_evidence(request) for request in requests]
    places = [
        _Place(name=acceptance.trace.header.target.name, acceptance=acceptance, pricing=pricing)
        for acceptance, pricing in gathered
    ]
    names = [place.name for place in places]
    twice = sorted({name for name in names if names.count(name) > 1})
    if len(places) < 2 or twice:
        given = f"target {twice[0]} is given twice" if twice else f"only target {names[0]} is given"
        raise UserInputError(f"{given}: a draft is shared by two different targets or more. For one, give --target.")
    first = places[0]
    for place in places[1:]:
        _check_same_draft(first, place)
    return _portfolio("targets", places)


def with_their_profiles(requests: Sequence[PlanRequest]) -> list[PlanRequest]:
    """Every target's request with the profiles of its own pair, where profiles of all were given to each.

    Raises:
        UserInputError: a profile is of no use.
    """
    if not requests[0].profiles:
        return list(requests)
    own = []
    for request in requests:
        header = gather_acceptance(request).trace.header
        own.append(replace(request, profiles=profiles_of(header, request.profiles)))
    used = {path for request in own for path in request.profiles}
    stray = [path.name for path in requests[0].profiles if path not in used]
    if stray:
        raise UserInputError(
            f"profile {stray[0]!r} is of none of the traced models, or of a draft that was timed beside each target anyway. "
            "Give --profile once for every target and once for the draft."
        )
    return own


def by_category(request: PlanRequest) -> Portfolio:
    """One draft and one target, category by category of the prompts.

    Raises:
        UserInputError: the prompts are of one category only, or anything that a plan would raise.
    """
    acceptance, pricing = gather_evidence(request)
    prompts = acceptance.trace.header.prompts
    categories = list(dict.fromkeys(prompt.category for prompt in prompts))
    if len(categories) < 2:
        raise UserInputError(
            f"--by-category: all {len(prompts)} prompts are of category {categories[0]!r}. Record a trace of prompts that name "
            'their "category" in the JSONL.'
        )
    places = []
    for category in categories:
        kept = [number for number, prompt in enumerate(prompts) if prompt.category == category]
        of_category = replace(acceptance, trace=acceptance.trace.subset(kept))
        places.append(_Place(name=category, acceptance=of_category, pricing=pricing))
    return _portfolio("categories", places)


def _check_same_draft(one: _Place, other: _Place) -> None:
    drafts = [place.acceptance.trace.header for place in (one, other)]
    if (drafts[0].draft, drafts[0].draft_sha256) != (drafts[1].draft, drafts[1].draft_sha256):
        labels = [_draft_text(header.draft, header.draft_sha256) for header in drafts]
        raise Mismatch(
            f"the acceptance of target {one.name}",
            made_for=labels[0],
            given=f"{labels[1]} at target {other.name}",
            fix="Give traces of one draft at all targets",
        )
    if drafts[0].confidence != drafts[1].confidence:
        given = f"{drafts[1].confidence} at target {other.name}"
        fix = "Record all of them with the same --confidence"
        raise Mismatch(f"the trace of target {one.name}", made_for=drafts[0].confidence, given=given, fix=fix)


def _draft_text(draft: DraftGeometry, sha256: str | None) -> str:
    exits = "/".join(map(str, draft.exit_layers))
    return f"draft {draft.model.name} with exits {exits}" + (f" and weights {sha256[:12]}" if sha256 else "")


def _portfolio(of: Literal["targets", "categories"], places: Sequence[_Place]) -> Portfolio:
    cases = [place.case for place in places]
    found = _choose(cases)
    parts = tuple(
        _part(place, {choice: policies[number] for choice, policies in found.items()}) for number, place in enumerate(places)
    )
    draft = places[0].acceptance.trace.header.draft
    exits = {part.single.policy.exits[0] for part in parts if part.single.policy}
    weights = places[0].pricing.weights.draft
    note = unpublished_note(draft) if is_published(parts[0].evidence) else None
    return Portfolio(
        of=of,
        draft=draft,
        parts=parts,
        common=found["common"][0],
        robust=found["robust"][0],
        held_out=held_out_choices(cases),
        nested_draft_bytes=_weights_bytes(draft, draft.exit_layers[-1], weights),
        single_drafts_bytes=sum(_weights_bytes(draft, layer, weights) for layer in exits),
        next_command="",
        notes=() if note is None else (note,),
    )


def _choose(cases: Sequence[Scenario]) -> dict[Choice, list[Policy | None]]:
    """The policy of every case under every choice."""
    own = [search([case]) for case in cases]
    common, robust = search(cases, "mean").chosen.policy, search(cases, "worst").chosen.policy
    return {
        "own": [found.chosen.policy for found in own],
        "single": [found.single_exits[0] if found.single_exits else None for found in own],
        "common": [common] * len(cases),
        "robust": [robust] * len(cases),
    }


def held_out_choices(cases: Sequence[Scenario]) -> HeldOut | None:
    """What the choices come to on the half of the prompts that they were not made on; None where a half would be empty."""
    halves = split_halves(cases)
    if halves is None:
        return None
    logs: dict[Choice, list[float]] = {choice: [] for choice in CHOICES}
    for seen, unseen in (halves, halves[::-1]):
        chosen = _choose(seen)
        for number, case in enumerate(unseen):
            for choice, found in zip(CHOICES, log_speedups(case, [chosen[choice][number] for choice in CHOICES]), strict=True):
                logs[choice].append(found)
    return HeldOut(**{choice: math.exp(math.fsum(found) / len(found)) for choice, found in logs.items()})


def _part(place: _Place, policies: Mapping[Choice, Policy | None]) -> Part:
    trace, pricing = place.acceptance.trace, place.pricing
    own, single, common, robust = price_candidates({choice: policies[choice] for choice in CHOICES}, trace, pricing)
    return Part(
        name=place.name,
        target=trace.header.target.name,
        device=pricing.device,
        num_prompts=len(trace.header.prompts),
        own=own,
        single=single,
        common=common,
        robust=robust,
        evidence=(*pricing.evidence, place.acceptance.evidence),
    )


def _weights_bytes(draft: DraftGeometry, layers: int, weights: WeightFormat) -> Bytes:
    """Of the draft cut off after so many layers; nothing where its weights are the target's."""
    if draft.kind == "self":
        return 0
    cut_off = layers_bytes(draft.model, weights, draft.exit_layers[-1] - layers)
    return round(model_weight_bytes(draft.model, weights) - cut_off)
