"""Prices of a pair by what was measured: latency profiles of its models, and a fit of the law for one that was not run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibrate.inputs.load_acceptance import same_shape
from calibrate.inputs.requests import DeviceRequest
from calibrate.pricing.datasheet_pricing import Pair, Pricing, memory_needed, pair_weights, same_device, target_exits
from perfmodel.core.errors import BadFile, Mismatch, UnknownName, UserInputError
from perfmodel.core.files import Stored
from perfmodel.core.units import Tokens, format_bytes, format_frac
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.latency.latency_model import FittedLatency, LatencyModel, MeasuredLatency
from perfmodel.latency.lower_bound import check_profile
from perfmodel.models.geometry import ModelGeometry, check_degree
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.pauses import find_pauses, pauses_text
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import Evidence, EvidenceRole

_LOG = logging.getLogger(__name__)

Role = Literal["target", "draft"]


def price_by_profiles(
    pair: Pair,
    paths: Sequence[Path],
    request: DeviceRequest,
    *,
    sampling: Sampling,
    context_tokens: Tokens,
    fit_path: Path | None,
) -> Pricing:
    """Measured prices: one profile of the target and one of the draft, or a self-draft's one, from the same device.

    Args:
        sampling: what is to be priced.
        fit_path: a fit of the law on that device, which prices a model that was not profiled; None where all were.

    Raises:
        BelowLowerBound: a profile, or what a fit makes of a model, is faster than the device can be.
        Mismatch: a profile is of another model, weights or device than the trace, the other profile or the request.
        UserInputError: a profile is missing or given twice.
    """
    profiles = {path.name: PROFILE_FILE.read(path) for path in paths}
    for name, stored in profiles.items():
        check_profile(stored.record)
        warn_of_pauses(name, stored.record)
        _check_sampling(name, stored.record, sampling)
    fit = None if fit_path is None else _read_fit(fit_path)
    keys = {name: stored.record.device for name, stored in profiles.items()}
    if fit_path is not None and fit is not None:
        keys[fit_path.name] = fit.record.device
    device = _common_device(keys, request)
    roles = {name: _role(name, stored.record, pair) for name, stored in profiles.items()}
    target = _priced("target", pair, profiles, roles, fit, context_tokens)
    draft = _priced("draft", pair, profiles, roles, fit, context_tokens)
    _check_numbers(target.device, draft.device, device)
    fix = "Give profiles or a fit of as many devices, or leave both out"
    check_degree(pair.target, device.num_devices, noun="devices", fix=fix)
    check_degree(pair.draft.model, draft.device.num_devices, noun="devices", fix=fix)
    capacity_bytes = _capacity_bytes(device)
    weights = pair_weights(pair.draft, pair.target, device.dtype)
    memory = memory_needed(pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes)
    if capacity_bytes is not None and memory.total_bytes > capacity_bytes:
        raise UserInputError(
            f"target, draft and their caches take {format_bytes(memory.total_bytes)} in {device.dtype}, and {device.label} "
            f"holds {format_bytes(capacity_bytes)}: what was timed there prices no models that do not fit. Plan by datasheet, "
            "without --fit, on several devices."
        )
    return Pricing(
        draft=draft.latency,
        target=target.latency,
        device=device,
        draft_num_devices=draft.device.num_devices,
        weights=weights,
        memory=memory,
        evidence=(draft.evidence, target.evidence),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """What one model's passes cost, on what that rests, and where they ran."""

    latency: LatencyModel
    evidence: Evidence
    device: DeviceKey


def profiles_of(pair: Pair, paths: Sequence[Path]) -> tuple[Path, ...]:
    """Of profiles of many models, those of a pair's: of each model's, those timed beside the other, if there are any."""
    found: dict[Role, dict[Path, LatencyProfile]] = {"target": {}, "draft": {}}
    for path in paths:
        profile = PROFILE_FILE.read(path).record
        try:
            found[_role(path.name, profile, pair)][path] = profile
        except Mismatch:
            continue
    partners = {"target": pair.draft.model.name, "draft": pair.target.name}
    chosen: list[Path] = []
    for role, profiles in found.items():
        beside = [path for path, profile in profiles.items() if profile.beside == partners[role]]
        chosen += beside or profiles
    return tuple(chosen)


