"""One paused pass changes no price, no interval and no comparison, however long it is; a warning names it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.fit.fit_latency import fit_latency
from calibrate.planning.compare import compare
from perfmodel.core.files import Stored
from perfmodel.core.stats import WIDEST_FACTOR, ratio_interval
from perfmodel.hardware.kernel_efficiency import WIDEST_ERROR_FRAC
from perfmodel.latency.latency_model import MeasuredLatency
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassKind, PassSamples
from perfmodel.replay.estimate import Decoded, mean_round_cost, measured_speedup
from perfmodel.results.plan import PLAN_FILE
from perfmodel.results.report import Arm
from tests.calibrate.factories import (
    draft_profile,
    make_report,
    make_trace,
    provenance,
    target_profile,
    write_evidence,
    write_profile,
)
from tests.calibrate.fit.test_fit_latency import MODELS, made_profile

PAUSES_S = (10.0, 60.0, 3600.0, 36_000.0, 1e300)
SAME = pytest.approx


def scattered(profile: LatencyProfile, frac: float = 0.03) -> LatencyProfile:
    """The same passes with the noise of a quiet machine."""
    samples = profile.samples
    noise = np.random.default_rng(0).normal(1.0, frac, len(samples)).tolist()
    seconds = tuple(pass_s * factor for pass_s, factor in zip(samples.seconds, noise, strict=True))
    return replace(profile, samples=replace(samples, seconds=seconds))


def with_pause(samples: PassSamples, kind: PassKind, seconds: float) -> PassSamples:
    """The same samples with one pass of a kind paused."""
    places = [place for place, sample in enumerate(samples.kind) if sample == kind]
    paused = places[len(places) // 2]
    taken = tuple(seconds if place == paused else pass_s for place, pass_s in enumerate(samples.seconds))
    return replace(samples, seconds=taken)


def with_rare_width(profile: LatencyProfile, kind: PassKind) -> LatencyProfile:
    """The same passes, three of a kind with a width that no other has: too few to clamp one of them."""
    samples = profile.samples
    places = [place for place, sample in enumerate(samples.kind) if sample == kind]
    middle = len(places) // 2
    rare, rows = places[middle - 1 : middle + 2], max(samples.rows[place] for place in places) + 1
    widths = tuple(rows if place in rare else width for place, width in enumerate(samples.rows))
    return replace(profile, samples=replace(samples, rows=widths))


def planned(folder: Path, profiles: Sequence[LatencyProfile], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """The chosen speedup of a plan from the evidence in a folder, and what was warned of."""
    names = [folder / f"{name}.latency.json" for name in ("target", "draft")]
    for path, profile in zip(names, profiles, strict=True):
        write_profile(path, profile)
    words = [word for path in names for word in ("--profile", str(path))]
    assert main_plan(["--trace", str(folder / "trace.npz"), *words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["body"]["chosen"]["speedup"]["speedup"], err


@pytest.mark.parametrize(
    ("kind", "pause_s"),
    [(kind, 36_000.0) for kind in ("segment", "exit", "round", "target_prefill")]
    + [("verify", pause_s) for pause_s in PAUSES_S],
)
def test_a_plan_is_the_same_with_one_paused_pass_and_names_it(
    kind: PassKind, pause_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evidence(tmp_path)
    steady = [scattered(profile) for profile in (target_profile(), draft_profile())]
    steady = [with_rare_width(profile, kind) if kind in profile.samples.kind else profile for profile in steady]
    expected, warning = planned(tmp_path, steady, capsys)
    assert "was the process stopped" not in warning
    paused = [
        replace(profile, samples=with_pause(profile.samples, kind, pause_s)) if kind in profile.samples.kind else profile
        for profile in steady
    ]
    interval, warning = planned(tmp_path, paused, capsys)
    assert interval == {end: SAME(value, rel=0.02) for end, value in expected.items()}
    assert interval["high"] - interval["low"] == SAME(expected["high"] - expected["low"], rel=0.05)
    assert f"1 {kind.replace('_', ' ')} pass of " in warning
    assert "was the process stopped" in warning


@pytest.mark.parametrize("pause_s", PAUSES_S)
def test_a_paused_pass_does_not_change_the_price_of_a_rare_pass(pause_s: float) -> None:
    steady = with_rare_width(scattered(target_profile()), "verify")
    paused = replace(steady, samples=with_pause(steady.samples, "verify", pause_s))
    expected, actual = (MeasuredLatency(profile) for profile in (steady, paused))
    assert actual.line("verify", 0, 14).base_s == SAME(expected.line("verify", 0, 14).base_s, rel=0.03)
    assert actual.error_frac == SAME(expected.error_frac, rel=0.1)


@pytest.mark.parametrize("pause_s", [10.0, 1e300])
def test_a_paused_pass_does_not_change_a_fit(pause_s: float) -> None:
    profiles = [with_rare_width(made_profile(model, noise_frac=0.02), "verify") for model in MODELS[:2]]
    paused = [replace(profile, samples=with_pause(profile.samples, "verify", pause_s)) for profile in profiles]
    expected, actual = fit_latency(profiles), fit_latency(paused)
    assert actual.error_frac == SAME(expected.error_frac, rel=0.1)
    assert actual.law.layer_s == SAME(expected.law.layer_s, rel=0.05)


@pytest.mark.parametrize("pause_s", PAUSES_S)
def test_a_paused_pass_does_not_change_a_comparison(pause_s: float, tmp_path: Path) -> None:
    assert main_plan([*write_evidence(tmp_path), "--json", "-o", str(tmp_path / "plan.json")]) == 0
    plan = PLAN_FILE.read(tmp_path / "plan.json")
    profiles = [tmp_path / "target.latency.json", tmp_path / "draft.latency.json"]
    report = make_report(plan.record, plan.sha256, make_trace())

    def paused_arm(arm: Arm) -> Arm:
        return replace(arm, samples=with_pause(arm.samples, "verify", pause_s))

    assert report.plain_arm is not None
    paused = replace(report, plan_arm=paused_arm(report.plan_arm), plain_arm=paused_arm(report.plain_arm))
    expected, actual = (
        compare(plan, Stored(record=measured, provenance=provenance(), sha256="d" * 64), profiles)
        for measured in (report, paused)
    )
    assert [part.error_frac for part in actual.passes] == SAME([part.error_frac for part in expected.passes], abs=1e-6)


def test_a_short_stall_counts_no_more_than_ten_passes() -> None:
    profile = scattered(target_profile())
    stalled = replace(profile, samples=with_pause(profile.samples, "verify", 0.9))  # 225 times the typical one
    assert MeasuredLatency(stalled).error_frac < 0.02


def test_the_error_of_a_drifting_device_is_cut_at_that_of_an_unmeasured_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evidence(tmp_path)
    profile, number = target_profile(), len(target_profile().samples)
    passes = list(profile.samples)
    shuffled = [passes[index] for index in np.random.default_rng(0).permutation(number).tolist()]
    drifting = (p._replace(seconds=p.seconds * (9.0 if index < number // 12 else 0.02)) for index, p in enumerate(shuffled))
    wild = replace(profile, samples=PassSamples.from_passes(drifting))
    assert MeasuredLatency(wild).error_frac == WIDEST_ERROR_FRAC
    interval, warning = planned(tmp_path, [wild, draft_profile()], capsys)
    assert "the passes of ref-target-16 scatter too much for a prediction (one sigma is capped at 50.0 %)" in warning
    assert interval["high"] <= WIDEST_FACTOR * interval["value"]


def test_no_interval_is_wider_than_a_factor_of_ten_on_either_side() -> None:
    assert ratio_interval(2.0, below=1e300, above=math.inf).low == SAME(0.2)
    assert ratio_interval(2.0, below=0.0, above=1e300).high == SAME(20.0)
    assert ratio_interval(2.0, below=0.1, above=math.inf).is_clipped
    assert ratio_interval(2.0, below=math.inf, above=0.1).is_clipped
    assert not ratio_interval(2.0, below=2.0, above=2.0).is_clipped


def test_a_measured_speedup_of_extreme_seconds_has_an_interval() -> None:
    runs, plain = ([Decoded(num_tokens=10, decode_s=pass_s) for pass_s in each] for each in ((1.0, 1e300), (2.0, 2.0)))
    interval = measured_speedup(runs, plain, mean_round_cost({"verify": 1.0}, num_rounds=1)).speedup
    assert interval.high == SAME(WIDEST_FACTOR * interval.value)
