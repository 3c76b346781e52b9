"""Evidence -> Plan: what was asked, on what it rests, what to run, and what else was considered."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.acceptance import (
    Acceptance,
    at_lengths,
    check_draft,
    check_target,
    find_shipped_path,
    load_acceptance,
    record_command,
    same_shape,
    shipped_pairs,
)
from calibrate.batching import batch_schedules
from calibrate.find_target import find_target
from calibrate.grids import MAX_DRAFT_TOKENS
from calibrate.next_command import next_command
from calibrate.price_profiles import price_by_profiles
from calibrate.pricing import DeviceRequest, Pricing, price_by_datasheet
from calibrate.search import search
from perfmodel.errors import OutOfDomain, UserInputError
from perfmodel.estimate import estimate
from perfmodel.geometry import ModelGeometry, find_draft, with_reduced_head
from perfmodel.halves import Split, document_of
from perfmodel.known_models import KNOWN_MODELS
from perfmodel.plan import Candidate, Plan, Workload
from perfmodel.policy import ExitPolicy, HeuristicLength
from perfmodel.replay import replay
from perfmodel.rounds import RoundStats, sum_rounds
from perfmodel.trace import AcceptanceTrace
from perfmodel.units import Tokens

_LOG = logging.getLogger(__name__)

PLAIN_NAME = "plain decoding"
PLAN_NAME = "plan"
PAPER_NAME = "paper thresholds"

PAPER_THRESHOLD = 0.5
PAPER_LENGTH = HeuristicLength(start=5, draft_cap=64)
"""transformers' schedule, as the published S2D runs it; it has no cap, and no accepted run reported is longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """What was asked; None is left open."""

    target: str | None
    draft: str | None
    draft_vocab: Tokens | None
    """Tokens the draft's LM head covers, where it is not the head that was trained."""
    trace: Path | None
    prompts_split: Split
    profiles: tuple[Path, ...]
    fit: Path | None
    device: DeviceRequest
    batch: int
    prompt_tokens: Tokens | None
    output_tokens: Tokens | None


def make_plan(request: PlanRequest) -> Plan:
    """Answer a request from the evidence it names, or from the evidence in the box.

    Raises:
        UserInputError: something asked for is unknown, does not fit together or is not covered by the evidence.
    """
    _check_counts(request)
    acceptance = with_draft_vocab(_acceptance(request), request.draft_vocab)
    header = acceptance.trace.header
    context_tokens = acceptance.prompt_tokens + acceptance.output_tokens
    _check_context(header.target, acceptance)
    if request.profiles or request.fit is not None:
        pricing = price_by_profiles(
            header,
            request.profiles,
            request.device,
            rule=header.sampling.rule,
            context_tokens=context_tokens,
            fit_path=request.fit,
        )
    else:
        pricing = price_by_datasheet(header, request.device, context_tokens=context_tokens)
    chosen, runners_up = decide(acceptance.trace, pricing)
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
        device=pricing.device,
        workload=workload,
        chosen=chosen,
        runners_up=runners_up,
        batch_schedules=schedules,
        memory=pricing.memory,
        evidence=evidence,
        next_command="",
    )
    return replace(plan, next_command=next_command(plan))


def _check_counts(request: PlanRequest) -> None:
    counts = {
        "--batch": request.batch,
        "--prompt-tokens": request.prompt_tokens,
        "--output-tokens": request.output_tokens,
        "--num-devices": request.device.num_devices,
    }
    for flag, count in counts.items():
        if count is not None and count < 1:
            raise UserInputError(f"{flag} {count}: expected at least 1.")
    if request.batch != 1:
        raise UserInputError(
            f"--batch {request.batch}: only --batch 1 is predicted. In a batch every sequence leaves and is accepted at its "
            "own length, which neither replay nor the latency evidence covers yet."
        )
    if request.draft_vocab is not None and request.profiles and request.fit is None:
        raise UserInputError(
            f"--draft-vocab {request.draft_vocab}: profiles hold exit checks of a head that says every token, and what fewer "
            "tokens would take was not measured. Leave --profile out to price them by a datasheet, or give --fit FILE "
            "(s2d-plan fit) instead of the draft's profile."
        )


def _acceptance(request: PlanRequest) -> Acceptance:
    """The trace of the request, at its lengths, checked against its target and draft."""
    if request.trace is not None:
        acceptance = load_acceptance(request.trace, request.prompts_split)
        check_draft(acceptance, request.draft)
        if request.target is not None:
            check_target(acceptance, find_target(request.target))
    elif request.target is not None:
        path = find_shipped_path(_named_target(request.target), request.draft and find_draft(request.draft).model.name)
        acceptance = load_acceptance(path, request.prompts_split)
    else:
        raise UserInputError("nothing to plan for: give --target NAME, or --trace FILE recorded by s2d-profile.")
    return at_lengths(acceptance, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)


def with_draft_vocab(acceptance: Acceptance, draft_vocab: Tokens | None) -> Acceptance:
    """The same agreement with a draft whose LM head covers its most frequent tokens only: assumed, and said to be.

    Such a draft has weights that nobody has seen.

    Raises:
        UserInputError: so many tokens are no part of its vocabulary, or the head is the target's own.
    """
    header = acceptance.trace.header
    if draft_vocab is not None and header.draft.kind == "self":
        raise UserInputError(
            f"--draft-vocab {draft_vocab}: a self-draft answers through the head of its target, which has to say every token. "
            "Leave --draft-vocab out, or plan for a draft with weights of its own."
        )
    model = with_reduced_head(header.draft.model, draft_vocab)
    if not model.has_reduced_head:
        return acceptance
    assumed = f"; assumed to be that of the whole vocabulary, though a head of {model.said_tokens} tokens cannot say the rest"
    reduced = replace(header, draft=replace(header.draft, model=model), draft_sha256=None)
    return replace(
        acceptance,
        trace=replace(acceptance.trace, header=reduced),
        evidence=replace(acceptance.evidence, description=acceptance.evidence.description + assumed),
    )


