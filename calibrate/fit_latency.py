"""LatencyProfile -> LatencyFit: the coefficients of the latency law (`perfmodel.law.Law`) from measured passes.

Errors are relative, so that a draft's segment counts as much as a target's verify, and robust (soft L1), so that a
preempted pass does not bend the law. How good the law is on a model it has not seen is told by leaving each model out.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import Mismatch, UserInputError
from perfmodel.interval import INTERVAL_FRAC
from perfmodel.law import FitDomain, LatencyFit, Law
from perfmodel.passes import PassKind
from perfmodel.profile import DeviceKey, LatencyProfile
from perfmodel.units import Frac, Seconds
from perfmodel.work import PassSetting, PassWork

Array: TypeAlias = NDArray[np.float64]
_Sample: TypeAlias = tuple[int, int, Seconds]  # cached tokens, rows, seconds

LAW_TERMS: tuple[str, ...] = tuple(field.name for field in fields(Law))
_TOLD_BY_ROWS = {"row_layer_s", "many_rows_layer_s", "many_rows_byte_s", "flop_s", "attn_flop_s"}
"""Terms that only passes of different widths tell from the others."""
ROBUST_SCALE: Frac = 0.05
"""Relative error beyond which an observation's pull grows linearly and no longer with the square."""
CONTEXT_BINS = 3
"""Parts into which the passes of one shape are cut by cached tokens, so that the cache's cost shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """Passes of one shape: what they did and the mean seconds of their middle half."""

    group: str
    """What is left out together: the model."""
    work: PassWork
    cached_tokens: float
    max_cached_tokens: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLaw:
    """A law, its standard errors, and its mean absolute error on what it was fitted to."""

    law: Law
    standard_error: Law
    residual_frac: Frac


def fit_latency(profiles: Sequence[LatencyProfile]) -> LatencyFit:
    """Fit the law to profiles of one device.

    Raises:
        Mismatch: the profiles are of different devices, dtypes or engines.
        UserInputError: no profile, or hardly any passes.
    """
    device = _common_device(profiles)
    observations = [one for profile in profiles for one in observe(profile)]
    launch_bound = device.engine == "eager" and device.num_threads is None
    fitted = fit_law(observations, launch_bound=launch_bound)
    errors = pooled(held_out_errors(observations, launch_bound=launch_bound))
    return LatencyFit(
        device=device,
        models=tuple(sorted({profile.model.name for profile in profiles})),
        source="s2d-profile on this device",
        law=fitted.law,
        standard_error=fitted.standard_error,
        domain=_domain(profiles, observations),
        num_samples=sum(len(profile.samples) for profile in profiles),
        residual_frac=fitted.residual_frac,
        held_out_error_frac=None if errors is None else float(np.mean(errors)),
        held_out_90_frac=None if errors is None else float(np.quantile(errors, INTERVAL_FRAC)),
    )


def observe(profile: LatencyProfile) -> Iterator[Observation]:
    """Typical seconds of every shape in a profile, in a few bins of cached tokens."""
    setting = PassSetting(
        model=profile.model,
        exit_layers=profile.exit_layers,
        dtype=profile.device.dtype,
        batch=1,
        num_devices=profile.device.num_devices,
    )
    shapes: dict[tuple[PassKind, int, int], list[_Sample]] = defaultdict(list)
    samples = profile.samples
    columns = zip(samples.kind, samples.stage, samples.rows, samples.cached_tokens, samples.seconds, strict=True)
    for kind, stage, rows, cached, seconds in columns:
        width = 2 ** round(math.log2(rows)) if kind == "prefill" else rows
        shapes[kind, stage, width].append((cached, rows, seconds))
    for (kind, stage, _), passes in sorted(shapes.items()):
        for part in _bins(passes):
            cached_tokens, rows_of, seconds_of = zip(*part, strict=True)
            yield Observation(
                group=profile.model.name,
                work=setting.work(kind, stage, round(np.mean(rows_of))),
                cached_tokens=float(np.mean(cached_tokens)),
                max_cached_tokens=profile.model.max_context_tokens,
                seconds=_middle_mean(seconds_of),
            )


def _middle_mean(values: Sequence[Seconds]) -> Seconds:
    """Mean of the middle half: a law tells what a pass takes, not how often something else got in its way."""
    ordered = np.sort(values)
    outside = len(ordered) // 4
    return float(np.mean(ordered[outside : len(ordered) - outside]))


def _bins(passes: list[_Sample]) -> Iterator[list[_Sample]]:
    ordered = sorted(passes)
    size = -(-len(ordered) // CONTEXT_BINS)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def fit_law(observations: Sequence[Observation], *, launch_bound: bool) -> FittedLaw:
    """The law nearest to some observations; terms that no observation shows are held at 0.

    Args:
        launch_bound: whether launches can take longer than kernels: on a GPU without graphs. Elsewhere that term is 0.

    Raises:
        UserInputError: fewer observations than terms.
    """
    measured = np.array([one.seconds for one in observations])
    scales = _scales(observations, measured, launch_bound=launch_bound)
    terms = list(scales)
    if len(observations) < len(terms) or not terms:
        raise UserInputError(
            f"a latency fit of {len(terms)} terms needs at least as many different passes, got {len(observations)}. "
            "Profile more rows and exits with s2d-profile latency."
        )
    scale = np.array([scales[term] for term in terms])

    def errors(values: Array) -> Array:
        ratios: Array = predict(_law(terms, values * scale), observations) / measured
        return ratios - 1

    from scipy.optimize import least_squares

    start = np.full(len(terms), 0.5)
    found = least_squares(errors, start, bounds=(0, np.inf), loss="soft_l1", f_scale=ROBUST_SCALE, x_scale="jac")
    return FittedLaw(
        law=_law(terms, found.x * scale),
        standard_error=_law(terms, _standard_errors(found.jac, errors(found.x)) * scale),
        residual_frac=float(np.mean(np.abs(errors(found.x)))),
    )


def predict(law: Law, observations: Sequence[Observation]) -> Array:
    """Seconds of each observation's passes by a law; [observations]."""
    lines = [law.line(one.work, max_cached_tokens=one.max_cached_tokens) for one in observations]
    cached = [one.cached_tokens for one in observations]
    return np.array([base_s + per_token_s * tokens for (base_s, per_token_s), tokens in zip(lines, cached, strict=True)])


