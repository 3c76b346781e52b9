"""Fit the latency law to the passes in latency profiles.

The law is `perfmodel.passes.latency_law.Law`.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from calibrate.fit.fit_law import Observation, fit_law, held_out_errors, pooled_abs_errors
from calibrate.pricing.measured import warn_of_pauses
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.stats import INTERVAL_FRAC
from perfmodel.core.units import Seconds
from perfmodel.latency.lower_bound import check_profile
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.latency_law import FitDomain, LatencyFit
from perfmodel.passes.latency_profile import PROFILE_FILE, LatencyProfile
from perfmodel.passes.passes import PREFILL_KINDS, PassKind, PassSamples, graph_width
from perfmodel.passes.pauses import without_pauses

_Sample: TypeAlias = tuple[int, int, Seconds]  # cached tokens, rows, seconds

CONTEXT_BINS = 3
"""Number of bins by cached tokens for the passes of one shape, to resolve the cost of the cache."""


def fit_profiles(paths: Sequence[Path]) -> tuple[LatencyFit, dict[str, str]]:
    """Fit the law to profiles in files; also returns the hash of each file's body by name.

    Raises:
        BadFile: a file is not a latency profile.
        Mismatch: the profiles have different devices, dtypes or modes.
        UserInputError: there are too few passes.
    """
    stored = {path.name: PROFILE_FILE.read(path) for path in paths}
    for name, file in stored.items():
        warn_of_pauses(name, file.record)
    return fit_latency([file.record for file in stored.values()]), {name: file.sha256 for name, file in stored.items()}


def fit_latency(profiles: Sequence[LatencyProfile]) -> LatencyFit:
    """Fit the law to profiles from one device.

    Raises:
        Mismatch: the profiles have different devices, dtypes or modes.
        BelowLowerBound: a pass takes less than its device's lower bound.
        UserInputError: there is no profile, or there are too few passes.
    """
    device = _common_device(profiles)
    for profile in profiles:
        check_profile(profile)
    observations = [observation for profile in profiles for observation in profile_observations(profile)]
    launch_bound = device.mode == "eager" and device.num_threads is None
    fitted = fit_law(observations, launch_bound=launch_bound)
    errors = pooled_abs_errors(held_out_errors(observations, launch_bound=launch_bound))
    return LatencyFit(
        device=device,
        models=tuple(sorted({profile.model.name for profile in profiles})),
        source="s2d-profile on this device",
        pads_rows=profiles[0].pads_rows,
        law=fitted.law,
        standard_error=fitted.standard_error,
        domain=_domain(profiles, observations),
        num_samples=sum(len(profile.samples) for profile in profiles),
        residual_frac=fitted.residual_frac,
        held_out_error_frac=None if errors is None else float(np.mean(errors)),
        held_out_90_frac=None if errors is None else float(np.quantile(errors, INTERVAL_FRAC)),
    )


def profile_observations(profile: LatencyProfile) -> Iterator[Observation]:
    """Typical seconds of every pass shape in a profile, in bins by cached tokens.

    Leaves out passes that ran ahead: the law has no term for the waiting time that they hide.
    """
    setting = replace(profile.setting, pads_rows=profile.pads_rows)
    shapes: dict[tuple[PassKind, int, bool, int], list[_Sample]] = defaultdict(list)
    for kind, stage, rows, cached, _, pass_s in without_pauses(profile.samples):
        if kind == "ahead":
            continue
        width = graph_width(rows) if profile.pads_rows else None
        near_rows = (width or 2 ** round(math.log2(rows))) if kind in PREFILL_KINDS else rows
        shapes[kind, stage, width is None, near_rows].append((cached, rows, pass_s))
    for (kind, stage, _, _), passes in sorted(shapes.items()):
        for part in _bins(passes):
            cached_counts, row_counts, seconds = zip(*_second_quarter(part), strict=True)
            cached_tokens = float(np.mean(cached_counts))
            bin_setting = setting
            if profile.model.window_tokens is not None:
                bin_setting = replace(setting, context_tokens=round(cached_tokens))
            yield Observation(
                group=profile.model.name,
                work=bin_setting.work(kind, stage, round(np.mean(row_counts))),
                cached_tokens=cached_tokens,
                max_cached_tokens=profile.model.max_context_tokens,
                seconds=float(np.mean(seconds)),
            )


def _second_quarter(passes: Sequence[_Sample]) -> list[_Sample]:
    """The second quarter by seconds: the law describes undisturbed passes, not interruptions."""
    ordered = sorted(passes, key=lambda sample: sample[-1])
    return ordered[len(ordered) // 4 : len(ordered) // 2 + 1]


def _bins(passes: list[_Sample]) -> Iterator[list[_Sample]]:
    ordered = sorted(passes)
    size = -(-len(ordered) // CONTEXT_BINS)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _common_device(profiles: Sequence[LatencyProfile]) -> DeviceKey:
    if not profiles:
        raise UserInputError("a latency fit needs at least one profile, got none. Record one with s2d-profile latency.")
    first = profiles[0].device
    for profile in profiles[1:]:
        if profile.device != first:
            raise Mismatch(
                f"the profile of {profile.model.name}",
                made_for=repr(profile.device),
                given=repr(first),
                fix="Fit the profiles of one device, dtype and mode at a time",
            )
    return first


def _domain(profiles: Sequence[LatencyProfile], observations: Sequence[Observation]) -> FitDomain:
    layered = [observation.work for observation in observations if observation.work.num_layers]
    if not layered:
        raise UserInputError("a latency fit needs passes through layers, got none. Profile with s2d-profile latency.")
    samples = PassSamples.concat(profile.samples for profile in profiles)
    layer_bytes = [work.weight_bytes / work.num_layers for work in layered]
    return FitDomain(
        min_layer_weight_bytes=min(layer_bytes),
        max_layer_weight_bytes=max(layer_bytes),
        max_layers=max(work.num_layers for work in layered),
        max_rows=max(sample.rows for sample in samples if sample.kind not in PREFILL_KINDS),
        max_cached_tokens=round(max(observation.cached_tokens for observation in observations)),
    )
