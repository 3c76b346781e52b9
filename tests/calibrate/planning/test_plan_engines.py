"""Engines side by side."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.plan_engines import NOT_PROFILED, make_engine_plans, plan_engines
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.errors import UserInputError
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.known_engines import ENGINES
from perfmodel.results.engine_plans import EnginePlan, EnginePlans
from tests.calibrate.engines.simulate_engine import SimulatedEngine
from tests.calibrate.factories import make_trace, provenance, unfolded
from tests.calibrate.planning.test_plan_for_engine import write_engine_profile

FAST = SimulatedEngine(verify_steps=lambda rows: 1 + 0.02 * rows)
QUANTISED = SimulatedEngine(
    shape=RoundShape(rereads_block=True), plain_s=8e-4, verify_steps=lambda rows: 1.2 * rows if rows > 1 else 1.0
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A trace and three engine profiles, as flags."""
    monkeypatch.chdir(tmp_path)
    TRACE_FILE.write("trace.npz", make_trace(), provenance())
    profiles = (("openvino", "f32", FAST), ("llama.cpp", "f32", FAST), ("llama.cpp", "q8_0", QUANTISED))
    flags = ["--trace", "trace.npz"]
    for engine, weights, simulated in profiles:
        path = Path(f"{engine}-{weights}.json")
        write_engine_profile(path, simulated.profile(make_trace(), (1, 4), (3, 8)), engine=engine, weights=weights)
        flags += ["--profile", str(path)]
    return flags


@pytest.fixture
def plans(files: list[str]) -> EnginePlans:
    paths = [Path(word) for word in files if word.endswith(".json")]
    return make_engine_plans(PlanRequest(trace=Path("trace.npz"), profiles=tuple(paths)))


def test_every_profile_has_a_plan_the_fastest_first_and_other_engines_none(plans: EnginePlans) -> None:
    names = [(plan.engine, plan.engine_setting.weights if plan.engine_setting else "") for plan in plans.plans]
    assert sorted(names) == [("llama.cpp", "f32"), ("llama.cpp", "q8_0"), ("openvino", "f32")]
    rates = [plan.tokens_per_s for plan in plans.plans]
    assert rates == sorted(rates, reverse=True)
    refused = {entry.engine: entry.problem for entry in plans.engines if entry.plan is None}
    assert refused == dict.fromkeys(ENGINES.keys() - {"llama.cpp", "openvino"}, NOT_PROFILED)


def test_the_same_draft_pays_in_one_engine_and_not_in_another(plans: EnginePlans) -> None:
    by_weights = {plan.engine_setting.weights: plan for plan in plans.plans if plan.engine_setting}
    assert by_weights["q8_0"].policy is None
    assert by_weights["f32"].policy is not None


def test_plans_are_read_as_they_were_written_and_print_the_same(plans: EnginePlans, tmp_path: Path) -> None:
    plans.save(tmp_path / "plans.json")
    loaded = EnginePlans.load(tmp_path / "plans.json")
    assert loaded == plans
    assert str(loaded) == str(plans)
    assert "llama.cpp q8_0" in loaded.explain()
    profiled = {name for name in plans.inputs if name.startswith("target latency of llama.cpp")}
    assert profiled == {f"target latency of llama.cpp b1, {weights}, 1 x a CPU, 1 thread" for weights in ("f32", "q8_0")}