def _named_target(text: str) -> ModelGeometry:
    """A target whose acceptance may be in the box: one known by name, not by its shapes alone.

    Raises:
        UserInputError: a config was given; says which names have its shapes.
    """
    target = find_target(text)
    if target in KNOWN_MODELS:
        return target
    answered, record = {name for _, name in shipped_pairs()}, record_command(_folder_of(text), None)
    alike = [known.name for known in KNOWN_MODELS if known.name in answered and same_shape(known, target)]
    hint = f" If its weights are those of {alike[0]}, say --target {alike[0]}." if alike else ""
    raise UserInputError(
        f"no acceptance evidence for target {text!r}: a config tells shapes, and how often a draft agrees depends on the "
        f"weights.{hint} Or record it: {record}, then s2d-plan --target {text} --trace profile/trace.npz"
    )


def _folder_of(config: str) -> str:
    """Where the model of a config.json is, if the config is on this machine; else its name."""
    folder = Path(config).parent if config.endswith(".json") else Path(config)
    if not folder.is_dir():
        return folder.name
    return str(folder) if folder.is_absolute() else f"./{folder}"


def _check_context(target: ModelGeometry, acceptance: Acceptance) -> None:
    needed = acceptance.prompt_tokens + acceptance.output_tokens
    if needed > target.max_context_tokens:
        raise OutOfDomain(
            f"prompt and output tokens of {target.name}",
            needed,
            low=1,
            high=target.max_context_tokens,
            fix="Give a smaller --prompt-tokens or --output-tokens",
        )


def decide(trace: AcceptanceTrace, pricing: Pricing) -> tuple[Candidate, tuple[Candidate, ...]]:
    """The best configuration, and what it was held against, fastest first."""
    plain = rounds_by_document(trace, None)
    searched = search(trace, pricing.draft, pricing.target)
    chosen = price_candidate(PLAN_NAME, searched.chosen.policy, trace, pricing, plain)
    found = [price_candidate(PLAIN_NAME, None, trace, pricing, plain)]
    for policy in searched.single_exits:
        found.append(price_candidate(f"exit {policy.exit_layers[0]}", policy, trace, pricing, plain))
    found += price_paper(trace, pricing, plain)
    return chosen, tuple(sorted(found, key=lambda one: one.speedup.tokens_per_s, reverse=True))


def price_paper(trace: AcceptanceTrace, pricing: Pricing, plain: Sequence[RoundStats]) -> list[Candidate]:
    """The paper's policy, with the longest drafts that the latency evidence covers; a warning says so if it covers none."""
    uncovered = None
    for policy in paper_policies(trace):
        try:
            return [price_candidate(PAPER_NAME, policy, trace, pricing, plain)]
        except OutOfDomain as err:
            uncovered = err
    if uncovered is not None:
        _LOG.warning("%s left out of the comparison: %s", PAPER_NAME, uncovered)
    return []


def price_candidate(
    name: str, policy: ExitPolicy | None, trace: AcceptanceTrace, pricing: Pricing, plain: Sequence[RoundStats]
) -> Candidate:
    """One configuration, replayed and priced.

    Args:
        name: how tables call it.
        policy: None is plain decoding.
        trace: to replay.
        pricing: of its passes.
        plain: the rounds of plain decoding, by document.

    Raises:
        OutOfDomain: it needs a pass that the latency evidence does not cover.
    """
    rounds = rounds_by_document(trace, policy) if policy else plain
    speedup = estimate(pricing.draft, pricing.target, rounds, plain)
    return Candidate(name=name, policy=policy, rounds=sum_rounds(rounds), speedup=speedup)


def rounds_by_document(trace: AcceptanceTrace, policy: ExitPolicy | None) -> list[RoundStats]:
    """The replayed rounds of every document that prompts were cut from.

    What an interval draws must be independent, and prompts of one document are not: they are accepted alike.
    """
    grouped: dict[str, list[RoundStats]] = {}
    for prompt, rounds in zip(trace.header.prompts, replay(trace, policy), strict=True):
        grouped.setdefault(document_of(prompt.name), []).append(rounds)
    return [sum_rounds(group) for group in grouped.values()]


def paper_policies(trace: AcceptanceTrace) -> list[ExitPolicy]:
    """All exits at .5 with the +2/-1 length, as published and with the cap of the search, for profiles of short drafts.

    None where there is one exit only, or another confidence.
    """
    layers = trace.header.draft.exit_layers
    if len(layers) < 2 or trace.header.confidence != "max-prob":
        return []
    thresholds = (PAPER_THRESHOLD,) * (len(layers) - 1)
    caps = (PAPER_LENGTH.draft_cap, MAX_DRAFT_TOKENS)
    lengths = [replace(PAPER_LENGTH, draft_cap=cap) for cap in caps]
    return [ExitPolicy(exit_layers=layers, thresholds=thresholds, confidence="max-prob", length=length) for length in lengths]
