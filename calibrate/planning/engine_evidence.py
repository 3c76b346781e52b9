"""Evidence of a plan for an engine: which engine, whether it samples as the trace does, and what running it has measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from calibrate.engines.agreement import thin_agreement
from calibrate.inputs.acceptance import Acceptance
from calibrate.inputs.device import Device, resolve_device
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.pricing.pricing import Pricing
from calibrate.pricing.unprofiled import UnprofiledLatency
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import Stored, file_schema
from perfmodel.core.units import Frac, format_frac
from perfmodel.engines.engine import Engine, SamplingRule
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile
from perfmodel.engines.find_engine import engine_weights, find_engine
from perfmodel.engines.known_engines import ENGINES
from perfmodel.engines.weight_words import find_dtype
from perfmodel.hardware.hardware import Hardware
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.policies.sampling import AcceptanceRule

DEFAULT_ENGINE = "s2d"
ALL_ENGINES = "all"

_TRACED_RULES: dict[SamplingRule, AcceptanceRule] = {"ratio": "ratio"}
"""The rule of a trace that predicts how an engine accepts at a temperature above 0."""
_RULE_TEXTS: dict[SamplingRule, str] = {
    "ratio": "accepts by the ratio test",
    "target-sample-match": "accepts a token that equals the target's own sample",
    "target-probability": "accepts with the target's probability of the draft's best token",
    "unsound": "does not keep the target's distribution",
    "none": "refuses a draft",
}


def requested_engine(request: PlanRequest) -> Engine:
    """The engine of a request: the requested one, else that of its engine profile, else the bundled runtime.

    Raises:
        UnknownName: there is no such engine.
        UserInputError: no engine is named, and the profiles are of several; or all engines are, where one is planned for.
    """
    if request.engine == ALL_ENGINES:
        raise UserInputError(
            "--engine all: expected one engine here. Give one of s2d-engines list, or compare them for one target with "
            "s2d-plan --engine all."
        )
    if request.engine is not None:
        return find_engine(request.engine)
    names = dict.fromkeys(stored.record.setting.engine for stored in engine_profiles(request.profiles).values())
    if len(names) > 1:
        raise UserInputError(
            f"the profiles are of {' and '.join(names)}: expected one engine. Give --engine NAME with its own profile, or "
            "--engine all with all of them."
        )
    return find_engine(next(iter(names), DEFAULT_ENGINE))


def check_bundled(request: PlanRequest, what: str) -> None:
    """Refuse another engine than the bundled runtime.

    Args:
        request: for one target.
        what: the flag that only the bundled runtime answers: `--by-category`.

    Raises:
        UserInputError: another engine is requested or profiled.
    """
    engine = requested_engine(request)
    if not engine.runs_exits:
        raise UserInputError(
            f"{what} compares policies of several exits, expected the bundled runtime, not {engine.title}. Leave --engine and "
            "its profile out, or plan for each part alone."
        )


def engine_profiles(paths: Iterable[Path]) -> dict[Path, Stored[EngineProfile]]:
    """The engine profiles among some profiles, by their files.

    Raises:
        BadFile: a path does not hold a file of this project.
    """
    return {path: ENGINE_PROFILE_FILE.read(path) for path in paths if file_schema(path) == ENGINE_PROFILE_FILE.schema}


def check_profiles(engine: Engine, request: PlanRequest, profiles: dict[Path, Stored[EngineProfile]]) -> None:
    """Refuse profiles of the bundled runtime's passes for another engine, and both kinds together.

    Raises:
        Mismatch: the passes of one program cannot price another.
        UserInputError: both kinds of profiles are given, or a fit beside an engine profile.
    """
    others = [str(path) for path in request.profiles if path not in profiles]
    if profiles and (others or request.fit is not None):
        other = repr(others[0]) if others else "--fit"
        raise UserInputError(
            f"{str(next(iter(profiles)))!r} holds an engine's own seconds and prices both models: expected no other latency "
            f"beside it. Leave {other} out."
        )
    if others and not engine.runs_exits:
        fix = f"Profile the engine: s2d-profile engine --engine {engine.name}. Or leave --profile out to price by a datasheet"
        raise Mismatch(
            f"profile {others[0]!r}", made_for="passes of the bundled runtime", given=f"engine {engine.name}", fix=fix
        )


def check_acceptance(engine: Engine, acceptance: Acceptance) -> None:
    """Check that the trace predicts how an engine accepts tokens of its draft.

    Raises:
        UserInputError: the draft is the target's own layers, or the trace was sampled by another rule.
    """
    header = acceptance.trace.header
    if engine.runs_exits:
        return
    if header.draft_kind == "self":
        raise UserInputError(
            f"the draft is the first layers of {header.target.name} itself: {engine.title} serves a draft as a model of its "
            "own. Write the layers as one (s2d-run --export-exit), and record a trace with it: s2d-profile acceptance --draft "
            "FOLDER."
        )
    rule = header.sampling.rule
    if rule not in ("greedy", _TRACED_RULES.get(engine.sampling_rule)):
        expected = _TRACED_RULES.get(engine.sampling_rule)
        traces = "a greedy trace" if expected is None else f"a trace by {expected} or greedy decoding"
        raise UserInputError(
            f"the trace is of {header.sampling.label}, and {engine.title} {_RULE_TEXTS[engine.sampling_rule]} at a temperature "
            f"above 0: expected {traces}. Plan for greedy decoding: record a trace with s2d-profile acceptance --rule greedy."
        )


def resolve_engine_device(request: DeviceRequest, engine: Engine) -> Device:
    """The device of a request, with kernels launched as the engine does where nothing else is requested.

    Raises:
        UserInputError: the engine does not run on such a device, or does not load such weights.
    """
    device = resolve_device(request)
    if engine.runs_exits:
        return device
    kind = "cpu" if device.hardware.num_threads is not None else "cuda"
    if kind not in engine.devices:
        kinds = {"cpu": "a CPU (--device cpu)", "cuda": "a GPU", "metal": "an Apple GPU, which no device here is"}
        expected = " or ".join(kinds[known] for known in engine.devices)
        raise UserInputError(
            f"{engine.title} does not run on {device.hardware.name}: expected {expected}. Give another --device or --engine."
        )
    if request.dtype is not None:
        engine_weights(engine, request.dtype)
    else:
        device = replace(device, dtype=_loaded_dtype(device, engine))
    if request.mode is None and _can_launch(device.hardware, engine):
        return replace(device, mode=engine.mode)
    return device


def draft_on_all_devices(device: Device, pricing: Pricing, engine: Engine) -> Device | None:
    """The device with the draft split as the target is; None if the engine allows what was priced, or if it was requested."""
    number = pricing.device.num_devices
    is_required = any(constraint.check == "draft-parallelism" for constraint in engine.constraints)
    if not is_required or device.draft_num_devices is not None or pricing.draft_num_devices == number:
        return None
    return replace(device, num_devices=number, draft_num_devices=number)


def with_engine_error(pricing: Pricing, engine: Engine) -> Pricing:
    """Prices by a datasheet, with the error of an engine that was not run; unchanged for the bundled runtime."""
    if engine.runs_exits:
        return pricing
    draft, target = UnprofiledLatency(pricing.draft), UnprofiledLatency(pricing.target)
    source = f"not run in {engine.title}, ± {format_frac(target.error_frac)} (one sigma)"
    evidence = tuple(
        replace(part, description=f"{source}; {part.description}") if part.role.endswith(" latency") else part
        for part in pricing.evidence
    )
    return replace(pricing, draft=draft, target=target, evidence=evidence, round_shape=engine.round_shape)


def _loaded_dtype(device: Device, engine: Engine) -> Dtype:
    """The device's default number type, or one of as many bytes if the engine does not load that."""
    loaded = [dtype for dtype in map(find_dtype, engine.weights) if dtype is not None]
    if device.dtype in loaded:
        return device.dtype
    size = DTYPE_BYTES.get(device.dtype)
    return next((dtype for dtype in loaded if DTYPE_BYTES.get(dtype) == size), loaded[0])


def _can_launch(hardware: Hardware, engine: Engine) -> bool:
    try:
        hardware.launch_costs(engine.mode)
    except UserInputError:
        return False
    return True


def with_kept_agreement(acceptance: Acceptance, kept_frac: Frac | None, engine: Engine) -> Acceptance:
    """The acceptance as the engine had it on the profile's prompts.

    Args:
        acceptance: of the trace.
        kept_frac: share of the trace's agreement that is left; None if the profile and the trace share no prompt.
        engine: that was profiled.
    """
    if kept_frac is None:
        return acceptance
    text = f"{format_frac(kept_frac)} of the agreement left" if kept_frac < 1 else "rounds as replayed"
    evidence = replace(acceptance.evidence, description=f"{acceptance.evidence.description}; in {engine.title} {text}")
    return replace(acceptance, trace=thin_agreement(acceptance.trace, kept_frac), evidence=evidence)


def all_engines() -> tuple[Engine, ...]:
    """Every engine of the table."""
    return tuple(ENGINES.values())
