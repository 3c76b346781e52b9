"""What was asked -> what a plan rests on: how often the draft agrees with its target, and what their passes cost."""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path

from calibrate.inputs.find_target import check_draft_is_decoder, find_stored_format, find_target
from calibrate.inputs.load_acceptance import (
    Acceptance,
    at_lengths,
    check_draft,
    check_target,
    find_shipped_path,
    load_acceptance,
    record_and_plan,
    record_command,
    same_shape,
    shipped_pairs,
)
from calibrate.inputs.requests import PlanRequest
from calibrate.pricing.datasheet_pricing import Pricing, price_by_datasheet
from calibrate.pricing.measured_pricing import price_by_profiles
from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.geometry import ModelGeometry, with_reduced_head
from perfmodel.models.known_models import KNOWN_MODELS
from perfmodel.quantisation.weight_format import WeightFormat

_LOG = logging.getLogger(__name__)


def gather_evidence(request: PlanRequest) -> tuple[Acceptance, Pricing]:
    """What a plan rests on: how often the draft agrees, and what passes cost.

    Raises:
        UserInputError: something asked for is unknown, does not fit together or is not covered by the evidence.
    """
    _check_counts(request)
    acceptance = with_draft_vocab(gather_acceptance(request), request.draft_vocab)
    header = acceptance.trace.header
    context_tokens = acceptance.prompt_tokens + acceptance.output_tokens
    _check_context(header.target, acceptance)
    stored = _stored_format(request, header.target)
    if not request.profiles and request.fit is None:
        return acceptance, price_by_datasheet(header, request.device, context_tokens=context_tokens, stored=stored)
    if stored is not None:
        _LOG.warning(
            "%s is stored as %s; profiles and fits are of plain weights, and price it so", header.target.name, stored.text
        )
    pricing = price_by_profiles(
        header,
        request.profiles,
        request.device,
        sampling=header.sampling,
        context_tokens=context_tokens,
        fit_path=request.fit,
    )
    return acceptance, pricing


def _stored_format(request: PlanRequest, target: ModelGeometry) -> WeightFormat | None:
    """How the files of the target that was asked for store it; None where a dtype was asked for."""
    if request.target is None or request.device.dtype is not None:
        return None
    return find_stored_format(request.target, target)


def _check_counts(request: PlanRequest) -> None:
    counts = {
        "--batch": request.batch,
        "--prompt-tokens": request.prompt_tokens,
        "--output-tokens": request.output_tokens,
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


def gather_acceptance(request: PlanRequest) -> Acceptance:
    """The trace of the request, at its lengths, checked against its target and draft."""
    if request.draft is not None:
        check_draft_is_decoder(request.draft)
    if request.trace is not None:
        acceptance = load_acceptance(request.trace, request.prompts_split, request.category)
        check_draft(acceptance, request.draft)
        if request.target is not None:
            check_target(acceptance, find_target(request.target))
    elif request.target is not None:
        path = find_shipped_path(_named_target(request.target, request.draft), request.draft)
        acceptance = load_acceptance(path, request.prompts_split, request.category)
    else:
        how = "" if request.draft is None else f" No trace yet? {record_and_plan('your-target', request.draft)}"
        raise UserInputError(f"nothing to plan for: give --target NAME, or --trace FILE recorded by s2d-profile.{how}")
    return at_lengths(acceptance, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)


def with_draft_vocab(acceptance: Acceptance, draft_vocab: Tokens | None) -> Acceptance:
    """The same agreement with a draft whose LM head covers its most frequent tokens only: assumed, and said to be.

    Such a draft has weights that nobody has seen.

    Raises:
        UserInputError: so many tokens are no part of its vocabulary, or the head is the target's own.
    """
    header = acceptance.trace.header
    if draft_vocab is None:
        return acceptance
    if header.draft_kind == "self":
        raise UserInputError(
            f"--draft-vocab {draft_vocab}: a self-draft answers through the head of its target, which has to say every token. "
            "Leave --draft-vocab out, or plan for a draft with weights of its own."
        )
    model = with_reduced_head(header.draft.model, draft_vocab)
    if not model.has_reduced_head:
        return acceptance
    assumed = (
        f"; assumed to be that of the whole vocabulary, though a head of {model.num_head_tokens} tokens cannot say the rest"
    )
    reduced = replace(header, draft_model=model, draft_sha256=None)
    return replace(
        acceptance,
        trace=replace(acceptance.trace, header=reduced),
        evidence=replace(acceptance.evidence, description=acceptance.evidence.description + assumed),
    )


def _named_target(text: str, draft: str | None) -> ModelGeometry:
    """A target whose acceptance may be in the box: one known by name, not by its shapes alone.

    Raises:
        UserInputError: a config was given; says which names have its shapes.
    """
    target = find_target(text)
    if target in KNOWN_MODELS:
        return target
    is_quantised = find_stored_format(text, target) is not None
    folder = "path/to/its-original" if is_quantised else _folder_of(text)
    answered, record = {name for _, name in shipped_pairs()}, record_command(folder, draft)
    alike = [known.name for known in KNOWN_MODELS if known.name in answered and same_shape(known, target)]
    hint = f"If its weights are those of {alike[0]}, give --target {alike[0]}. Or record it" if alike else "Record it"
    original = " with the model it was quantised from, as s2d-profile runs plain weights only" if is_quantised else ""
    raise UserInputError(
        f"no acceptance evidence for target {text!r}: a config gives shapes, and how often a draft agrees depends on the "
        f"weights. {hint}{original}: {record}, then s2d-plan --target {shlex.quote(text)} --trace profile/trace.npz"
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