def _priced(
    role: Role,
    pair: Pair,
    profiles: dict[str, Stored[LatencyProfile]],
    roles: dict[str, Role],
    fit: Stored[LatencyFit] | None,
    context_tokens: Tokens,
) -> _Priced:
    """The latency model of a role and what it rests on: its own profile, or a fit where there is none."""
    model, _, exit_layers = _known(pair)[role]
    wanted: Role = "target" if pair.draft.kind == "self" else role
    names = [name for name, found in roles.items() if found == wanted]
    evidence_role: EvidenceRole = "target latency" if role == "target" else "draft latency"
    if fit is not None and not names:
        priced = FittedLatency(fit.record, model, exit_layers, context_tokens=context_tokens)
        evidence = Evidence(role=evidence_role, level=priced.level, description=_fit_text(priced), sha256=fit.sha256)
        return _Priced(latency=priced, evidence=evidence, device=fit.record.device)
    stored = profiles[_only(names, f"{role} {model.name}")]
    _warn_unless_beside(stored.record, pair)
    text = _profile_text(stored.record)
    evidence = Evidence(role=evidence_role, level="measured", description=text, sha256=stored.sha256)
    latency = MeasuredLatency(stored.record)
    _warn_unless_steady(latency)
    return _Priced(latency=latency, evidence=evidence, device=stored.record.device)


def _known(pair: Pair) -> dict[Role, tuple[ModelGeometry, str | None, tuple[int, ...]]]:
    """Shapes, weights and cuts of the traced models by role; a self-draft is its target."""
    return {
        "target": (pair.target, pair.target_sha256, target_exits(pair.draft)),
        "draft": (pair.draft.model, pair.draft_sha256, pair.draft.exit_layers),
    }


def _read_fit(path: Path) -> Stored[LatencyFit]:
    fit = FIT_FILE.read(path)
    if not fit.record.domain.max_cached_tokens:
        problem = "fitted to kernels without a cache, which leaves attention and the host unpriced"
        raise BadFile(path, problem, "Fit whole passes: s2d-profile law, then s2d-plan fit")
    return fit


def _fit_text(priced: FittedLatency) -> str:
    fit = priced.fit
    beyond = "; beyond it: " + ", ".join(one.label for one in priced.extrapolations) if priced.extrapolations else ""
    passes = f"law of {fit.num_samples} passes of {len(fit.models)} models"
    return f"{passes}, ± {format_frac(priced.error_frac)} (one sigma){beyond}"


def _profile_text(profile: LatencyProfile) -> str:
    beside = "alone" if profile.beside is None else f"beside {profile.beside}"
    return f"{len(profile.samples)} passes of {profile.model.name}, timed {beside}"


def _capacity_bytes(device: DeviceKey) -> int | None:
    """Memory of the devices; None when they are in no table."""
    try:
        return device.num_devices * find_hardware(device.device).memory_bytes
    except UnknownName:
        return None


def _role(name: str, profile: LatencyProfile, pair: Pair) -> Role:
    """Whether a profile is the target's or the draft's, by shape and, where both are known, by weights.

    Raises:
        Mismatch: it is neither's.
    """
    fix = "Give profiles of the models that were traced"
    for role, (model, sha256, exit_layers) in _known(pair).items():
        if not same_shape(profile.model, model) or profile.exit_layers != exit_layers:
            continue
        if sha256 is not None and profile.model_sha256 != sha256:
            made_for, given = f"{role} weights {profile.model_sha256[:12]}", f"the traced {sha256[:12]}"
            raise Mismatch(f"profile {name!r}", made_for=made_for, given=given, fix=fix)
        return role
    raise Mismatch(
        f"profile {name!r}",
        made_for=_cut_text(profile.model, profile.exit_layers),
        given=" or ".join(f"{role} {_cut_text(model, exits)}" for role, (model, _, exits) in _known(pair).items()),
        fix=f"{fix}, or fit the law to profiles of others and give it: s2d-plan fit, then --fit FILE",
    )


def _cut_text(model: ModelGeometry, exit_layers: tuple[int, ...]) -> str:
    """`ref-draft with exits 1/2/4/6`, and with its head where that is reduced."""
    head = f", {model.head_label}" if model.has_reduced_head else ""
    return f"{model.name} with exits {'/'.join(map(str, exit_layers))}{head}" if exit_layers else model.name


