"""Price a pair by latency profiles, or by a fit of the latency law."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibrate.inputs.requests import DeviceRequest
from calibrate.pricing.pricing import Pair, Pricing, memory_needed, pair_weights, target_exits
from perfmodel.core.errors import BadFile, Mismatch, UnknownName, UserInputError
from perfmodel.core.files import Stored
from perfmodel.core.units import Tokens, format_bytes, format_frac
from perfmodel.hardware.find_device import same_device
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.latency.latency_model import FittedLatency, LatencyModel, MeasuredLatency
from perfmodel.latency.lower_bound import check_profile
from perfmodel.models.geometry import ModelGeometry, check_degree, same_shape
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_law import FIT_FILE, LatencyFit
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.pauses import find_pauses, pauses_text
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import Evidence, EvidenceRole

_LOG = logging.getLogger(__name__)

Role = Literal["target", "draft"]
_EVIDENCE_ROLES: Mapping[Role, EvidenceRole] = {"target": "target latency", "draft": "draft latency"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _TracedModel:
    """One model of a pair, and the layers that cut it into segments."""

    geometry: ModelGeometry
    sha256: str | None
    exit_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Price:
    """Latency of one model, the evidence for it, and the device."""

    latency: LatencyModel
    evidence: Evidence
    device: DeviceKey


def price_by_profiles(
    pair: Pair,
    profile_paths: Sequence[Path],
    fit_path: Path | None,
    request: DeviceRequest,
    *,
    sampling: Sampling,
    context_tokens: Tokens,
) -> Pricing:
    """Measured prices: one profile of the target and one of the draft, from the same device. A self-draft needs one only.

    Args:
        pair: the models.
        profile_paths: of both models.
        fit_path: a fit of the latency law on that device; prices a model without a profile.
        request: its settings must agree with the measurement.
        sampling: of the plan.
        context_tokens: cached at the end of the output.

    Raises:
        BelowLowerBound: a profile, or a price by the fit, is faster than the device can be.
        Mismatch: a profile's model, weights or device differ from the trace, the other profile or the request.
        UserInputError: a profile is missing or given twice, or the models do not fit in the device's memory.
    """
    profiles = {path.name: PROFILE_FILE.read(path) for path in profile_paths}
    for name, stored in profiles.items():
        check_profile(stored.record)
        warn_of_pauses(name, stored.record)
        _check_sampling(name, stored.record, sampling)
    fit = None if fit_path is None else _read_fit(fit_path)
    keys = {name: stored.record.device for name, stored in profiles.items()}
    if fit_path is not None and fit is not None:
        keys[fit_path.name] = fit.record.device
    device = _common_device(keys, request)
    by_role: dict[Role, dict[str, Stored[LatencyProfile]]] = {"target": {}, "draft": {}}
    for name, stored in profiles.items():
        by_role[_profile_role(name, stored.record, pair)][name] = stored
    draft_role: Role = "target" if pair.draft.kind == "self" else "draft"
    target = _price("target", pair, by_role["target"], fit, context_tokens)
    draft = _price("draft", pair, by_role[draft_role], fit, context_tokens)
    _check_num_devices(target.device, draft.device, device)
    fix = "Give profiles or a fit of as many devices, or leave both out"
    check_degree(pair.target, device.num_devices, noun="devices", fix=fix)
    check_degree(pair.draft.model, draft.device.num_devices, noun="devices", fix=fix)
    weights, capacity_bytes = pair_weights(pair.draft, pair.target, device.dtype), capacity_bytes_of(device)
    memory = memory_needed(pair.draft, pair.target, weights, context_tokens=context_tokens, capacity_bytes=capacity_bytes)
    if capacity_bytes is not None and memory.total_bytes > capacity_bytes:
        raise UserInputError(
            f"target, draft and their caches take {format_bytes(memory.total_bytes)} in {device.dtype}, and {device.label} "
            f"holds {format_bytes(capacity_bytes)}: measurements there cannot price models that do not fit. Plan by datasheet, "
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


def select_profiles(pair: Pair, paths: Sequence[Path]) -> tuple[Path, ...]:
    """The profiles of a pair among those of many models. A model with several keeps those taken beside its partner, if any."""
    by_role: dict[Role, dict[Path, LatencyProfile]] = {"target": {}, "draft": {}}
    for path in paths:
        profile = PROFILE_FILE.read(path).record
        try:
            by_role[_profile_role(path.name, profile, pair)][path] = profile
        except Mismatch:
            continue
    partners = {"target": pair.draft.model.name, "draft": pair.target.name}
    selected: list[Path] = []
    for role, profiles in by_role.items():
        beside_partner = [path for path, profile in profiles.items() if profile.beside == partners[role]]
        selected += beside_partner or profiles
    return tuple(selected)


def _price(
    role: Role,
    pair: Pair,
    profiles: Mapping[str, Stored[LatencyProfile]],
    fit: Stored[LatencyFit] | None,
    context_tokens: Tokens,
) -> _Price:
    """One model's latency: by its profile, or by the fit if it has none."""
    model = _models(pair)[role]
    if fit is not None and not profiles:
        fitted = FittedLatency(fit.record, model.geometry, model.exit_layers, context_tokens=context_tokens)
        evidence = Evidence(role=_EVIDENCE_ROLES[role], level=fitted.level, description=_fit_text(fitted), sha256=fit.sha256)
        return _Price(latency=fitted, evidence=evidence, device=fit.record.device)
    if len(profiles) != 1:
        given = "none was given" if not profiles else f"{len(profiles)} were given ({', '.join(profiles)})"
        raise UserInputError(
            f"expected one latency profile of the {role} {model.geometry.name}, {given}. Give --profile once for the target "
            "and once for the draft (s2d-profile latency writes both), or a fit that prices it: --fit FILE (s2d-plan fit)."
        )
    [stored] = profiles.values()
    profile, measured = stored.record, MeasuredLatency(stored.record)
    _warn_unless_beside(profile, pair)
    _warn_of_scatter(measured)
    description = f"{len(profile.samples)} passes of {profile.model.name}, timed {_beside_text(profile)}"
    evidence = Evidence(role=_EVIDENCE_ROLES[role], level="measured", description=description, sha256=stored.sha256)
    return _Price(latency=measured, evidence=evidence, device=profile.device)


