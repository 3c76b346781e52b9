"""The checks of first_minutes.py. Each returns a measured and an expected value, and depends on no other check.

The 7B pair is built once, by the first check that needs it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, get_args

import numpy as np
import torch
from device_check import (
    DTYPES,
    MAX_BF16_OVER_TRANSFORMERS,
    MAX_FP32_ERROR_FRAC,
    MAX_FP32_GAP,
    logits_errors,
    lossless,
    random_subject,
    subjects,
)
from product_times import GEMV_ROWS, product_seconds

from calibrate.planning.candidates import paper_policies
from details.scale_models import acceptance_of, draft_of, tiny
from perfmodel.core.units import MIB, Bytes, Seconds, format_bytes, format_frac, format_number, format_seconds, format_speedup
from perfmodel.hardware.hardware import Hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.latency.lower_bound import MAX_CACHE_BYTES, known_accelerator
from perfmodel.models.dtypes import DTYPE_BYTES, Dtype
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.kernels import STANDARD_KERNELS, WeightLayout, fastest_kernels
from perfmodel.quantisation.weight_format import plain_format
from perfmodel.replay.estimate import Speedup
from profiler.latency.kernel_trial import CACHED_TOKENS, try_kernels
from s2d.decoding.pair import ModelPair
from s2d.decoding.random_pair import random_pair
from s2d.loading.memory import PairPlacement, TextLimits, cublas_workspace_bytes, memory_need
from s2d.model.check_kernels import runnable_kernels
from s2d.model.torch_device import device_key, mode_for
from shared.captured_checks import captured_error, captured_texts, checked_capture_inputs
from shared.device_readings import datasheet_models, measure_exit_check, plain_bandwidth, release_memory
from shared.logit_gaps import Lossless, gap_result
from shared.scripted import PLAIN, ScriptedArm, Texts, measure, predict, shortened, texts_from_half

SEED = 20261124
TARGET, ACCEPTANCE = "llama-2-7b", "vicuna-7b"
OK, WRONG, SLOW, UNMEASURED = "ok", "failed: wrong result", "slower than expected", "not measured"
SLOW_FACTOR = 1.25
"""Ratio to the datasheet's prediction."""
GEMV_SHAPES = ((4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096), (4096, 32000))
"""Inputs and outputs of the matrices of Llama-2-7B: QKV, attention output, gate and up, down, head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of one check."""

    verdict: str
    """One of `OK`, `WRONG`, `SLOW` and `UNMEASURED`."""
    measured: str
    expected: str = ""
    figures: dict[str, float | str | None]
    """Figures for the result, in SI units."""
    rows: Sequence[Sequence[str]] = ()
    """A table to print at the end, with its headers first."""