def pooled(errors: dict[str, Array]) -> Array | None:
    """Sizes of all held-out errors; None where nothing could be held out."""
    return np.abs(np.concatenate(list(errors.values()))) if errors else None


def held_out_errors(observations: Sequence[Observation], *, launch_bound: bool) -> dict[str, Array]:
    """Signed relative errors on each group's observations, predicted from the others; empty with a single group."""
    groups = sorted({one.group for one in observations})
    if len(groups) < 2:
        return {}
    errors = {}
    for group in groups:
        law = fit_law([one for one in observations if one.group != group], launch_bound=launch_bound).law
        unseen = [one for one in observations if one.group == group]
        errors[group] = predict(law, unseen) / np.array([one.seconds for one in unseen]) - 1
    return errors


def _scales(observations: Sequence[Observation], measured: Array, *, launch_bound: bool) -> dict[str, float]:
    """For each term that shows, the coefficient at which it alone would explain a typical pass."""
    told = set(LAW_TERMS) - (set() if launch_bound else {"host_layer_s"})
    if len({one.work.rows for one in observations if one.work.num_layers}) < 2:
        told -= _TOLD_BY_ROWS
    scales = {}
    for term in LAW_TERMS:
        alone = predict(_law([term], np.ones(1)), observations)
        shown = alone > 0
        if term in told and shown.any():
            scales[term] = float(np.median(measured[shown] / alone[shown]))
    return scales


def _law(terms: Sequence[str], values: Array) -> Law:
    """A law with some of its terms, the others 0."""
    return Law(**(dict.fromkeys(LAW_TERMS, 0.0) | {term: float(value) for term, value in zip(terms, values, strict=True)}))


def _standard_errors(jac: Array, errors: Array) -> Array:
    """Square root of the diagonal of s² (JᵀJ)⁻¹, with s² the residual variance."""
    freedom = max(1, len(errors) - jac.shape[1])
    variance = float(errors @ errors) / freedom
    variances: Array = variance * np.diag(np.linalg.pinv(jac.T @ jac))
    return np.sqrt(np.maximum(0.0, variances))


def _common_device(profiles: Sequence[LatencyProfile]) -> DeviceKey:
    if not profiles:
        raise UserInputError("a latency fit needs at least one profile, got none. Make one with s2d-profile latency.")
    first = profiles[0].device
    for profile in profiles[1:]:
        if profile.device != first:
            raise Mismatch(
                f"the profile of {profile.model.name}",
                made_for=repr(profile.device),
                given=repr(first),
                fix="Fit the profiles of one device, dtype and engine at a time",
            )
    return first


def _domain(profiles: Sequence[LatencyProfile], observations: Sequence[Observation]) -> FitDomain:
    layered = [one.work for one in observations if one.work.num_layers]
    if not layered:
        raise UserInputError("a latency fit needs passes through layers, got none. Profile with s2d-profile latency.")
    samples = [profile.samples for profile in profiles]
    widths = [rows for one in samples for kind, rows in zip(one.kind, one.rows, strict=True) if kind != "prefill"]
    layer_bytes = [work.weight_bytes / work.num_layers for work in layered]
    return FitDomain(
        min_layer_weight_bytes=min(layer_bytes),
        max_layer_weight_bytes=max(layer_bytes),
        max_layers=max(work.num_layers for work in layered),
        max_rows=max(widths),
        max_cached_tokens=round(max(one.cached_tokens for one in observations)),
    )