def test_the_command_prints_one_screen_and_how_to_plan_for_the_fastest(files: list[str], capsys) -> None:
    assert main_plan([*files, "--engine", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    text = unfolded("\n".join(lines))
    assert "do not speculate" in text
    assert "No plan for s2d, vllm, sglang, tensorrt-llm, onnxruntime, transformers, mlx-lm: not profiled." in text
    following = text.partition("next: ")[2]
    assert following.startswith("s2d-plan --trace trace.npz --profile ")
    assert following.count("--profile") == 1
    assert main_plan([*following.split()[1:-1], "plan.json"]) == 0


def test_profiles_of_equal_names_in_two_folders_are_two_profiles(files: list[str], tmp_path: Path, capsys) -> None:
    paths = []
    for engine, simulated in (("openvino", FAST), ("llama.cpp", QUANTISED)):
        (tmp_path / engine).mkdir()
        paths.append(tmp_path / engine / "engine.json")
        write_engine_profile(paths[-1], simulated.profile(make_trace(), (1, 4), (3, 8)), engine=engine)
    plans = make_engine_plans(PlanRequest(trace=Path("trace.npz"), profiles=tuple(paths)))
    assert {plan.engine: plan.policy is None for plan in plans.plans} == {"openvino": False, "llama.cpp": True}
    flags = [word for path in paths for word in ("--profile", str(path))]
    assert main_plan(["--trace", "trace.npz", *flags, "--engine", "all"]) == 0
    following = capsys.readouterr().out.partition("next: ")[2]
    assert following.count("--profile") == 1
    assert f"{plans.fastest.engine}/engine.json" in following


def test_one_setting_profiled_twice_is_planned_from_the_faster_file(files: list[str], capsys) -> None:
    again = Path("again.json")
    write_engine_profile(again, FAST.profile(make_trace(), (1, 4), (3, 8), seed=7), engine="openvino", weights="f32")
    assert main_plan([*files, "--profile", str(again), "--engine", "all"]) == 0
    assert capsys.readouterr().out.partition("next: ")[2].count("--profile") == 1


def test_many_plans_are_one_screen_and_explain_prints_them_all(plans: EnginePlans) -> None:
    first, *others = plans.engines
    assert first.plan is not None
    assert first.plan.engine_setting is not None
    many = tuple(
        replace(first, plan=replace(first.plan, engine_setting=replace(first.plan.engine_setting, weights=f"w{number}")))
        for number in range(10)
    )
    text = str(replace(plans, engines=(*many, *others)))
    assert len(text.splitlines()) <= 24
    assert f"{10 + len(plans.planned) - 1 - 7} slower" in text
    assert all(f"w{number}" in replace(plans, engines=(*many, *others)).explain() for number in range(10))


def test_the_verdict_says_what_the_order_does_not_mean(files: list[str], plans: EnginePlans) -> None:
    assert "Devices or threads differ" not in str(plans)
    first, *others = plans.engines
    assert first.plan is not None
    elsewhere = replace(first.plan, device=replace(first.plan.device, num_threads=8))
    text = unfolded(str(replace(plans, engines=(replace(first, plan=elsewhere), *others))))
    assert "Devices or threads differ: tokens/s compare machines too, speedups do not." in text
    guessed = tuple(replace(part, level="roofline") for part in first.plan.evidence)
    text = unfolded(str(replace(plans, engines=(replace(first, plan=replace(first.plan, evidence=guessed)), *others))))
    assert "The latencies rest on different evidence." in text
    by_datasheet = make_engine_plans(PlanRequest(target="llama-70b", device=DeviceRequest(device="h100")))
    assert "in the passes of a round only: their order is no evidence." in unfolded(str(by_datasheet))


def test_without_profiles_every_engine_that_runs_on_the_device_has_a_row() -> None:
    plans = make_engine_plans(PlanRequest(target="llama-70b", device=DeviceRequest(device="h100")))
    assert {entry.engine for entry in plans.planned} == set(ENGINES) - {"openvino"}
    [refused] = [entry for entry in plans.engines if entry.plan is None]
    assert refused.problem is not None
    assert "does not run on H100-SXM" in refused.problem
    assert "OpenVINO GenAI does not run on H100-SXM" in str(plans)
    assert "--engine" in plans.explain()


def test_the_public_function_answers_as_the_command_does(files: list[str], plans: EnginePlans) -> None:
    paths = [word for word in files if word.endswith(".json")]
    assert str(plan_engines(trace="trace.npz", profiles=paths)) == str(plans)
    assert str(plan_engines(trace="trace.npz", profiles=paths, output_tokens=8)) != str(plans)


def test_what_every_engine_meets_is_one_error() -> None:
    with pytest.raises(UserInputError, match="unknown target 'llama-7b0'"):
        make_engine_plans(PlanRequest(target="llama-7b0"))


def test_all_engines_go_with_one_target_and_one_trace(files: list[str], capsys) -> None:
    for more, message in (
        (["--targets", "a,b"], "--engine plans for one target"),
        (["--by-category"], "--engine plans for one target"),
        (["--trace", "other.npz"], "--engine all compares engines with one draft"),
    ):
        assert main_plan([*(files[:2] if "--targets" not in more else []), *more, "--engine", "all"]) == 2
        assert message in capsys.readouterr().err


def test_an_entry_has_a_plan_or_a_problem(plans: EnginePlans) -> None:
    with pytest.raises(ValueError, match="either a plan or a problem"):
        EnginePlan(engine="vllm", plan=None, problem=None)
    with pytest.raises(ValueError, match="at least one engine has a plan"):
        replace(plans, engines=(EnginePlan(engine="vllm", plan=None, problem="no"),))
