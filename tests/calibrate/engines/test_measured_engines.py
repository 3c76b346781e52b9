"""Fits of what four engines measured: two exits at three lengths predict two other exits.

ref-target-32, one thread of an AMD EPYC, 8 prompts of 96 tokens, greedy, 2026-11-30: speedups over the engine's own plain
decoding, and rounds. ONNX Runtime GenAI 0.18.0, OpenVINO GenAI 2026.4.1, llama.cpp b11434.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from statistics import median
from typing import NamedTuple

import pytest

from calibrate.engines.fit_engine import MODEL_ERROR_FRAC, fit_engine
from calibrate.engines.observations import Observation, observe
from perfmodel.core.stats import NORMAL_QUANTILE
from perfmodel.engines.engine_fit import EngineFit
from perfmodel.engines.engine_latency import engine_latencies
from perfmodel.engines.engine_profile import EngineCall, EngineProfile, EngineRun, EngineSetting
from perfmodel.engines.find_engine import find_engine
from perfmodel.engines.leviathan import acceptance_rate, leviathan_speedup
from perfmodel.models.find_model import find_draft, find_model

EXITS, LENGTHS, NUM_TOKENS, PLAIN_S = (1, 2, 4, 6), (3, 5, 8), 768, 1e-3
ROUNDS = {1: (280, 241, 212), 2: (278, 228, 204), 4: (233, 175, 142), 6: (227, 173, 137)}
BF16_ROUNDS = {1: (295, 258, 232), 2: (279, 233, 209), 4: (233, 182, 149), 6: (228, 178, 142)}


class Measured(NamedTuple):
    """What one engine measured."""

    engine: str
    weights: str
    speedups: dict[int, tuple[float, float, float]]
    """By exit, at each of LENGTHS."""
    rounds: dict[int, tuple[int, int, int]]


ENGINES = (
    Measured(
        "onnxruntime",
        "f32",
        {1: (1.51, 1.56, 1.48), 2: (1.49, 1.6, 1.59), 4: (1.53, 1.77, 1.97), 6: (1.53, 1.79, 1.89)},
        ROUNDS,
    ),
    Measured(
        "openvino", "f32", {1: (1.59, 1.6, 1.6), 2: (1.52, 1.64, 1.57), 4: (1.55, 1.83, 1.92), 6: (1.44, 1.61, 1.7)}, ROUNDS
    ),
    Measured(
        "llama.cpp", "f32", {1: (1.23, 1.05, 1.15), 2: (1.23, 1.04, 1.15), 4: (1.25, 1.26, 1.33), 6: (1.16, 1.14, 1.31)}, ROUNDS
    ),
    Measured(
        "llama.cpp",
        "bf16",
        {1: (0.89, 0.73, 0.63), 2: (0.89, 0.83, 0.67), 4: (0.93, 0.89, 0.82), 6: (0.73, 0.77, 0.74)},
        BF16_ROUNDS,
    ),
)


def run_of(measured: Measured, exit_layer: int | None, length: int = 0) -> EngineRun:
    """All prompts of a configuration as one call."""
    speedup, rounds = 1.0, None
    if exit_layer is not None:
        number = LENGTHS.index(length)
        speedup, rounds = measured.speedups[exit_layer][number], measured.rounds[exit_layer][number]
    call = EngineCall(
        prompt="all",
        prompt_tokens=40,
        num_tokens=NUM_TOKENS,
        untimed_tokens=0,
        decode_s=NUM_TOKENS * PLAIN_S / speedup,
        output_sha256="0" * 64,
        num_rounds=rounds,
        num_drafted=None if rounds is None else rounds * length,
    )
    return EngineRun(exit_layer=exit_layer, draft_tokens=length, floor=None, is_draft_alone=False, calls=(call,))


def profile_of(measured: Measured, exits: tuple[int, ...]) -> EngineProfile:
    return EngineProfile(
        setting=EngineSetting(
            engine=measured.engine, version="", weights=measured.weights, device="AMD EPYC", num_devices=1, num_threads=1
        ),
        target=find_model("ref-target-32"),
        target_sha256="a" * 64,
        draft=find_draft("ref-draft"),
        draft_sha256="b" * 64,
        tokenizer_sha256=None,
        max_new_tokens=NUM_TOKENS,
        runs=(run_of(measured, None), *(run_of(measured, layer, length) for layer in exits for length in LENGTHS)),
    )


def predicted(fit: EngineFit, run: Observation) -> float:
    """The speedup of a run's rounds at the seconds of a fit."""
    passes, verify_s = float(run.draft_tokens), fit.verify_s(run.draft_tokens + 1)
    if fit.round_shape.rereads_block:
        passes += verify_s / fit.plain_s
    elif fit.round_shape.catches_up_apart:
        passes += run.full_frac
    draft_s = passes * fit.draft_s(run.exit_layer) + fit.cold_layer_s * run.exit_layer
    round_s = verify_s + fit.overhead_s + draft_s
    return run.tokens_per_round * fit.plain_s / round_s


