"""Price a pair by the profile of an engine."""

from __future__ import annotations

import logging
from pathlib import Path

from calibrate.engines.fit_engine import fit_engine
from calibrate.inputs.requests import DeviceRequest
from calibrate.pricing.measured import capacity_bytes_of
from calibrate.pricing.pricing import Pair, Pricing, memory_needed, pair_weights
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import Stored
from perfmodel.core.units import Tokens, format_frac
from perfmodel.engines.engine import Engine
from perfmodel.engines.engine_fit import EngineFit
from perfmodel.engines.engine_latency import engine_latencies
from perfmodel.engines.engine_profile import EngineProfile
from perfmodel.engines.weight_words import weights_dtype
from perfmodel.hardware.find_device import same_device
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.models.geometry import same_shape
from perfmodel.passes.device_key import DeviceKey, LaunchMode
from perfmodel.policies.policy import Policy
from perfmodel.results.plan import Evidence, EvidenceRole

_LOG = logging.getLogger(__name__)
NOISY_FRAC = 0.05
"""Plain decoding that differs from itself by more makes a profile worth repeating."""


def price_by_engine_profile(
    trace: Trace, stored: Stored[EngineProfile], engine: Engine, request: DeviceRequest, *, context_tokens: Tokens
) -> tuple[Pricing, EngineFit]:
    """Prices of a pair in an engine, and the fit behind them.

    Args:
        trace: acceptance, whose header names the pair.
        stored: the engine's profile.
        engine: its row in the table.
        request: its settings must agree with the profile.
        context_tokens: cached at the end of the output.

    Raises:
        Mismatch: the profile is of other models, or the request is for another device, dtype or mode.
        UserInputError: the profile holds no speculative run, or its rounds are unknown.
    """
    profile, pair = stored.record, trace.header
    check_models(profile, pair)
    device = engine_device(profile, engine)
    _check_request(request, device)
    fit = fit_engine(profile, trace, engine)
    if fit.noise_frac > NOISY_FRAC:
        _LOG.warning(
            "plain decoding in %s differs by %s from one repeat to the next: profile again on a quiet machine",
            engine.title,
            format_frac(fit.noise_frac),
        )

    def for_policy(policy: Policy | None) -> tuple[LatencyModel, LatencyModel]:
        exit_layer, draft_tokens = (None, 0) if policy is None else (policy.exits[-1], policy.tokens)
        return engine_latencies(fit, exit_layer, draft_tokens, context_tokens=context_tokens)

    draft, target = for_policy(None)
    weights, capacity_bytes = pair_weights(pair.draft, pair.target, device.dtype), capacity_bytes_of(device)
    roles: tuple[EvidenceRole, ...] = ("draft latency", "target latency")
    pricing = Pricing(
        draft=draft,
        target=target,
        device=device,
        draft_num_devices=device.num_devices,
        weights=weights,
        memory=memory_needed(pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes),
        evidence=tuple(
            Evidence(role=role, level=draft.level, description=_description(fit), sha256=stored.sha256) for role in roles
        ),
        round_shape=engine.round_shape,
        for_policy=for_policy,
        engine_setting=profile.setting,
    )
    return pricing, fit


def _description(fit: EngineFit) -> str:
    """What was run, and how far the engine's own timers differ from the fit."""
    timers = fit.timers_error_frac
    return fit.label if timers is None else f"{fit.label}; its own draft timers differ by {format_frac(timers)} in the median"


def check_models(profile: EngineProfile, pair: Pair) -> None:
    """Check that an engine ran the models of a pair.

    Raises:
        Mismatch: it ran others.
    """
    what, fix = f"the profile of {profile.setting.label}", "Profile the models that were traced: s2d-profile engine"
    if not same_shape(profile.target, pair.target):
        raise Mismatch(what, made_for=f"target {profile.target.name}", given=pair.target.name, fix=fix)
    if profile.draft.exit_layers != pair.draft.exit_layers or not same_shape(profile.draft.model, pair.draft.model):
        made_for, given = (
            f"draft {draft.model.name} with exits {'/'.join(map(str, draft.exit_layers))}"
            for draft in (profile.draft, pair.draft)
        )
        raise Mismatch(what, made_for=made_for, given=given, fix=fix)
    hashes = (
        ("target", profile.target_sha256, pair.target_sha256),
        ("draft", profile.draft_sha256, pair.draft_sha256),
    )
    for role, profiled, traced in hashes:
        if traced is not None and profiled != traced:
            raise Mismatch(what, made_for=f"{role} weights {profiled[:12]}", given=f"the traced {traced[:12]}", fix=fix)


def engine_device(profile: EngineProfile, engine: Engine) -> DeviceKey:
    """Where a profile was measured."""
    setting = profile.setting
    mode: LaunchMode = "eager" if setting.num_threads is not None else engine.mode
    return DeviceKey(
        device=setting.device,
        num_devices=setting.num_devices,
        num_threads=setting.num_threads,
        dtype=weights_dtype(setting.weights),
        mode=mode,
    )


def _check_request(request: DeviceRequest, device: DeviceKey) -> None:
    """Refuse flags that contradict the profile.

    Raises:
        Mismatch: names the flag.
    """
    flags: dict[str, tuple[object, object]] = {
        "--num-devices": (request.num_devices, device.num_devices),
        "--dtype": (request.dtype, device.dtype),
        "--mode": (request.mode, device.mode),
    }
    if request.device is not None and not same_device(request.device, device.device):
        flags["--device"] = (request.device, device.device)
    for flag, (requested, profiled) in flags.items():
        if requested is not None and requested != profiled:
            fix = f"Leave {flag} out, or profile the engine there"
            raise Mismatch("the engine profile", made_for=f"{flag} {profiled}", given=f"{flag} {requested}", fix=fix)


def select_engine_profile(engine: Engine, profiles: dict[Path, Stored[EngineProfile]]) -> Stored[EngineProfile] | None:
    """The only profile of an engine among several files; None if there is none.

    Args:
        engine: to plan for.
        profiles: by their files.

    Raises:
        Mismatch: all profiles are of other engines.
        UserInputError: several are of this engine.
    """
    matches = {str(path): stored for path, stored in profiles.items() if stored.record.setting.engine == engine.name}
    if len(matches) > 1:
        raise UserInputError(
            f"profiles {' and '.join(map(repr, matches))} are of {engine.title}: expected one. Give one of them, or compare "
            "them with --engine all."
        )
    if profiles and not matches:
        path, stored = next(iter(profiles.items()))
        other = stored.record.setting.engine
        fix = f"Leave --engine out, or profile that engine: s2d-profile engine --engine {engine.name}"
        raise Mismatch(f"profile {str(path)!r}", made_for=f"engine {other}", given=f"engine {engine.name}", fix=fix)
    return next(iter(matches.values()), None)
