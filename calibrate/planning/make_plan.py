"""Make a plan: resolve the evidence, price passes, search for the fastest policy."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.engines.price_engine import price_by_engine_profile, select_engine_profile
from calibrate.engines.search_engine import (
    TIE_FRAC,
    draft_lengths_of,
    engine_overfitting,
    engine_scenario,
    search_engine,
)
from calibrate.inputs.acceptance import Acceptance, resolve_acceptance
from calibrate.inputs.draft import resolve_draft_name
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.inputs.target import resolve_target
from calibrate.planning.batch_schedule import ScheduleLimits, batch_schedules
from calibrate.planning.candidates import levelled_evidence, price_engine_searched, price_searched
from calibrate.planning.engine_evidence import (
    check_acceptance,
    check_profiles,
    draft_on_all_devices,
    engine_profiles,
    requested_engine,
    resolve_engine_device,
    with_engine_error,
    with_kept_agreement,
)
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
from perfmodel.core.files import Stored
from perfmodel.core.units import Tokens
from perfmodel.engines.engine import Engine
from perfmodel.engines.engine_profile import EngineProfile
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import release_note
from perfmodel.passes.device_key import LaunchMode
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.results.plan import BatchSchedule, Candidate, Evidence, Overfitting, Plan, Workload

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
    engine: str | None = None,
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
        profiles: latency profiles by `s2d-profile`: one of the target and one of the draft; or one engine profile by
            `s2d-profile engine`. Empty prices by datasheet.
        fit: a fit by `s2d-plan fit`, which prices a model that has no profile.
        prompts_split: `calibration` or `evaluation` plans on one half of the trace's prompts; `all` on all of them.
        category: plan for the prompts of this category only.
        draft_vocab: vocabulary of an assumed reduced LM head of the draft, in tokens. None keeps the head.
        engine: the engine that is to execute the plan, such as `llama.cpp` or `vllm`; only what it can execute is planned.
            None takes that of an engine profile, else the bundled runtime.

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
            engine=engine,
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
    engine = requested_engine(request)
    acceptance, pricing = gather_evidence(request)
    header = acceptance.trace.header
    is_free = engine.runs_exits and pricing.engine_setting is None
    decision = _decide(acceptance, pricing) if is_free else _decide_for_engine(acceptance, pricing, engine)
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
        chosen=decision.chosen,
        runners_up=decision.runners_up,
        frontier=decision.frontier,
        batch_schedules=decision.batch_schedules,
        overfitting=decision.overfitting,
        memory=pricing.memory,
        evidence=(*decision.latency_evidence, acceptance.evidence),
        next_command="",
        engine=engine.name,
        engine_setting=pricing.engine_setting,
    )
    release = None if request.target is None else release_note(request.target, plan_without_advice.target)
    notes = (*(() if release is None else (release,)), *plan_notes(plan_without_advice))
    return replace(plan_without_advice, next_command=next_command(plan_without_advice), notes=notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decision:
    """What a search has chosen, and what belongs to it."""

    chosen: Candidate
    runners_up: tuple[Candidate, ...]
    frontier: tuple[FrontierPoint, ...]
    batch_schedules: tuple[BatchSchedule, ...]
    overfitting: Overfitting | None
    latency_evidence: tuple[Evidence, ...]


def _decide(acceptance: Acceptance, pricing: Pricing) -> _Decision:
    """The fastest policy of the bundled runtime, which executes all of them."""
    trace = acceptance.trace
    scenario = Scenario(trace, pricing.draft, pricing.target)
    chosen, runners_up = price_searched(search([scenario]), trace, pricing)
    is_traced = acceptance.evidence.level == "traced"
    return _Decision(
        chosen=chosen,
        runners_up=runners_up,
        frontier=find_frontier(scenario, chosen.policy, [candidate.policy for candidate in runners_up]) if is_traced else (),
        batch_schedules=batch_schedules(trace, pricing, context_tokens=acceptance.context_tokens),
        overfitting=overfitting(scenario) if is_traced else None,
        latency_evidence=pricing.evidence,
    )


def _decide_for_engine(acceptance: Acceptance, pricing: Pricing, engine: Engine) -> _Decision:
    """The fastest policy that an engine executes."""
    trace = acceptance.trace
    scenario = engine_scenario(trace, pricing)
    chosen, runners_up = price_engine_searched(search_engine(scenario, engine, pricing), trace, pricing)
    exits = () if chosen.policy is None or not engine.has_tokens_by_batch else chosen.policy.exits
    limits = ScheduleLimits(exits=exits, lengths=draft_lengths_of(engine), max_batch=engine.max_batch, tie_frac=TIE_FRAC)
    return _Decision(
        chosen=chosen,
        runners_up=runners_up,
        frontier=(),
        batch_schedules=batch_schedules(trace, pricing, context_tokens=acceptance.context_tokens, limits=limits)
        if exits
        else (),
        overfitting=engine_overfitting(scenario, engine, pricing) if acceptance.evidence.level == "traced" else None,
        latency_evidence=levelled_evidence(pricing, chosen.policy),
    )


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
    engine, profiles = requested_engine(request), engine_profiles(request.profiles)
    check_acceptance(engine, acceptance)
    check_profiles(engine, request, profiles)
    if (stored_profile := select_engine_profile(engine, profiles)) is not None:
        return _price_by_engine(acceptance, stored_profile, engine, request.device)
    pair, context_tokens = acceptance.trace.header, acceptance.context_tokens
    stored = target.stored if target is not None and is_stored_dtype else None
    if not request.profiles and request.fit is None:
        device = resolve_engine_device(request.device, engine)
        weights = pair_weights(pair.draft, pair.target, device.dtype, stored)
        pricing = price_by_datasheet(pair, device, weights, context_tokens=context_tokens)
        if (shared := draft_on_all_devices(device, pricing, engine)) is not None:
            pricing = price_by_datasheet(pair, shared, weights, context_tokens=context_tokens)
        return acceptance, with_engine_error(pricing, engine)
    if stored is not None:
        _LOG.warning("%s is stored as %s; profiles and fits price it with plain weights", pair.target.name, stored.text)
    pricing = price_by_profiles(
        pair, request.profiles, request.fit, request.device, sampling=pair.sampling, context_tokens=context_tokens
    )
    return acceptance, with_engine_error(pricing, engine)


def _price_by_engine(
    acceptance: Acceptance, profile: Stored[EngineProfile], engine: Engine, request: DeviceRequest
) -> tuple[Acceptance, Pricing]:
    """Prices by an engine's own profile, and the acceptance that it had there."""
    pricing, fit = price_by_engine_profile(acceptance.trace, profile, engine, request, context_tokens=acceptance.context_tokens)
    return with_kept_agreement(acceptance, fit.agreement_kept_frac, engine), pricing