def _models(pair: Pair) -> dict[Role, _TracedModel]:
    """Both models of a pair. A self-draft has its target's shapes, weights and cuts."""
    return {
        "target": _TracedModel(geometry=pair.target, sha256=pair.target_sha256, exit_layers=target_exits(pair.draft)),
        "draft": _TracedModel(geometry=pair.draft.model, sha256=pair.draft_sha256, exit_layers=pair.draft.exit_layers),
    }


def _profile_role(name: str, profile: LatencyProfile, pair: Pair) -> Role:
    """The role of a profile's model in a pair, by shape and, if both hashes are known, by weights.

    Raises:
        Mismatch: the profile belongs to neither model.
    """
    fix = "Give profiles of the models that were traced"
    for role, model in _models(pair).items():
        if not same_shape(profile.model, model.geometry) or profile.exit_layers != model.exit_layers:
            continue
        if model.sha256 is not None and profile.model_sha256 != model.sha256:
            made_for, given = f"{role} weights {profile.model_sha256[:12]}", f"the traced {model.sha256[:12]}"
            raise Mismatch(f"profile {name!r}", made_for=made_for, given=given, fix=fix)
        return role
    raise Mismatch(
        f"profile {name!r}",
        made_for=_cut_text(profile.model, profile.exit_layers),
        given=" or ".join(f"{role} {_cut_text(model.geometry, model.exit_layers)}" for role, model in _models(pair).items()),
        fix=f"{fix}, or fit the law to profiles of others and give it: s2d-plan fit, then --fit FILE",
    )


def _cut_text(model: ModelGeometry, exit_layers: tuple[int, ...]) -> str:
    """`ref-draft with exits 1/2/4/6`, and its head if that is reduced."""
    head = f", {model.head_label}" if model.has_reduced_head else ""
    return f"{model.name} with exits {'/'.join(map(str, exit_layers))}{head}" if exit_layers else model.name