def _only(names: list[str], label: str) -> str:
    """The one profile of a role."""
    if len(names) != 1:
        found = "none was given" if not names else f"{len(names)} were given ({', '.join(names)})"
        raise UserInputError(
            f"expected one latency profile of the {label}, {found}. Give --profile once for the target and once for the "
            "draft (s2d-profile latency writes both), or a fit that prices it: --fit FILE (s2d-plan fit)."
        )
    return names[0]


def _common_device(keys: dict[str, DeviceKey], request: DeviceRequest) -> DeviceKey:
    """The device of all profiles and fits, by file, which is the one asked for; a draft may be whole on one of several."""
    (first_name, key), *others = sorted(keys.items(), key=lambda item: -item[1].num_devices)
    for name, other in others:
        if replace(other, num_devices=key.num_devices) != key:
            made_for, given = other.label, f"{key.label} as {first_name!r}"
            fix = "Seconds of two devices cannot be added: profile both models on the same device, dtype and engine"
            raise Mismatch(repr(name), made_for=made_for, given=given, fix=fix)
    asked: dict[str, tuple[object, object]] = {
        "--num-devices": (request.num_devices, key.num_devices),
        "--dtype": (request.dtype, key.dtype),
        "--engine": (request.engine, key.engine),
    }
    if request.device is not None and not same_device(request.device, key.device):
        asked["--device"] = (request.device, key.device)
    for flag, (wanted, profiled) in asked.items():
        if wanted is not None and wanted != profiled:
            fix = f"Leave {flag} out, or profile there"
            raise Mismatch(repr(first_name), made_for=f"{flag} {profiled}", given=f"{flag} {wanted}", fix=fix)
    return key


def _check_numbers(target: DeviceKey, draft: DeviceKey, device: DeviceKey) -> None:
    """Refuse a target that was not on all devices, and a draft that was on some of them: neither is how they run together."""
    fix = "Profile both models together: s2d-profile, with as many processes as devices"
    if target != device:
        raise Mismatch("the target's latency", made_for=target.label, given=device.label, fix=fix)
    if draft.num_devices not in (1, device.num_devices):
        given = f"{device.label}, all of them or one"
        raise Mismatch("the draft's latency", made_for=draft.label, given=given, fix=fix)


def _check_sampling(name: str, profile: LatencyProfile, sampling: Sampling) -> None:
    """Refuse a profile of another rule, and say so of one whose logits were processed otherwise, as the seconds may tell.

    Raises:
        Mismatch: tokens were accepted by another rule.
    """
    if profile.rule != sampling.rule:
        fix = "Exit checks and verifies cost otherwise there: profile with the sampling that is planned for"
        made_for, given = f"{profile.rule} decoding", f"{sampling.rule} decoding"
        raise Mismatch(f"profile {name!r}", made_for=made_for, given=given, fix=fix)
    if profile.processing is not None and profile.processing != sampling.processing:
        done, planned = (", ".join(one) or "no penalty or cut" for one in (profile.processing, sampling.processing))
        _LOG.warning(
            "profile %r was taken with %s, and %s is planned: exit checks and verifies may take other times",
            name,
            done,
            planned,
        )


def warn_of_pauses(name: str, profile: LatencyProfile) -> None:
    """Name the passes that are left out of the prices because the process stood still."""
    if (paused := pauses_text(find_pauses(profile.samples).values())) is not None:
        _LOG.warning("profile %r: %s", name, paused)


def _warn_unless_steady(latency: MeasuredLatency) -> None:
    """Say so when a profile scatters so much that its error was cut."""
    if latency.error_frac >= WIDEST_ERROR_FRAC:
        _LOG.warning(
            "the passes of %s scatter too much for a prediction (one sigma is cut at %s): profile again on a quiet machine",
            latency.profile.model.name,
            format_frac(WIDEST_ERROR_FRAC),
        )


def _warn_unless_beside(profile: LatencyProfile, pair: Pair) -> None:
    """Say so when a model was not timed beside its partner: caches shared with another model change the seconds."""
    names = {pair.target.name, pair.draft.model.name}
    if pair.draft.kind == "separate" and profile.beside not in names:
        where = "alone" if profile.beside is None else f"beside {profile.beside}"
        _LOG.warning("%s was timed %s, not beside its partner: its seconds may differ there", profile.model.name, where)
