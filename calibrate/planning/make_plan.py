"""Make a plan: resolve the evidence, price passes, search for the fastest policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.inputs.acceptance import Acceptance, resolve_acceptance
from calibrate.inputs.device import resolve_device
from calibrate.inputs.draft import resolve_draft_name
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.inputs.target import resolve_target
from calibrate.planning.batch_schedule import batch_schedules
from calibrate.planning.candidates import price_searched
from calibrate.planning.suggest_after_plan import next_command, plan_notes
from calibrate.pricing.datasheet import price_by_datasheet
from calibrate.pricing.measured import price_by_profiles
from calibrate.pricing.pricing import Pricing, pair_weights
from calibrate.search.cross_validation import overfitting
from calibrate.search.find_frontier import find_frontier
from calibrate.search.scenario import Scenario
from calibrate.search.search import search
from perfmodel.acceptance.splits import Split
from perfmodel.core.disk import PathLike, as_paths
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import release_note
from perfmodel.passes.device_key import LaunchMode
from perfmodel.results.plan import Plan, Workload

if TYPE_CHECKING:
    from perfmodel.acceptance.trace import Trace

_LOG = logging.getLogger(__name__)


def plan(
    target: PathLike | None = None,
    *,
    draft: PathLike | None = None,
    device: PathLike | None = None,
    num_devices: int | None = None,
    draft_num_devices: int | None = None,
    dtype: Dtype | None = None,
    mode: LaunchMode | None = None,
    batch: int = 1,
    prompt_tokens: Tokens | None = None,
    output_tokens: Tokens | None = None,
    trace: PathLike | Trace | None = None,
    profiles: PathLike | Sequence[PathLike] = (),
    fit: PathLike | None = None,
    prompts_split: Split = "all",
    category: str | None = None,
    draft_vocab: Tokens | None = None,
) -> Plan:
    """The fastest way to decode a target with a nested draft on a device, and how fast it is predicted to be.

    `s2d-plan` calls the same function. Everything that is None is chosen by the planner; the plan's `evidence` states how.

    Args:
        target: a known name, a config.json or its folder, or `org/name` on the Hugging Face hub. None takes the trace's.
        draft: a known name or a folder. None takes the trace's draft, or the first with a shipped trace for the target.
        device: a known name, `cpu`, or a `.toml` or `.json` file. None takes the GPU of this machine, else an A100.
        num_devices: tensor-parallel degree of the target. None takes the fewest devices that hold the models.
        draft_num_devices: 1 or `num_devices`. None takes the number that drafts faster.
        dtype: of the weights. None prices a target as its files store it and other models in the device's default dtype.
        mode: `eager` or `graph`. None takes the device's default.
        batch: sequences decoded at a time; only 1 is predicted.
        prompt_tokens: length of a prompt, in tokens. None takes the mean over the trace.
        output_tokens: tokens to generate. None takes the length at which the trace was recorded.
        trace: acceptance recorded by `s2d-profile`, as a file or in memory. None takes a shipped trace. A trace from arrays
            has no models of its own, so `target` and `draft` name them.
        profiles: latency profiles by `s2d-profile`: one of the target and one of the draft. Empty prices by datasheet.
        fit: a fit by `s2d-plan fit`, which prices a model that has no profile.
        prompts_split: `calibration` or `evaluation` plans on one half of the trace's prompts; `all` on all of them.
        category: plan for the prompts of this category only.
        draft_vocab: vocabulary of an assumed reduced LM head of the draft, in tokens. None keeps the head.

    Returns:
        The plan: `policy` (None means: do not speculate), `speedup` over plain decoding with its 90 % interval,
        `tokens_per_s`, `runners_up`, `memory` in bytes, `evidence` and `next_command`.

    Raises:
        UserInputError: a name, file or number that cannot be used, or evidence that does not fit together.
        OutOfDomain: lengths beyond the target's context, or models that no number of devices holds.

    Example:
        >>> made = s2d.plan("llama-70b", device="h100")
        >>> made.policy.exits, made.speedup.value > 1, made.tokens_per_s > 70
        ((6, 9, 12), True, True)
    """
    return make_plan(
        PlanRequest(
            target=None if target is None else os.fspath(target),
            draft=None if draft is None else os.fspath(draft),
            draft_vocab=draft_vocab,
            trace=Path(trace) if isinstance(trace, (str, os.PathLike)) else trace,
            prompts_split=prompts_split,
            category=category,
            profiles=as_paths(profiles),
            fit=None if fit is None else Path(fit),
            device=DeviceRequest(
                device=None if device is None else os.fspath(device),
                num_devices=num_devices,
                draft_num_devices=draft_num_devices,
                dtype=dtype,
                mode=mode,
            ),
            batch=batch,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
    )


def make_plan(request: PlanRequest) -> Plan:
    """A plan for a request, from the evidence that it names or that ships with the package.

    Raises:
        UserInputError: something in the request is unknown, contradictory, or not covered by the evidence.
    """
    acceptance, pricing = gather_evidence(request)
    trace, header = acceptance.trace, acceptance.trace.header
    scenario = Scenario(trace, pricing.draft, pricing.target)
    searched = search([scenario])
    chosen, runners_up = price_searched(searched, trace, pricing)
    is_traced = acceptance.evidence.level == "traced"
    plan_without_advice = Plan(
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
        workload=Workload(
            batch=request.batch,
            prompt_tokens=acceptance.prompt_tokens,
            output_tokens=acceptance.output_tokens,
            sampling=header.sampling,
        ),
        chosen=chosen,
        runners_up=runners_up,
        frontier=find_frontier(scenario, chosen.policy, [candidate.policy for candidate in runners_up]) if is_traced else (),
        batch_schedules=batch_schedules(trace, pricing, context_tokens=acceptance.context_tokens),
        overfitting=overfitting(scenario) if is_traced else None,
        memory=pricing.memory,
        evidence=(*pricing.evidence, acceptance.evidence),
        next_command="",
    )
    release = None if request.target is None else release_note(request.target, plan_without_advice.target)
    notes = (*(() if release is None else (release,)), *plan_notes(plan_without_advice))
    return replace(plan_without_advice, next_command=next_command(plan_without_advice), notes=notes)


def gather_evidence(request: PlanRequest) -> tuple[Acceptance, Pricing]:
    """How often the draft agrees with its target, and what their passes cost.

    Draft, target, acceptance and device are resolved once each, in this order.

    Raises:
        UserInputError: something in the request is unknown, contradictory, or not covered by the evidence.
    """
    draft = None if request.draft is None else resolve_draft_name(request.draft)
    is_stored_dtype = request.device.dtype is None
    target = None
    if request.target is not None:
        target = resolve_target(request.target, reads_format=is_stored_dtype or request.trace is None)
    acceptance = resolve_acceptance(request, target, draft)
    pair, context_tokens = acceptance.trace.header, acceptance.context_tokens
    stored = target.stored if target is not None and is_stored_dtype else None
    if not request.profiles and request.fit is None:
        device = resolve_device(request.device)
        weights = pair_weights(pair.draft, pair.target, device.dtype, stored)
        return acceptance, price_by_datasheet(pair, device, weights, context_tokens=context_tokens)
    if stored is not None:
        _LOG.warning("%s is stored as %s; profiles and fits price it with plain weights", pair.target.name, stored.text)
    pricing = price_by_profiles(
        pair, request.profiles, request.fit, request.device, sampling=pair.sampling, context_tokens=context_tokens
    )
    return acceptance, pricing
