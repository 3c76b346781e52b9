"""The text of a pair's profile: models, device, latency, acceptance and warnings."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from perfmodel.acceptance.confidence_curves import agreement_at, expected_calibration_error
from perfmodel.acceptance.off_path_trace import MIN_RECORDED
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import table
from perfmodel.core.units import Frac, format_frac, format_joules, format_number, format_seconds
from perfmodel.models.geometry import DraftGeometry, ModelGeometry
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, KernelTrial, trial_round_s
from perfmodel.passes.passes import PASS_KINDS
from perfmodel.passes.pauses import find_pauses, pauses_text
from perfmodel.policies.policy import CalibrationCurve
from profiler.latency.pass_grid import PassKey
from profiler.latency.pass_log import PassLog, keys_label, unsteady_passes
from profiler.latency.profiling_job import ProfilingJob
from profiler.machine.machine_facts import DeviceFacts
from profiler.machine.measure_energy import EnergyMeter
from s2d.loading.sidecar import Calibration

SHOWN_ROWS = {"segment": (1, 2, 4, 8), "exit": (1,), "ahead": (1, 2), "verify": (1, 2, 4, 6, 8, 12), "round": (0, 4, 8)}
"""Numbers of rows in the latency table. The files hold all of them."""
MAX_WARNINGS = 4
LOOPING_FRAC: Frac = 0.5
"""A text with a smaller share of distinct 6-grams repeats itself."""


def understood_text(job: ProfilingJob, facts: DeviceFacts, split: str) -> str:
    """The models, device, kernels and prompts of a measurement."""
    dtype, sampling = job.pair.target.dtype, job.sampling.label
    half = "" if split == "all" else f" of the {split} half"
    lengths = [len(prompt.token_ids) for prompt in job.prompts]
    return "\n".join(
        [
            f"models   {job.pair.label}, {dtype}, batch 1, {job.pair.device_key.mode}",
            f"device   {facts.label}",
            kernels_text(job.pair.target.decoder.kernels, job.kernel_trials, job.pair.geometry, job.pair.target.geometry),
            f"prompts  {len(job.prompts)}{half}, {min(lengths)} to {max(lengths)} tokens, "
            f"up to {job.max_new_tokens} new tokens each, {sampling}",
        ]
    )


def kernels_text(kernels: Kernels, trials: Sequence[KernelTrial], draft: DraftGeometry, target: ModelGeometry) -> str:
    """The kernels. If they were timed, also their gain over the standard kernels."""
    if not trials:
        return f"kernels  {kernels.label}"
    fastest = f"kernels  {kernels.label}, the fastest of {len(trials)}"
    if kernels == STANDARD_KERNELS:
        return fastest
    layers = {"draft_layers": draft.exit_layers[-1], "target_layers": target.num_layers}
    round_s = {trial.kernels: trial_round_s(trial, **layers) for trial in trials}
    gain = 1 - round_s[kernels] / round_s[STANDARD_KERNELS]
    return f"{fastest}: a round takes {format_frac(gain)} less than with {STANDARD_KERNELS.label}"


def latency_text(log: PassLog) -> str:
    """A table of medians and quartiles of the most important passes."""
    rows = []
    for key, values in sorted(log.seconds_by_key().items(), key=lambda item: (PASS_KINDS.index(item[0].kind), item[0])):
        if key.rows in SHOWN_ROWS.get(key.kind, ()):
            low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
            spread = format_frac(float((high - low) / median))
            rows.append((key.label, str(len(values)), format_seconds(float(median)), spread))
    return table(rows, headers=("pass", "samples", "median", "IQR / median"))


def acceptance_text(trace: Trace, calibration: Calibration | None) -> str:
    """A table of acceptance and confidence at every exit, over all positions.

    If the draft has a calibration of this kind of confidence, the table shows the expected calibration error (ECE) with and
    without it. A calibration that holds for this trace has an error near zero.
    """
    columns = zip(trace.header.exit_layers, trace.accept_prob.mean(axis=0), trace.confidence.mean(axis=0), strict=True)
    rows = [
        (f"exit {layer}", format_frac(float(accepted)), format_number(float(confidence)))
        for layer, accepted, confidence in columns
    ]
    headers = ("exit", "accepted", "mean confidence")
    if calibration is None or calibration.confidence != trace.header.confidence:
        return table(rows, headers=headers)
    errors = [
        map(format_frac, _calibration_errors(trace, exit_id, curve)) if curve else ("-", "-")
        for exit_id, curve in enumerate(calibration.curves)
    ]
    return table(
        [(*row, *pair) for row, pair in zip(rows, errors, strict=True)],
        headers=(*headers, "ECE, uncalibrated", "ECE, calibrated"),
    )


def _calibration_errors(trace: Trace, exit_id: int, curve: CalibrationCurve) -> tuple[Frac, Frac]:
    """Expected calibration error of an exit's confidence, uncalibrated and calibrated."""
    confidence, accepted = (column[:, exit_id].astype(np.float64) for column in (trace.confidence, trace.accept_prob))
    calibrated = agreement_at(curve, confidence)
    return expected_calibration_error(confidence, accepted), expected_calibration_error(calibrated, accepted)


def repetition_text(trace: Trace) -> str:
    """How repetitive the texts are: repetition raises the acceptance."""
    prompts = trace.header.prompts
    distinct = [prompt.distinct_6gram_frac for prompt in prompts if prompt.distinct_6gram_frac is not None]
    mean, num_looping = float(np.mean(distinct)), sum(frac < LOOPING_FRAC for frac in distinct)
    return (
        f"{len(trace.target_token)} positions; distinct 6-grams {format_frac(mean)}; {num_looping} of {len(prompts)} texts "
        "loop (below 50 %), which raises acceptance"
    )


def off_path_text(trace: Trace) -> list[str]:
    """How many tokens were recorded off the target's path, and whether they suffice; empty if none were."""
    off_path = trace.off_path
    if not len(off_path):
        return []
    text = f"{len(off_path)} tokens off the target's path, {off_path.num_usable} of them drafted by the deepest exit"
    if not off_path.is_enough:
        text += f": too few, {MIN_RECORDED} are needed, so plans use the confidences of the text itself"
    return [text]


def energy_text(meter: EnergyMeter, facts: DeviceFacts) -> str:
    """The energy of the latency measurement."""
    limit = f" of {facts.power_limit_w:.0f} W allowed" if facts.power_limit_w else ""
    mean = f", {meter.mean_w:.0f} W on average{limit}" if meter.mean_w is not None else ""
    return f"energy {format_joules(meter.energy_j)}{mean}"


def latency_warnings(log: PassLog, unseen: Collection[PassKey]) -> list[str]:
    """Weaknesses of a latency measurement: scattered, paused and unmeasured passes."""
    unsteady = unsteady_passes(log)
    warnings = [
        f"{scattered.key.label}: interquartile range {format_frac(scattered.iqr_frac)} of the median, "
        f"{scattered.num_samples} samples"
        for scattered in unsteady[:MAX_WARNINGS]
    ]
    if len(unsteady) > MAX_WARNINGS:
        warnings.append(f"{len(unsteady) - MAX_WARNINGS} more passes scatter as much: stop other programs and measure again")
    if (paused := pauses_text(find_pauses(log.samples()).values())) is not None:
        warnings.append(paused)
    if unseen:
        warnings.append(f"never measured: {keys_label(unseen)}; a longer --budget may measure them")
    return warnings
