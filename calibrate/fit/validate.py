"""Validate the latency law on published speeds, and on the S2D paper's speedups.

The law was not fitted to these speeds, except those marked as used.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast, get_args

from calibrate.inputs.acceptance import load_acceptance, shipped_path
from calibrate.inputs.device import resolve_device
from calibrate.inputs.published_acceptance import DRAFT, PUBLISHED_LENGTH, PUBLISHED_TOKENS
from calibrate.inputs.requests import DeviceRequest
from calibrate.planning.candidates import price_candidates
from calibrate.pricing.datasheet import price_by_datasheet
from calibrate.pricing.pricing import pair_weights
from perfmodel.core.disk import EVIDENCE_FOLDER
from perfmodel.core.errors import UserInputError
from perfmodel.core.stats import NORMAL_QUANTILE
from perfmodel.core.units import Seconds, Tokens, TokensPerS
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.latency.lower_bound import check_pass, pass_lower_bound
from perfmodel.models.dtypes import Dtype
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.passes import PassShape
from perfmodel.policies.policy import Policy
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import WeightFormat, format_by_module
from perfmodel.quantisation.weight_schemes import PLAIN, Scheme, integer_scheme, mean_bits_scheme
from perfmodel.results.validation import DeviceError, Explanation, PublishedPoint, PublishedSpeedup, Validation

POINTS = EVIDENCE_FOLDER / "published_points.csv"
SPEEDUPS = EVIDENCE_FOLDER / "published_speedups.csv"

CANDIDATE_DEVICES = ("a100-80gb", "h100", "v100", "rtx-4090")
"""GPUs that S2D's authors may have used for their table. The paper names none; their earlier work used V100s."""
_GPT_FAST_INT4 = integer_scheme(4, 32, has_zero_points=False, scale_bits=32)
_TORCHAO_INT4 = integer_scheme(4, 64, has_zero_points=False, scale_bits=32)
_INT8_PER_ROW = integer_scheme(8, None, has_zero_points=False)
_MLC_INT4 = integer_scheme(4, 32, has_zero_points=False)
PUBLISHED_FORMATS: Mapping[str, tuple[Scheme, Scheme, Scheme]] = {
    "gpt-fast int4": (_GPT_FAST_INT4, _GPT_FAST_INT4, PLAIN),
    "gpt-fast int8": (_INT8_PER_ROW, _INT8_PER_ROW, PLAIN),
    "torchao int4": (_TORCHAO_INT4, _TORCHAO_INT4, PLAIN),
    "torchao int8": (_INT8_PER_ROW, _INT8_PER_ROW, PLAIN),
    "mlc q4f16_1": (_MLC_INT4, _MLC_INT4, _MLC_INT4),
    "exl2 4.0": (mean_bits_scheme("exl2", 4.0), mean_bits_scheme("exl2", 6.0), PLAIN),
}
"""Schemes of layers, LM head and embedding in the formats of published speeds.

The int4 formats of gpt-fast and torchao have a bf16 scale and zero point per group of 32 and 64 weights; their int8 formats
have a scale per row. Both quantise every linear layer, including the LM head (quantize.py of each project). MLC's q4f16_1 has
an fp16 scale per 32 weights, also in the embedding and the LM head. EXL2 states mean bits, and its LM head has 6 bits by
default.
"""
MODES: tuple[LaunchMode, ...] = ("eager", "graph")


def validate() -> Validation:
    """Predict all published speeds and speedups that ship with the package."""
    points = tuple(published_points())
    explanations = [explain_speedups(device, mode) for device in CANDIDATE_DEVICES for mode in MODES]
    return Validation(
        points=points,
        devices=tuple(_device_errors(points)),
        explanations=tuple(sorted(explanations, key=lambda explanation: explanation.mean_abs_error_frac)),
    )


def published_points() -> Iterator[PublishedPoint]:
    """Every published speed of plain decoding, with the prediction of the device's roofline.

    Raises:
        BelowLowerBound: a row is faster than its device allows; the message names the line.
    """
    for number, row in enumerate(_rows(POINTS), start=2):
        role, _, note = row["role"].partition(": ")
        hardware, num_devices = find_hardware(row["device"]), int(row["num_devices"])
        model, context_tokens = find_model(row["model"]), int(row["context_tokens"])
        weights = published_format(row["weights"], model)
        setting = PassSetting(model=model, weights=weights, num_devices=num_devices, context_tokens=context_tokens)
        latency = RooflineLatency(setting, hardware, row["mode"])
        bound_s = _check_step(number, float(row["tokens_per_s"]), setting, context_tokens, hardware)
        yield PublishedPoint(
            model=model.name,
            device=hardware.name,
            num_devices=num_devices,
            weights=row["weights"],
            mode=row["mode"],
            context_tokens=context_tokens,
            role="used" if role == "used" else "held-out",
            note=note,
            source=row["source"],
            published_tokens_per_s=float(row["tokens_per_s"]),
            predicted_tokens_per_s=1 / _step_s(latency, context_tokens),
            interval_frac=NORMAL_QUANTILE * latency.step_error_frac,
            bound_tokens_per_s=1 / bound_s,
        )