def fit_of(measured: Measured, exits: tuple[int, ...], lengths: tuple[int, ...] = LENGTHS) -> EngineFit:
    """The fit of some exits at some lengths."""
    profile = profile_of(measured, exits)
    runs = tuple(run for run in profile.runs if run.draft_tokens in (0, *lengths))
    return fit_engine(replace(profile, runs=runs), None, find_engine(measured.engine))


def errors(measured: Measured, exits: tuple[int, ...]) -> dict[tuple[int, int], float]:
    """Relative errors of the speedups of the exits that were not profiled, by exit and length."""
    fit = fit_of(measured, exits)
    others = observe(profile_of(measured, tuple(layer for layer in EXITS if layer not in exits)), None).runs
    return {
        (run.exit_layer, run.draft_tokens): predicted(fit, run)
        / measured.speedups[run.exit_layer][LENGTHS.index(run.draft_tokens)]
        - 1
        for run in others
    }


@pytest.mark.parametrize("exits", [(1, 6), (2, 6)])
def test_two_exits_predict_the_others_within_a_few_percent(exits: tuple[int, ...]) -> None:
    found = [error for measured in ENGINES for error in errors(measured, exits).values()]
    assert median(map(abs, found)) < 0.05
    assert max(map(abs, found)) < 0.15


def test_the_stated_model_error_is_that_of_the_measured_engines() -> None:
    found = [error for measured in ENGINES for exits in ((1, 6), (2, 6)) for error in errors(measured, exits).values()]
    root_mean_square = math.sqrt(sum(error**2 for error in found) / len(found))
    assert pytest.approx(root_mean_square, abs=0.01) == MODEL_ERROR_FRAC


def left_out_length_errors(measured: Measured) -> Iterator[tuple[float, float]]:
    """Relative errors of the speedups at a length that was left out of the profile, and the stated errors."""
    for length, exits in product(LENGTHS, ((1, 6), (2, 6))):
        fit = fit_of(measured, exits, tuple(other for other in LENGTHS if other != length))
        for run in observe(profile_of(measured, EXITS), None).runs:
            if run.draft_tokens == length:
                true = measured.speedups[run.exit_layer][LENGTHS.index(length)]
                draft, _ = engine_latencies(fit, run.exit_layer, length, context_tokens=0)
                yield predicted(fit, run) / true - 1, draft.error_frac


def test_the_stated_error_grows_enough_at_a_length_that_was_left_out() -> None:
    """The error of the fit alone covers 75 % at 90 %; with the distance to the profiled lengths, 86 %."""
    found = [pair for measured in ENGINES for pair in left_out_length_errors(measured)]
    inside = [abs(error) <= NORMAL_QUANTILE * stated for error, stated in found]
    assert len(inside) == 96
    assert 0.83 < sum(inside) / len(inside) < 0.95
    assert sum(abs(error) <= NORMAL_QUANTILE * 1.05 * MODEL_ERROR_FRAC for error, _ in found) / len(found) < 0.8


def test_whether_to_speculate_is_predicted_right_in_every_engine() -> None:
    for measured in ENGINES:
        for (layer, length), error in errors(measured, (1, 6)).items():
            true = measured.speedups[layer][LENGTHS.index(length)]
            if not 0.97 <= true <= 1.03:
                assert ((1 + error) * true > 1) == (true > 1), (measured.engine, measured.weights, layer, length)


def test_the_formula_for_independent_acceptance_is_several_times_as_wrong() -> None:
    """Leviathan's formula with the mean acceptance and a draft that costs its share of the layers."""
    ours, formula = [], []
    for measured in ENGINES:
        for (layer, length), error in errors(measured, (1, 6)).items():
            number = LENGTHS.index(length)
            rate = acceptance_rate(NUM_TOKENS / measured.rounds[layer][number], length)
            formula.append(abs(leviathan_speedup(rate, length, layer / 32) / measured.speedups[layer][number] - 1))
            ours.append(abs(error))
    assert median(formula) > 4 * median(ours)