class Checks:
    """All checks on one device.

    Args:
        device: torch's name of the device.
        is_quick: use tiny shapes, which only show that the checks run.
    """

    def __init__(self, device: str, *, is_quick: bool) -> None:
        self.device = torch.device(device)
        self.is_quick = is_quick
        self.dtype: Dtype = "bf16" if self.device.type == "cuda" else "fp32"
        self.mode: LaunchMode = mode_for(None, device, 1)
        self.kernels = STANDARD_KERNELS
        """Kernels of the 7B pair; the fastest after `layer` has run."""

    def all(self) -> dict[str, Callable[[], Outcome]]:
        """Checks by name, in the order to run them: correctness first. `memory` depends on the kernels from `layer`."""
        return {
            "captures": self.captures,
            "logits": self.logits,
            "lossless": self.lossless,
            "layer": self.layer,
            "memory": self.memory,
            "workspaces": self.workspaces,
            "gemv": self.gemv,
            "exit-check": self.exit_check,
            "plain-7b": self.plain,
            "published-7b": self.published,
        }

    # Correctness.

    def captures(self) -> Outcome:
        """Logits and texts of captured passes, with all kernels, against passes launched kernel by kernel in fp32."""
        worst = {dtype: captured_error(self.device, dtype, is_quick=self.is_quick) for dtype in DTYPES}
        num_texts, num_different = captured_texts(self.device, num_texts=2 if self.is_quick else 6)
        is_right = all(capture.error_frac <= capture.limit_frac for capture in worst.values()) and not num_different
        return Outcome(
            verdict=OK if is_right else WRONG,
            measured=f"{num_different} of {num_texts} texts differ; logits' error "
            + ", ".join(f"{capture.error_frac:.1e} in {dtype} ({capture.kernels.label})" for dtype, capture in worst.items()),
            expected="0; " + ", ".join(f"{capture.limit_frac:.1e}" for capture in worst.values()),
            figures={"captured_texts_that_differ": num_different}
            | {f"captured_logits_error_frac_{dtype}": capture.error_frac for dtype, capture in worst.items()},
        )

    def logits(self) -> Outcome:
        """Logits of random Llamas, against transformers."""
        errors = logits_errors(str(self.device))
        worst = {dtype: max(error.ours_frac for error in errors if error.dtype == dtype) for dtype in DTYPES}
        theirs = max(error.transformers_frac for error in errors if error.dtype == "bf16")
        return Outcome(
            verdict=OK if all(error.is_within_limit for error in errors) else WRONG,
            measured="error " + ", ".join(f"{frac:.1e} in {dtype}" for dtype, frac in worst.items()),
            expected=f"{MAX_FP32_ERROR_FRAC:.0e}, {MAX_BF16_OVER_TRANSFORMERS:g} x transformers' {theirs:.1e}",
            figures={f"logits_error_frac_{dtype}": frac for dtype, frac in worst.items()},
        )

    def lossless(self) -> Outcome:
        """Texts of captured speculation against plain texts, and against teacher-forced logits kernel by kernel."""
        num_cases = 1 if self.is_quick else 4
        with checked_capture_inputs():
            texts = [text for dtype in DTYPES for text in self._lossless_texts(dtype, num_cases)]
        gaps: dict[str, Any] = {**gap_result(texts, DTYPES)}
        mismatches, worst, beyond = (gaps[name] for name in ("num_mismatches", "worst_gap", "num_beyond_stated_gap"))
        is_right = not mismatches["fp32"] and worst["fp32"] <= MAX_FP32_GAP and not any(beyond.values())
        return Outcome(
            verdict=OK if is_right else WRONG,
            measured=f"{mismatches['fp32']} of {sum(text.num_cases for text in texts) // 2} texts in fp32 differ, "
            f"{sum(beyond.values())} tokens beyond the stated gap; worst gap in bf16 {worst['bf16']:.2g}",
            expected="0, 0",
            figures={"lossless_mismatches_fp32": mismatches["fp32"], "lossless_worst_gap_bf16": worst["bf16"]},
        )

    def _lossless_texts(self, dtype: Dtype, num_cases: int) -> Iterator[Lossless]:
        device = str(self.device)
        pairs = [random_subject(dtype, device, "graph", num_cases)]
        if not self.is_quick:
            pairs += islice(subjects(dtype, device, "graph", num_cases), 1)
        for pair, prompts in pairs:
            yield lossless(pair, dtype, prompts, num_cases)

    # The pair of 7B.

    @cached_property
    def target(self) -> ModelGeometry:
        """Llama-2-7B, or a tiny version."""
        return tiny(find_model(TARGET)) if self.is_quick else find_model(TARGET)

    @cached_property
    def texts(self) -> Texts:
        """Traced texts to decode."""
        trace = acceptance_of(ACCEPTANCE, self.target).trace
        sizes = {"prompt_tokens": 32, "new_tokens": 16} if self.is_quick else {"prompt_tokens": 512, "new_tokens": 96}
        return texts_from_half(
            shortened(trace, **sizes),
            "evaluation",
            vocab_size=self.target.vocab_size,
            max_prompts=1 if self.is_quick else 2,
            seed=SEED,
        )

    @cached_property
    def placement(self) -> PairPlacement:
        """The pair before it is built."""
        draft = draft_of(None, self.target, self.texts.trace.header.draft, is_tiny=self.is_quick)
        return PairPlacement(target=self.target, draft=draft, dtype=self.dtype, device=self.device, mode=self.mode)

    @property
    def text_limits(self) -> TextLimits:
        """Limits of the longest text."""
        header = self.texts.trace.header
        prompt_tokens = max(prompt.prompt_tokens for prompt in header.prompts)
        max_tokens = prompt_tokens + header.max_new_tokens
        noise = int(header.sampling.rule == "shared-noise")
        return TextLimits(max_tokens=max_tokens, prompt_tokens=prompt_tokens, num_noise_tables=noise)

    @cached_property
    def pair(self) -> ModelPair:
        """The pair, with random weights."""
        return random_pair(self.placement, self.text_limits, kernels=self.kernels, seed=SEED)

    @cached_property
    def arms(self) -> list[ScriptedArm]:
        """Plain decoding and the published thresholds, interleaved."""
        published = next(iter(paper_policies(self.texts.trace)))
        session = self.pair.session(self.text_limits.max_tokens)
        policies = {PLAIN: None, "published thresholds": published}
        rng = np.random.default_rng(SEED)
        return measure(session, self.texts, policies, num_repeats=1, rng=rng, between=lambda: None)

    @cached_property
    def memory_used(self) -> tuple[Bytes, Bytes]:
        """Peak memory of the pair and its session, and cuBLAS's part of it. Measured once, when the pair is first used."""
        torch.cuda.synchronize(self.device)
        release_memory(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        reserved, (free, _) = torch.cuda.memory_reserved(self.device), torch.cuda.mem_get_info(self.device)
        assert self.arms
        torch.cuda.synchronize(self.device)
        by_torch = torch.cuda.max_memory_reserved(self.device) - reserved
        by_driver = free - torch.cuda.mem_get_info(self.device)[0]
        allocated = torch.cuda.memory_allocated(self.device)
        torch._C._cuda_clearCublasWorkspaces()
        return max(by_torch, by_driver), allocated - torch.cuda.memory_allocated(self.device)

    def memory(self) -> Outcome:
        """Peak memory of the pair, its session and its graphs, against the prediction from shapes."""
        need = memory_need(self.placement, self.text_limits, reads_files=False)
        expected = f"at most {format_bytes(need.total_bytes)}"
        if self.device.type == "cpu":
            assert self.arms
            return Outcome(verdict=UNMEASURED, measured="not counted on a CPU", expected=expected, figures={})
        used, _ = self.memory_used
        return Outcome(
            verdict=OK if used <= need.total_bytes else "failed: more than predicted",
            measured=format_bytes(used),
            expected=expected,
            figures={"memory_bytes": used, "predicted_memory_bytes": need.total_bytes},
        )

    def workspaces(self) -> Outcome:
        """Memory that cuBLAS keeps for the streams of the pair."""
        if self.device.type == "cpu":
            return Outcome(verdict=UNMEASURED, measured="a CPU has none", figures={})
        (_, kept), limit = self.memory_used, cublas_workspace_bytes(self.device)
        return Outcome(
            verdict=OK if kept <= limit else "failed: more than predicted",
            measured=format_bytes(kept),
            expected=f"at most {format_bytes(limit)}",
            figures={"workspace_bytes": kept, "predicted_workspace_bytes": limit},
        )

    # Seconds.

    @property
    def hardware(self) -> Hardware | None:
        """The device's datasheet; None for a CPU and for a device in no table."""
        return known_accelerator(device_key(self.device, self.dtype, self.mode))

    def layer(self) -> Outcome:
        """One layer of draft and target with all kernels that run on the device; later checks use the fastest."""
        models = self.placement
        min_weight_bytes, num_passes = (MIB // 8, 2) if self.is_quick else (2 * MAX_CACHE_BYTES, 20)
        trials = try_kernels(models, min_weight_bytes=min_weight_bytes, num_passes=num_passes)
        depths = {"draft_layers": models.draft.exit_layers[-1], "target_layers": models.target.num_layers}
        self.kernels = fastest_kernels(trials, **depths)
        fastest = next(trial for trial in trials if trial.kernels == self.kernels)
        standard_s = next((trial.target_layer_s for trial in trials if trial.kernels == STANDARD_KERNELS), None)
        timed = {trial.kernels for trial in trials}
        left_out = [kernels.label for kernels in runnable_kernels(self.device, self.dtype, self.mode) if kernels not in timed]
        expected_s = self._layer_s()
        rows = [
            (
                trial.kernels.label,
                *(
                    f"{seconds * 1e6:.1f} µs"
                    for seconds in (trial.draft_layer_s, trial.draft_head_s, trial.target_layer_s, trial.target_head_s)
                ),
                "fastest" if trial is fastest else "",
            )
            for trial in trials
        ]
        return Outcome(
            verdict=_pace(fastest.target_layer_s, expected_s),
            measured=f"{format_seconds(fastest.target_layer_s)} with {self.kernels.label}"
            + (f", {STANDARD_KERNELS.label} {format_seconds(standard_s)}" if standard_s else "")
            + (f"; failed or wrong: {' '.join(left_out)}" if left_out else ""),
            expected=format_seconds(expected_s) if expected_s else "",
            figures={
                "kernels": self.kernels.label,
                "layer_s": fastest.target_layer_s,
                "standard_layer_s": standard_s,
                "datasheet_layer_s": expected_s,
                "kernels_left_out": " ".join(left_out),
            },
            rows=[("kernels", "draft layer, 1 row", "draft head", "target layer, 5 rows", "target head", ""), *rows],
        )

    def _layer_s(self) -> Seconds | None:
        """Datasheet time that one more layer adds to a verification."""
        if self.hardware is None:
            return None
        deep, flat = (replace(self.target, num_layers=number) for number in (2, 1))
        seconds = [
            RooflineLatency(PassSetting(model=geometry, weights=plain_format(self.dtype)), self.hardware, self.mode)
            .line("verify", 0, 5)
            .at(CACHED_TOKENS)
            for geometry in (deep, flat)
        ]
        return seconds[0] - seconds[1]

    def gemv(self) -> Outcome:
        """Products of few rows in both layouts, with no matrix in a cache."""
        divisor, min_bytes = (32, MIB) if self.is_quick else (1, 2 * MAX_CACHE_BYTES)
        shapes = [(inputs // divisor, outputs // divisor) for inputs, outputs in GEMV_SHAPES]
        timed = {
            (shape, layout): product_seconds(self.device, self.dtype, shape, layout, min_bytes)
            for shape in shapes
            for layout in get_args(WeightLayout)
        }
        size = DTYPE_BYTES[self.dtype]
        total_bytes = sum(inputs * outputs * size for inputs, outputs in shapes)
        rates = {layout: total_bytes / sum(timed[shape, layout][0] for shape in shapes) for layout in get_args(WeightLayout)}
        best = max(rates, key=lambda layout: rates[layout])
        sheet = self.hardware.memory_bytes_per_s if self.hardware else None
        expected = sheet * self.hardware.weight_bandwidth_frac[self.dtype] if sheet and self.hardware else None
        rows = [
            (
                f"{shape[0]} x {shape[1]}",
                layout,
                *(_rate_text(shape[0] * shape[1] * size / seconds, sheet) for seconds in timed[shape, layout]),
            )
            for shape, layout in timed
        ]
        return Outcome(
            verdict=_pace(1 / rates[best], 1 / expected if expected else None),
            measured="1 row " + ", ".join(f"{layout} {_rate_text(rate, sheet)}" for layout, rate in rates.items()),
            expected=_rate_text(expected, sheet) if expected else "",
            figures={f"gemv_{layout}_bytes_per_s".replace("-", "_"): rate for layout, rate in rates.items()},
            rows=[("matrix", "layout", *(f"{count} row{'s' * (count > 1)}" for count in GEMV_ROWS)), *rows],
        )

    def exit_check(self) -> Outcome:
        """One exit check on an idle device."""
        check, models = measure_exit_check(self.pair), datasheet_models(self.pair)
        expected_s = models[0].line("exit", 0, 1).base_s if models else None
        return Outcome(
            verdict=_pace(check.check_s, expected_s),
            measured=f"{format_seconds(check.check_s)}, of which choosing and reading {format_seconds(check.reading_s)}",
            expected=format_seconds(expected_s) if expected_s else "",
            figures={
                "exit_check_s": check.check_s,
                "exit_check_reading_s": check.reading_s,
                "datasheet_exit_check_s": expected_s,
            },
        )

    def plain(self) -> Outcome:
        """Plain decoding: tokens/s, and the share of the device's bandwidth."""
        arm = self.arms[0]
        bandwidth = plain_bandwidth(self.pair, [run.rounds for run in arm.all_runs], arm.decode_s)
        tokens_per_s = arm.measured(arm).tokens_per_s
        expected = speed.tokens_per_s if (speed := self._by_datasheet(0)) else None
        return Outcome(
            verdict=_pace(1 / tokens_per_s, 1 / expected if expected else None),
            measured=f"{format_number(tokens_per_s)} tokens/s, "
            + _rate_text(bandwidth.bytes_per_s, bandwidth.datasheet_bytes_per_s),
            expected=f"{format_number(expected)} tokens/s" if expected else "",
            figures={
                "plain_tokens_per_s": tokens_per_s,
                "datasheet_plain_tokens_per_s": expected,
                "plain_bytes_per_s": bandwidth.bytes_per_s,
                "datasheet_bandwidth_frac": bandwidth.datasheet_frac,
            },
        )

    def published(self) -> Outcome:
        """Speculation with the published thresholds over plain decoding. Raises an error if its rounds differ from replay."""
        plain, arm = self.arms
        speedup, expected = arm.measured(plain), self._by_datasheet(1)
        ratio = speedup.speedup.value
        return Outcome(
            verdict=_pace(1 / ratio, 1 / expected.speedup.value if expected else None),
            measured=f"{format_speedup(ratio)} of plain, {format_number(speedup.tokens_per_s)} tokens/s",
            expected=format_speedup(expected.speedup.value) if expected else "",
            figures={
                "published_over_plain": ratio,
                "datasheet_published_over_plain": expected.speedup.value if expected else None,
            },
        )

    def _by_datasheet(self, arm_number: int) -> Speedup | None:
        models = datasheet_models(self.pair)
        return predict(self.arms[arm_number].policy, self.texts, models) if models else None


def _pace(seconds: float, expected_s: float | None) -> str:
    return SLOW if expected_s is not None and seconds > SLOW_FACTOR * expected_s else OK


def _rate_text(bytes_per_s: float, sheet: float | None) -> str:
    """For example `3.9 TB/s (81 %)`."""
    share = f" ({format_frac(bytes_per_s / sheet)})" if sheet else ""
    return f"{bytes_per_s / 1e9:,.3g} GB/s{share}"