def published_format(name: str, model: ModelGeometry) -> WeightFormat:
    """The weight format of a published point.

    Args:
        name: a name in `PUBLISHED_FORMATS`, or a dtype of `--dtype`.
        model: the shapes of the model.

    Raises:
        UserInputError: no such name.
    """
    if name in get_args(Dtype):
        return dtype_format(cast(Dtype, name), model)
    if name not in PUBLISHED_FORMATS:
        raise UserInputError(f"weights {name!r}: expected a dtype or one of {', '.join(PUBLISHED_FORMATS)}.")
    layers, head, embedding = PUBLISHED_FORMATS[name]
    return format_by_module(name, model, lambda layer, module: layers, head=head, embedding=embedding)


def _check_step(
    number: int, tokens_per_s: TokensPerS, setting: PassSetting, context_tokens: Tokens, hardware: Hardware
) -> Seconds:
    """Check a published step against its lower bound; returns the bound that assumes no data in caches."""
    source = f"line {number} of {POINTS.name}, {setting.model.name} on {setting.num_devices} x {hardware.name}"
    step = PassShape(kind="verify", stage=0, rows=1, cached_tokens=context_tokens)
    fix = "Check model, device, number of devices and dtype against the source, or remove the point"
    check_pass(1 / tokens_per_s, setting, step, hardware, source=source, fix=fix)
    bound = pass_lower_bound(setting, step, hardware)
    return max(bound.read_bytes / bound.bytes_per_s, bound.compute_s)


def _step_s(latency: RooflineLatency, context_tokens: int) -> Seconds:
    """Seconds for one token of plain decoding: a verify pass of one row and the cost per round."""
    return latency.line("verify", 0, 1).at(context_tokens) + latency.line("round", 0, 0).at(context_tokens)


def _device_errors(points: tuple[PublishedPoint, ...]) -> Iterator[DeviceError]:
    for device, mode in dict.fromkeys((point.device, point.mode) for point in points):
        held_out = [point for point in points if (point.device, point.mode, point.role) == (device, mode, "held-out")]
        if held_out:
            errors = [point.error_frac for point in held_out]
            yield DeviceError(
                device=device,
                mode=mode,
                num_points=len(errors),
                mape_frac=sum(map(abs, errors)) / len(errors),
                mean_error_frac=sum(errors) / len(errors),
                covered_frac=sum(point.is_covered for point in held_out) / len(held_out),
                bound_mean_error_frac=sum(point.bound_error_frac for point in held_out) / len(held_out),
            )


def explain_speedups(device: str, mode: LaunchMode) -> Explanation:
    """S2D's speedups predicted from a device's datasheet, in fp16, on the smallest number of devices with enough memory."""
    resolved = resolve_device(DeviceRequest(device=device, dtype="fp16", mode=mode))
    speedups = []
    for row in _rows(SPEEDUPS):
        acceptance = load_acceptance(shipped_path(DRAFT, row["target"]), "all")
        pair = acceptance.trace.header
        weights = pair_weights(pair.draft, pair.target, resolved.dtype)
        pricing = price_by_datasheet(pair, resolved, weights, context_tokens=acceptance.context_tokens)
        policy = Policy(
            exits=tuple(map(int, row["exit_layers"].split("/"))),
            thresholds=tuple(map(float, filter(None, row["thresholds"].split("/")))),
            tokens=PUBLISHED_TOKENS,
            stop=PUBLISHED_LENGTH,
        )
        [predicted] = price_candidates({"published": policy}, acceptance.trace, pricing)
        speedups.append(
            PublishedSpeedup(
                target=row["target"],
                policy=policy.label,
                source=row["source"],
                published=float(row["speedup"]),
                predicted=predicted.speedup.speedup.value,
            )
        )
    return Explanation(device=find_hardware(device).name, mode=mode, speedups=tuple(speedups))


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
