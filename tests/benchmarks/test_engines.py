"""engines.py: what is held out, how it is measured and scored in a simulated engine, and the 1.1B pair in small."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import engines
import pytest
import torch

from details.engines.counting_pair import EXITS, Shape, agreed_steps, counting_evidence
from details.engines.evidence import PairEvidence
from details.engines.measure import Measured, Requested, Workplace, measure_setting, policy_of
from details.engines.predict import cost_ratio
from details.engines.result import SettingResult, result_of, setting_result
from details.engines.sizes import BIG, FULL, QUICK, EngineSize, Setting, chosen_settings, drafting
from details.engines.texts import TextDifference, first_unexplained
from details.engines.time_left import TimeLeft
from details.engines.timing import half_difference_frac, measured_speedup, plain_noise_frac
from perfmodel.acceptance.trace import Trace
from perfmodel.core.console import run_command
from perfmodel.core.errors import UserInputError
from perfmodel.core.provenance import make_provenance
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineCall, EngineProfile, EngineRun
from perfmodel.engines.known_engines import ENGINES
from perfmodel.policies.policy import ConfidenceFloor
from profiler.engines.engine_request import PLAIN, Arm, EngineProfileRequest
from profiler.engines.measure_engine import take_turns
from s2d.engines.environments import is_installed
from s2d.loading.load_model import load_model
from s2d.prompts.conversation import Prompt
from tests.calibrate.engines.simulate_engine import SimulatedEngine
from tests.calibrate.factories import NUM_POSITIONS, make_trace

SETTING = Setting(
    engine="llama.cpp",
    weights="f32",
    held_out=((2, 3), (4, 3), (4, 6), (6, 11)),
    num_prompts=6,
    profile_prompts=6,
    minutes=2,
)
SIZE = EngineSize(settings=(SETTING,), traced_prompts=8, max_new_tokens=NUM_POSITIONS, num_repeats=2, plain_calls=1)
SIMULATED = SimulatedEngine(shape=ENGINES["llama.cpp"].round_shape, verify_steps=lambda rows: 1 + 0.15 * (rows - 1))


@cache
def evidence() -> PairEvidence:
    """Eight prompts in each half."""
    calibration, other = make_trace(), make_trace(seed=1)
    renamed = tuple(replace(prompt, name=f"held-out/{prompt.name}") for prompt in other.header.prompts)
    evaluation = replace(other, header=replace(other.header, prompts=renamed))
    return PairEvidence(
        target="target",
        draft="draft",
        exits=calibration.header.exit_layers,
        calibration_prompts=prompts_of(calibration),
        calibration=calibration,
        evaluation_prompts=prompts_of(evaluation),
        evaluation=evaluation,
    )


def prompts_of(trace: Trace) -> tuple[Prompt, ...]:
    return tuple(Prompt(name=name, category="code", text="x") for name in names_of(trace))


def names_of(trace: Trace) -> list[str]:
    return [prompt.name for prompt in trace.header.prompts]


class Simulation:
    """Answers requests for profiles with those of a simulated engine, and keeps the requests."""

    def __init__(self, simulated: SimulatedEngine = SIMULATED, *, slowing: float = 0.0) -> None:
        self.simulated = simulated
        self.slowing = slowing
        """Share by which plain decoding becomes slower with every visit to a prompt; nothing else does."""
        self.num_visits = 0
        self.requests: list[tuple[str, tuple[Arm, ...]]] = []
        self.runs: list[int] = []
        """Number of profiles that took turns, by measurement."""

    def __call__(self, requested: Sequence[Requested]) -> list[EngineProfile]:
        self.runs.append(len(requested))
        profiles = [self._noise_free(request, prompts) for request, prompts in requested]
        once = [
            (number, requested[number][1][index].name) for number, index in take_turns([len(part[1]) for part in requested])
        ]
        visits: dict[tuple[int, str], list[int]] = {}
        for turn in once * requested[0][0].repeats:
            visits.setdefault(turn, []).append(self.num_visits)
            self.num_visits += 1
        drifted = [self._drifted(profile, number, visits) for number, profile in enumerate(profiles)]
        for (request, _), profile in zip(requested, drifted, strict=True):
            ENGINE_PROFILE_FILE.write(request.file, profile, make_provenance())
        return drifted

    def _drifted(self, profile: EngineProfile, number: int, visits: dict[tuple[int, str], list[int]]) -> EngineProfile:
        runs = []
        for run in profile.runs:
            left = {name: iter(when) for (part, name), when in visits.items() if part == number}
            numbered = [replace(call, visit=next(left[call.prompt])) for call in run.calls]
            slowing = self.slowing if run.is_plain else 0.0
            calls = (replace(call, decode_s=call.decode_s * (1 + slowing * (call.visit or 0))) for call in numbered)
            runs.append(replace(run, calls=tuple(calls)))
        return replace(profile, runs=tuple(runs))

    def _noise_free(self, request: EngineProfileRequest, prompts: Sequence[Prompt]) -> EngineProfile:
        arms = request.configurations or ()
        self.requests.append((request.file.name, arms))
        names = [prompt.name for prompt in prompts]
        trace = next(part for part in (evidence().calibration, evidence().evaluation) if names[0] in names_of(part))
        kept = trace.subset([number for number, name in enumerate(names_of(trace)) if name in names])
        lengths = sorted({arm.draft_tokens for arm in arms} - {0})
        full = self.simulated.profile(kept, evidence().exits, lengths, repeats=request.repeats)
        runs = tuple(run for run in full.runs if Arm.of(run) in arms)
        return replace(full, setting=replace(full.setting, num_threads=request.threads), runs=runs)


def measured(folder: Path, simulation: Simulation, *, profile_first: bool = False) -> Measured:
    place = Workplace(folder=folder, threads=1, is_fresh=False, profile_first=profile_first, run=simulation)
    return measure_setting(SETTING, SIZE, evidence(), place)


def latency_errors(folder: Path, *, profile_first: bool) -> list[float]:
    """Of the held-out configurations, where plain decoding becomes a third slower over the measurement."""
    simulation = Simulation(slowing=1 / 3 / (2 * 12))
    result = setting_result(measured(folder, simulation, profile_first=profile_first), [])
    return [abs(outcome.latency_error_frac) for outcome in result.outcomes]


def test_a_noise_free_engine_is_predicted_from_its_profile(tmp_path: Path) -> None:
    result = setting_result(measured(tmp_path, Simulation()), [])
    assert {outcome.arm for outcome in result.outcomes} >= {drafting(*pair) for pair in SETTING.held_out}
    assert all(abs(outcome.acceptance_error_frac) < 0.02 for outcome in result.outcomes)
    assert all(abs(outcome.error_frac) < 0.06 for outcome in result.outcomes)
    assert all(outcome.rounds_over_trace_frac == 0 and outcome.check.num_equal == 6 for outcome in result.outcomes)
    summary = result_of([result])
    assert (summary["num_engines"], summary["num_configs"], summary["noise_frac"]) == (1, len(result.outcomes), 0)
    assert summary["replayed_rounds_equal_frac"] == 1


def test_drift_of_plain_decoding_is_no_error_where_profile_and_evaluation_take_turns(tmp_path: Path) -> None:
    together, profile_first = (latency_errors(tmp_path, profile_first=first) for first in (False, True))
    assert max(together) < 0.05
    assert min(profile_first) > 0.08


def test_profile_and_evaluation_are_one_measurement_and_the_plan_is_measured_after_them(tmp_path: Path) -> None:
    simulation = Simulation()
    found = measured(tmp_path, simulation)
    assert simulation.runs == [2, 1]
    wanted = {PLAIN, found.chosen, found.default}
    assert wanted <= set(found.decision_request.configurations or ())
    assert set(found.held_out) & {Arm.of(run) for run in found.decision.runs}
    simulation = Simulation()
    measured(tmp_path / "other", simulation, profile_first=True)
    assert simulation.runs == [1, 1, 1]


def test_a_lost_evaluation_is_measured_alone(tmp_path: Path) -> None:
    measured(tmp_path, Simulation())
    (tmp_path / "target" / "llama.cpp-f32.evaluation.json").unlink()
    simulation = Simulation()
    measured(tmp_path, simulation)
    assert [name for name, _ in simulation.requests] == ["llama.cpp-f32.evaluation.json"]


def test_the_time_left_follows_the_pace_of_settings_that_were_not_kept() -> None:
    settings = [replace(SETTING, weights=weights) for weights in ("f32", "bf16", "q8_0", "q4_0")]
    clock = iter((0.0, 1.0, 241.0, 481.0))
    time_left = TimeLeft(settings, lambda: next(clock))
    lines = [time_left.begin(setting) for setting in settings]
    assert lines[0] == "llama.cpp f32: setting 1 of 4, about 8 min 00 s left"
    assert lines[1].endswith("about 6 min 00 s left")  # the first was measured before
    assert lines[2].endswith("about 8 min 00 s left")  # the second took twice its estimate
    assert lines[3].endswith("setting 4 of 4, about 4 min 00 s left")


def test_the_full_run_without_vllm_takes_at_most_50_minutes_by_its_estimate() -> None:
    assert sum(setting.minutes for setting in FULL.settings if setting.engine != "vllm") <= 50


def test_nothing_that_is_scored_is_in_the_profile(tmp_path: Path) -> None:
    simulation = Simulation()
    found = measured(tmp_path, simulation)
    (profile_name, profiled), (evaluation_name, evaluated), _ = simulation.requests
    assert (profile_name, evaluation_name) == ("llama.cpp-f32.profile.json", "llama.cpp-f32.evaluation.json")
    assert not set(found.held_out) & set(profiled)
    assert {PLAIN, *found.held_out} == set(evaluated)
    prompts = [{call.prompt for run in part.runs for call in run.calls} for part in (found.profile, found.evaluation)]
    assert not prompts[0] & prompts[1]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first, second = Simulation(), Simulation()
    before, after = measured(tmp_path, first), measured(tmp_path, second)
    assert len(first.requests) == 3
    assert second.requests == []
    assert before.evaluation == after.evaluation


@pytest.mark.parametrize("size", [FULL, BIG, QUICK], ids=["full", "big", "quick"])
def test_held_out_configurations_differ_from_the_profiles(size: EngineSize) -> None:
    ends = (2, 4) if size is BIG else (1, 6)
    offenders = [
        (setting.label, pair)
        for setting in size.settings
        for pair in setting.held_out
        if drafting(*pair) in setting.profiled(ends)
    ]
    assert offenders == []


def test_the_full_run_has_enough_engines_and_configurations() -> None:
    assert len({setting.engine for setting in FULL.settings}) >= 4
    assert sum(len(setting.held_out) for setting in FULL.settings) >= 60


def test_settings_are_chosen_by_engine_and_weights() -> None:
    assert [setting.label for setting in chosen_settings(FULL, ["llama.cpp"], ["q8_0"]).settings] == ["llama.cpp q8_0"]
    with pytest.raises(UserInputError, match="no setting is left"):
        chosen_settings(QUICK, ["vllm"], None)


def run_with(seconds: Sequence[float], *, arm: Arm = PLAIN, untimed: int = 1, waited: Sequence[float] = ()) -> EngineRun:
    """Two prompts, each with the same calls."""
    calls = tuple(
        EngineCall(
            prompt=name,
            prompt_tokens=10,
            num_tokens=33,
            decode_s=value,
            output_sha256="0" * 64,
            waited_frac=waited[number] if waited else 0.0,
            untimed_tokens=untimed,
        )
        for name in ("a", "b")
        for number, value in enumerate(seconds)
    )
    return EngineRun(
        exit_layer=arm.exit_layer,
        draft_tokens=arm.draft_tokens,
        floor=arm.floor,
        is_draft_alone=arm.is_draft_alone,
        calls=calls,
    )


def test_speedups_compare_seconds_of_timed_tokens_and_noise_compares_repeats() -> None:
    plain, faster = run_with([3.2, 3.6]), run_with([1.65, 1.65], arm=drafting(4, 3), untimed=0)
    assert measured_speedup(plain, faster) == pytest.approx((3.4 / 32) / (1.65 / 33))
    assert plain_noise_frac(plain) == pytest.approx(3.2 / 3.6 - 1)
    assert half_difference_frac(plain, faster) == pytest.approx(3.2 / 3.6 - 1)


def test_disturbed_calls_are_left_out_where_others_remain() -> None:
    plain = run_with([3.2, 6.4], waited=[0.0, 0.5])
    assert measured_speedup(plain, run_with([3.2, 3.2])) == 1
    assert measured_speedup(run_with([6.4, 6.4], waited=[0.5, 0.5]), run_with([3.2, 3.2])) == 2


def test_plain_decoding_in_other_visits_is_compared_where_memory_kept_it_apart() -> None:
    def visited(run: EngineRun, first: int) -> EngineRun:
        return replace(run, calls=tuple(replace(call, visit=first + number % 2) for number, call in enumerate(run.calls)))

    plain, faster = visited(run_with([3.2, 3.6]), 0), run_with([1.6, 1.6], arm=drafting(4, 3))
    assert measured_speedup(plain, visited(faster, 0)) == pytest.approx(3.4 / 1.6)
    assert measured_speedup(plain, visited(faster, 1)) == pytest.approx(3.6 / 1.6)
    assert measured_speedup(plain, visited(faster, 2)) == pytest.approx(3.4 / 1.6)


def test_the_cost_ratio_of_an_exit_lies_on_the_line_between_those_alone() -> None:
    profile = SIMULATED.profile(evidence().calibration, (1, 6), (2,), alone=(1, 6))
    expected = (SIMULATED.draft_pass_s + 4 * SIMULATED.draft_layer_s) / SIMULATED.plain_s
    assert cost_ratio(profile, 4) == pytest.approx(expected)


def test_a_floor_is_the_policys_stop_rule() -> None:
    assert policy_of(PLAIN) is None
    policy = policy_of(drafting(4, 20, 0.4))
    assert policy is not None
    assert (policy.exits, policy.tokens, policy.stop) == ((4,), 20, ConfidenceFloor(floor=0.4))


def test_a_text_is_explained_where_plain_decoding_goes_the_same_way_after_the_same_prefix() -> None:
    by_prefix = {(9,): (1, 2, 3, 4), (9, 1, 2): (7, 8)}

    def decode(ids: Sequence[int], count: int) -> tuple[int, ...]:
        return by_prefix.get(tuple(ids), (0,) * count)[:count]

    assert first_unexplained((9,), (1, 2, 3, 4), decode) == (None, None)
    assert first_unexplained((9,), (1, 2, 7, 8), decode) == (2, None)
    assert first_unexplained((9,), (1, 2, 7, 5), decode) == (2, 3)
    assert first_unexplained((9,), (5, 2, 3, 4), decode) == (0, 0)
    by_prefix[9, 1] = (2, 7, 5)
    assert first_unexplained((9,), (1, 2, 7, 5), decode) == (2, None)


def test_differences_are_counted_with_and_without_an_explanation(tmp_path: Path) -> None:
    excused = TextDifference(setting="llama.cpp f32", arm="exit 4, 3 tokens", prompt="a", position=7, is_excused=True)
    found: SettingResult = setting_result(measured(tmp_path, Simulation()), [excused, replace(excused, is_excused=False)])
    summary = result_of([found])
    assert (summary["num_text_differences"], summary["num_unexcused_text_differences"]) == (2, 1)


TINY = Shape(num_layers=6, hidden_size=256, intermediate_size=384, num_heads=4, num_kv_heads=2, vocab_size=4096)
TINY_SIZE = replace(SIZE, settings=(replace(SETTING, num_prompts=2),), traced_prompts=3, max_new_tokens=16)


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> PairEvidence:
    return counting_evidence(TINY_SIZE, tmp_path_factory.mktemp("counting"), TINY)


@torch.inference_mode()
def test_the_counting_target_counts_and_its_exits_agree_as_constructed(counting: PairEvidence) -> None:
    target, draft = (load_model(path, "fp32", "cpu") for path in (counting.target, counting.draft))
    steps = agreed_steps(TINY.vocab_size)
    text = torch.arange(100, 180)
    for model, added in ((target, torch.ones_like(steps)), (draft, steps)):
        decoder = model.decoder
        cache = decoder.new_cache((2, 4) if model is draft else (TINY.num_layers,), len(text))
        states = decoder.embed(text.tolist())
        for segment in cache.segments:
            states = decoder.forward_segment(states, segment, cache)
            if segment is cache.segments[-1] or model is draft:
                assert torch.equal(decoder.exit_logits(states).argmax(dim=-1), text + added[text])


def test_the_counting_trace_follows_the_prompts(counting: PairEvidence) -> None:
    trace = counting.evaluation
    assert trace.header.exit_layers == EXITS
    assert names_of(trace) == [prompt.name for prompt in counting.evaluation_prompts]
    assert all(prompt.num_positions == 16 for prompt in trace.header.prompts)
    assert 0.4 < float(trace.accept_prob.mean()) < 1
    assert not set(names_of(trace)) & set(names_of(counting.calibration))


def test_without_any_engine_the_error_names_the_command_that_installs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("S2D_ENGINES", str(tmp_path / "none"))
    monkeypatch.setattr(engines, "family_evidence", lambda *given: evidence())
    assert run_command(engines._parser(), ["--quick", "--folder", str(tmp_path)], engines.run) == 2
    assert "s2d-engines install onnxruntime" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.skipif(
    not any(is_installed(setting.engine) for setting in QUICK.settings),
    reason="$S2D_ENGINES has neither onnxruntime nor llama.cpp: s2d-engines install onnxruntime llama.cpp",
)
def test_a_quick_run_predicts_measures_and_checks_the_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shared.common.finish.__kwdefaults__", {"details": None, "folder": tmp_path / "results"})
    assert run_command(engines._parser(), ["--quick", "--folder", str(tmp_path)], engines.run) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["num_configs"] >= 3
    assert result["num_unexcused_text_differences"] == 0
    assert result["replayed_rounds_equal_frac"] > 0.8
    assert (tmp_path / "results" / "engines.quick.json").exists()