def _common_device(keys: Mapping[str, DeviceKey], request: DeviceRequest) -> DeviceKey:
    """The device of all profiles and fits; a draft may have been whole on one of several.

    Args:
        keys: by file name.
        request: its settings must agree with the files.

    Raises:
        Mismatch: two files are of different devices, or the request is for another one.
    """
    (first_name, key), *others = sorted(keys.items(), key=lambda item: -item[1].num_devices)
    for name, other in others:
        if replace(other, num_devices=key.num_devices) != key:
            made_for, given = other.label, f"{key.label} as {first_name!r}"
            fix = "Seconds of two devices cannot be added: profile both models on the same device, dtype and mode"
            raise Mismatch(repr(name), made_for=made_for, given=given, fix=fix)
    flags: dict[str, tuple[object, object]] = {
        "--num-devices": (request.num_devices, key.num_devices),
        "--dtype": (request.dtype, key.dtype),
        "--mode": (request.mode, key.mode),
    }
    if request.device is not None and not same_device(request.device, key.device):
        flags["--device"] = (request.device, key.device)
    for flag, (requested, profiled) in flags.items():
        if requested is not None and requested != profiled:
            fix = f"Leave {flag} out, or profile there"
            raise Mismatch(repr(first_name), made_for=f"{flag} {profiled}", given=f"{flag} {requested}", fix=fix)
    return key


def _check_num_devices(target: DeviceKey, draft: DeviceKey, device: DeviceKey) -> None:
    """Refuse a target profiled on fewer devices, and a draft profiled on some of them: the runtime runs neither."""
    fix = "Profile both models together: s2d-profile, with as many processes as devices"
    if target != device:
        raise Mismatch("the target's latency", made_for=target.label, given=device.label, fix=fix)
    if draft.num_devices not in (1, device.num_devices):
        given = f"{device.label}, all of them or one"
        raise Mismatch("the draft's latency", made_for=draft.label, given=given, fix=fix)


def _check_sampling(name: str, profile: LatencyProfile, sampling: Sampling) -> None:
    """Refuse a profile taken under another acceptance rule, and warn if its logits were processed otherwise.

    Raises:
        Mismatch: the acceptance rules differ.
    """
    if profile.rule != sampling.rule:
        fix = "Exit checks and verification cost more or less there: profile with the sampling that is planned for"
        made_for, given = f"{profile.rule} decoding", f"{sampling.rule} decoding"
        raise Mismatch(f"profile {name!r}", made_for=made_for, given=given, fix=fix)
    if profile.processing is not None and profile.processing != sampling.processing:
        profiled, planned = (", ".join(steps) or "no penalty or cut" for steps in (profile.processing, sampling.processing))
        _LOG.warning(
            "profile %r was taken with %s, and %s is planned: exit checks and verification may take longer or shorter",
            name,
            profiled,
            planned,
        )


def _read_fit(path: Path) -> Stored[LatencyFit]:
    fit = FIT_FILE.read(path)
    if not fit.record.domain.max_cached_tokens:
        problem = "fitted to kernels without a cache, which leaves attention and the host unpriced"
        raise BadFile(path, problem, "Fit whole passes: s2d-profile law, then s2d-plan fit")
    return fit


def _fit_text(fitted: FittedLatency) -> str:
    fit = fitted.fit
    beyond = "; beyond it: " + ", ".join(limit.label for limit in fitted.extrapolations) if fitted.extrapolations else ""
    passes = f"law of {fit.num_samples} passes of {len(fit.models)} models"
    return f"{passes}, ± {format_frac(fitted.error_frac)} (one sigma){beyond}"


def capacity_bytes_of(device: DeviceKey) -> int | None:
    """Memory of all devices; None for a device that is not in the table."""
    try:
        return device.num_devices * find_hardware(device.device).memory_bytes
    except UnknownName:
        return None


def warn_of_pauses(name: str, profile: LatencyProfile) -> None:
    """Log the passes that prices leave out because the process was paused."""
    if (paused := pauses_text(find_pauses(profile.samples).values())) is not None:
        _LOG.warning("profile %r: %s", name, paused)


def _warn_of_scatter(latency: MeasuredLatency) -> None:
    """Log that a profile scatters so much that its error was capped."""
    if latency.error_frac >= WIDEST_ERROR_FRAC:
        _LOG.warning(
            "the passes of %s scatter too much for a prediction (one sigma is capped at %s): profile again on a quiet machine",
            latency.profile.model.name,
            format_frac(WIDEST_ERROR_FRAC),
        )


def _warn_unless_beside(profile: LatencyProfile, pair: Pair) -> None:
    """Log that a model was timed without its partner. Sharing caches with another model changes its seconds."""
    names = {pair.target.name, pair.draft.model.name}
    if pair.draft.kind == "separate" and profile.beside not in names:
        _LOG.warning(
            "%s was timed %s, not beside its partner: its seconds may differ there",
            profile.model.name,
            _beside_text(profile),
        )


def _beside_text(profile: LatencyProfile) -> str:
    return "alone" if profile.beside is None else f"beside {profile.beside}"
