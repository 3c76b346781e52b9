"""Fits of the latency law to profiles: a known law is recovered, and errors show noise and unsuitable models."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.fit.fit_latency import fit_latency, profile_observations
from calibrate.fit.fit_law import fit_law, held_out_errors
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.latency.latency_model import FittedLatency
from perfmodel.models.find_model import find_model
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import DeviceKey
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.latency_law import LatencyFit, Law
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind, PassSample, PassSamples
from perfmodel.quantisation.weight_format import plain_format

DEVICE = DeviceKey(device="made up", num_devices=1, num_threads=1, dtype="fp32", mode="eager")
TRUE_LAW = Law(
    pass_s=20e-6,
    sync_s=15e-6,
    round_s=30e-6,
    round_row_s=2e-6,
    layer_s=60e-6,
    row_layer_s=2e-6,
    many_rows_layer_s=10e-6,
    host_layer_s=0.0,
    weight_byte_s=5e-11,
    head_byte_s=5e-11,
    many_rows_byte_s=2e-11,
    far_byte_s=4e-11,
    cache_bytes=6e6,
    flop_s=3e-11,
    head_flop_s=3e-11,
    kv_byte_s=2e-10,
    attn_flop_s=1e-11,
    all_reduce_s=0.0,
    link_byte_s=0.0,
)


def geometry(num_layers: int, hidden_size: int) -> ModelGeometry:
    return replace(
        find_model("ref-target-16"),
        name=f"{num_layers} of {hidden_size}",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=5 * hidden_size // 2,
        num_heads=hidden_size // 64,
        num_kv_heads=hidden_size // 64,
    )


MODELS = [geometry(4, 128), geometry(16, 128), geometry(8, 256), geometry(24, 64), geometry(12, 192)]


def made_profile(
    model: ModelGeometry,
    law: Law = TRUE_LAW,
    *,
    noise_frac: float = 0.0,
    seed: int = 0,
    device: DeviceKey = DEVICE,
    widths: tuple[int, ...] = (1, 2, 4, 8, 100),
) -> LatencyProfile:
    """Passes with the times of a law plus noise; on a GPU with graphs, rows are padded to the captured widths."""
    rng = np.random.default_rng(seed)
    exits = (model.num_layers // 2,)
    is_padded = device.mode == "graph"
    setting = PassSetting(
        model=model, exit_layers=exits, weights=plain_format("fp32"), batch=1, num_devices=1, pads_rows=is_padded
    )
    kinds: tuple[PassKind, ...] = ("segment", "exit", "verify", "round", "target_prefill")
    passes = []
    for _ in range(8):
        for kind in kinds:
            for rows in widths:
                if (rows == 100) == (kind == "target_prefill"):
                    cached = 0 if kind in ("exit", "round", "target_prefill") else int(rng.integers(20, 400))
                    line = law.line(setting.work(kind, 0, rows), max_cached_tokens=512)
                    seconds = line.at(cached) * (1 + noise_frac * rng.standard_normal())
                    passes.append(PassSample(kind, 0, rows, cached, 1, seconds))
    return LatencyProfile(
        model=model,
        model_sha256="0",
        exit_layers=exits,
        beside=None,
        device=device,
        rule="greedy",
        processing=(),
        samples=PassSamples.from_passes(passes),
    )


@pytest.fixture(scope="module")
def exact_fit() -> LatencyFit:
    return fit_latency([made_profile(model) for model in MODELS])


def test_a_law_is_recovered_from_exact_passes(exact_fit: LatencyFit) -> None:
    assert exact_fit.residual_frac < 2e-3
    assert exact_fit.held_out_error_frac is not None
    assert exact_fit.held_out_error_frac < 0.01
    assert exact_fit.law.layer_s == pytest.approx(TRUE_LAW.layer_s, rel=0.1)
    assert exact_fit.law.cache_bytes == pytest.approx(TRUE_LAW.cache_bytes, rel=0.1)
    assert exact_fit.law.round_s == pytest.approx(TRUE_LAW.round_s, rel=0.05)


def test_a_model_without_a_profile_is_priced_from_the_others(exact_fit: LatencyFit) -> None:
    unseen = geometry(20, 128)
    fitted = FittedLatency(exact_fit, unseen, (), context_tokens=300)
    setting = PassSetting(model=unseen, weights=plain_format("fp32"))
    for rows in (1, 3, 8):
        line = TRUE_LAW.line(setting.work("verify", 0, rows), max_cached_tokens=512)
        assert fitted.line("verify", 0, rows).at(100) == pytest.approx(line.at(100), rel=0.02)


def test_noise_increases_the_residual_and_the_standard_errors(exact_fit: LatencyFit) -> None:
    noisy = fit_latency([made_profile(model, noise_frac=0.1, seed=i) for i, model in enumerate(MODELS)])
    assert 0.02 < noisy.residual_frac < 0.1
    assert noisy.standard_error.layer_s > 10 * exact_fit.standard_error.layer_s
    assert noisy.law.layer_s == pytest.approx(TRUE_LAW.layer_s, abs=4 * noisy.standard_error.layer_s)


def test_a_model_that_violates_the_law_has_a_large_held_out_error() -> None:
    slow = replace(
        TRUE_LAW, layer_s=2 * TRUE_LAW.layer_s, weight_byte_s=2 * TRUE_LAW.weight_byte_s, head_byte_s=2 * TRUE_LAW.head_byte_s
    )
    profiles = [made_profile(model) for model in MODELS[:-1]] + [made_profile(MODELS[-1], slow)]
    errors = held_out_errors(
        [observation for profile in profiles for observation in profile_observations(profile)], launch_bound=False
    )
    means = {group: abs(np.mean(error)) for group, error in errors.items()}
    assert means[MODELS[-1].name] > 0.15
    assert means[MODELS[-1].name] > 5 * max(means[model.name] for model in MODELS if model.hidden_size <= 128)


def test_terms_that_no_pass_depends_on_are_0(exact_fit: LatencyFit) -> None:
    law = exact_fit.law
    assert (law.host_layer_s, law.all_reduce_s, law.link_byte_s) == (0.0, 0.0, 0.0)


def test_passes_of_one_row_do_not_identify_row_terms() -> None:
    observations = [
        observation
        for model in MODELS
        for observation in profile_observations(made_profile(model))
        if observation.work.rows <= 1
    ]
    law = fit_law(observations, launch_bound=False).law
    assert (law.row_layer_s, law.many_rows_layer_s, law.many_rows_byte_s, law.flop_s) == (0.0, 0.0, 0.0, 0.0)


def test_a_fit_states_its_models_and_its_domain(exact_fit: LatencyFit) -> None:
    assert exact_fit.models == tuple(sorted(model.name for model in MODELS))
    assert exact_fit.domain.max_layers == 24
    assert exact_fit.domain.max_rows == 8
    assert exact_fit.num_samples == sum(len(made_profile(model).samples) for model in MODELS)


def test_a_fit_to_a_single_model_has_no_held_out_error() -> None:
    assert fit_latency([made_profile(MODELS[1])]).held_out_error_frac is None


def test_profiles_of_two_devices_are_not_fitted_together() -> None:
    other = replace(made_profile(MODELS[1]), device=replace(DEVICE, dtype="bf16"))
    with pytest.raises(Mismatch, match="Fit the profiles of one device, dtype and mode at a time"):
        fit_latency([made_profile(MODELS[0]), other])


def test_a_fit_without_profiles_is_refused() -> None:
    with pytest.raises(UserInputError, match="needs at least one profile, got none"):
        fit_latency([])


def test_windowed_layers_are_observed_at_their_measured_context() -> None:
    windowed = replace(MODELS[1], window_tokens=100, windowed_layers=8)
    whole = made_profile(MODELS[1])
    seen = {
        observation.cached_tokens: observation.work
        for observation in profile_observations(replace(whole, model=windowed))
        if observation.work.kv_bytes_per_cached_token
    }
    for cached_tokens, work in seen.items():
        assert (work.window_kv_bytes > 0) == (round(cached_tokens) > 100)


GPU = DeviceKey(device="a made up GPU", num_devices=1, num_threads=None, dtype="fp32", mode="graph")
PER_ROW_LAW = replace(TRUE_LAW, row_layer_s=20e-6, cache_bytes=0.0, far_byte_s=0.0)
"""A high cost per row, which makes padding visible."""


def test_padded_passes_are_fitted_and_priced_at_the_launched_width() -> None:
    profiles = [made_profile(model, PER_ROW_LAW, device=GPU, widths=(1, 2, 3, 5, 6, 9, 12, 100)) for model in MODELS]
    fit = fit_latency(profiles)
    assert fit.pads_rows
    assert fit.residual_frac < 2e-3
    unseen = geometry(20, 128)
    fitted = FittedLatency(fit, unseen, (), context_tokens=300)
    setting = PassSetting(model=unseen, weights=plain_format("fp32"))
    for rows, width in ((1, 1), (3, 4), (4, 4), (5, 8), (9, 16), (16, 16)):
        line = PER_ROW_LAW.line(setting.work("verify", 0, width), max_cached_tokens=512)
        assert fitted.line("verify", 0, rows).at(100) == pytest.approx(line.at(100), rel=0.02)


@pytest.mark.parametrize("device", [DEVICE, replace(GPU, mode="eager")])
def test_passes_that_are_not_captured_are_not_padded(device: DeviceKey) -> None:
    assert not fit_latency([made_profile(MODELS[0], device=device)]).pads_rows
    observed = {
        observation.work.rows
        for observation in profile_observations(made_profile(MODELS[0], device=device, widths=(1, 3, 5, 100)))
    }
    assert observed == {0, 1, 3, 5, 100}
