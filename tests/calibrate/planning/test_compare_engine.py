"""A plan compared with the metrics of an engine: replayed rounds give no error of the acceptance, other runs are refused."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.engine_metrics.read_engine_metrics import read_engine_metrics
from calibrate.planning.compare import compare, load_pricing
from calibrate.planning.make_plan import plan as make_plan
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.engines.engine_profile import (
    ENGINE_PROFILE_FILE,
    EngineCall,
    EngineProfile,
    EngineRun,
    EngineSetting,
)
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.replay.estimate import estimate
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import sum_rounds
from perfmodel.results.engine_report import EngineCounts, EngineReport
from perfmodel.results.plan import Candidate, Plan
from perfmodel.results.residuals import RESIDUALS_FILE
from tests.calibrate.engine_metrics.recorded import DATA, PAIRS, POLICY, replayed, trace
from tests.calibrate.factories import provenance, unfolded


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A plan of what the engines ran, made from the trace of the same prompts."""
    made = make_plan("ref-target-32", draft="ref-draft", device="a100", dtype="fp32", trace=DATA / "trace.npz")
    pricing = load_pricing(made, (), None)
    assert pricing is not None
    rounds, plain = replayed(), replay_prompts(trace(), None)
    speedup = estimate(pricing.draft, pricing.target, rounds, plain)
    return replace(made, chosen=Candidate(name="plan", policy=POLICY, rounds=sum_rounds(rounds), speedup=speedup))


def as_predicted(plan: Plan, **changes: object) -> EngineReport:
    """A report of exactly the rounds and seconds that a plan predicts."""
    rounds, speedup = plan.chosen.rounds, plan.chosen.speedup
    counts = EngineCounts(
        num_requests=rounds.num_prompts,
        num_tokens=rounds.num_tokens,
        num_rounds=rounds.num_rounds,
        num_drafted=rounds.num_drafted,
        num_accepted=round(rounds.num_accepted),
        decode_s=rounds.num_rounds * speedup.round_cost.total_s,
    )
    plain = EngineCounts(num_requests=None, num_tokens=1000, decode_s=1000 / speedup.plain_tokens_per_s)
    report = EngineReport(
        files=(),
        engine="s2d",
        version=None,
        model="ref-target-32",
        draft_tokens=POLICY.tokens,
        concurrency=1,
        runs=(counts,),
        plain_runs=(plain,),
    )
    return replace(report, **changes)  # type: ignore[arg-type]


def test_a_run_as_predicted_has_no_error(plan: Plan) -> None:
    residuals = compare(plan, engine_metrics=as_predicted(plan))
    assert residuals.acceptance_error_frac == pytest.approx(0, abs=1e-9)
    assert residuals.latency_error_frac == pytest.approx(0, abs=1e-9)
    assert residuals.next_step == "nothing: both errors are within 2.0 %"
    assert residuals.notes == ()


def test_onnxruntime_ran_the_replayed_rounds(plan: Plan) -> None:
    residuals = compare(plan, engine_metrics=DATA / "onnxruntime-draft.jsonl")
    assert residuals.measured_tokens_per_round == residuals.predicted_tokens_per_round
    assert residuals.acceptance_error_frac == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("file_format", PAIRS)
def test_the_acceptance_of_every_engine_is_as_replayed(file_format: str, plan: Plan) -> None:
    """Engines emit the first of 64 tokens with the prompt's pass, and some draft beyond the limit in the last round."""
    residuals = compare(plan, engine_metrics=read_engine_metrics(*PAIRS[file_format]))
    assert residuals.predicted_tokens_per_round / residuals.measured_tokens_per_round - 1 <= 1.001 / 63
    assert 0 <= residuals.acceptance_error_frac < 0.04
    total = residuals.total_error_frac
    assert total is not None
    assert residuals.latency_error_frac is not None
    assert residuals.acceptance_error_frac + residuals.latency_error_frac == pytest.approx(total, abs=1e-12)


def test_other_weights_are_refused_and_another_version_is_said(plan: Plan) -> None:
    setting = EngineSetting(
        engine="llama.cpp", version="b1", weights="q8_0", device="a CPU", num_devices=1, num_threads=1, options=()
    )
    profiled = replace(plan, engine="llama.cpp", engine_setting=setting)
    report = as_predicted(plan, engine="llama.cpp", version="b2", weights="q8_0")
    assert compare(profiled, engine_metrics=report).notes == (
        "the plan's engine was profiled in version b1, the run was in b2",
    )
    with pytest.raises(Mismatch, match="made for weights q8_0, not for weights f32"):
        compare(profiled, engine_metrics=replace(report, weights="f32"))


def test_repeats_of_a_prompt_are_one_sample(plan: Plan) -> None:
    def arm(seconds: dict[str, float], repeats: int) -> tuple[EngineCounts, ...]:
        return tuple(
            EngineCounts(prompt=name, num_tokens=60, num_rounds=20, decode_s=decode_s)
            for name, decode_s in seconds.items()
            for _ in range(repeats)
        )

    runs, plain = {"a": 1.0, "b": 2.0, "c": 1.5}, {"c": 3.0, "a": 2.5, "b": 3.5}
    once, repeated = (as_predicted(plan, runs=arm(runs, n), plain_runs=arm(plain, n)) for n in (1, 4))
    assert once.speedup is not None
    assert once.speedup == repeated.speedup
    assert (once.num_prompts, repeated.num_prompts) == (3, 3)


def test_slower_rounds_are_an_error_of_the_seconds_only(plan: Plan) -> None:
    report = as_predicted(plan)
    [run] = report.runs
    assert run.decode_s is not None
    slower = replace(report, runs=(replace(run, decode_s=1.25 * run.decode_s),))
    residuals = compare(plan, engine_metrics=slower)
    assert residuals.acceptance_error_frac == pytest.approx(0, abs=1e-9)
    assert residuals.latency_error_frac == pytest.approx(0.25)
    assert residuals.next_step.startswith("most of the error is in the seconds")


def test_fewer_accepted_tokens_are_an_error_of_the_acceptance_only(plan: Plan) -> None:
    report = as_predicted(plan)
    [run] = report.runs
    assert run.num_tokens is not None
    fewer = replace(report, runs=(replace(run, num_tokens=run.num_tokens - 200),))
    residuals = compare(plan, engine_metrics=fewer)
    assert residuals.acceptance_error_frac == pytest.approx(200 / (run.num_tokens - 200))
    assert residuals.latency_error_frac == pytest.approx(0, abs=1e-9)
    assert "record it on prompts like those that were served: s2d-profile acceptance" in residuals.next_step


def test_without_plain_decoding_only_the_acceptance_is_compared(plan: Plan) -> None:
    residuals = compare(plan, engine_metrics=PAIRS["llama.cpp-answers"][0])
    assert (residuals.measured_speedup, residuals.latency_error_frac, residuals.total_error_frac) == (None, None, None)
    assert residuals.acceptance_error_frac == pytest.approx(
        residuals.predicted_speedup / residuals.repriced_speedup - 1, abs=1e-12
    )
    text = unfolded(str(residuals))
    assert (
        "no speedup was measured, because plain decoding (--plain-metrics) is missing: only the acceptance is compared" in text
    )
    assert "latency unknown seconds per measured round" in text
    assert "speedup" in text
    assert "not reported" in text


def test_the_engines_own_estimate_of_plain_decoding_is_used_if_it_has_one(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "statistics.jsonl"
    text = (DATA / "onnxruntime-draft.jsonl").read_text()
    path.write_text(text.replace('"target_baseline_ms_per_token": 0.0', '"target_baseline_ms_per_token": 5.0'))
    residuals = compare(plan, engine_metrics=path)
    report = read_engine_metrics(path)
    assert report.total.tokens_per_s is not None
    assert residuals.measured_speedup == pytest.approx(report.total.tokens_per_s * 0.005)
    assert any("own estimate" in note for note in residuals.notes)


def test_seconds_of_draft_and_target_are_compared_where_the_engine_times_them(plan: Plan) -> None:
    residuals = compare(plan, engine_metrics=read_engine_metrics(*PAIRS["openvino"]))
    assert [(part.arm, part.kind, part.num_passes) for part in residuals.passes] == [
        ("plan", "segment", 442),
        ("plan", "verify", 91),
        ("plain", "verify", 378),
    ]
    assert "draft segments" in residuals.explain()


def test_the_acceptance_by_position_is_compared_where_the_engine_counts_it(plan: Plan) -> None:
    residuals = compare(plan, engine_metrics=PAIRS["llama.cpp-prometheus"][0])
    assert residuals.measured_by_position == pytest.approx([count / 91 for count in (78, 67, 57, 47, 38)])
    assert residuals.predicted_by_position == pytest.approx(residuals.measured_by_position, abs=0.03)
    assert "rounds that accept at least" in residuals.explain()
    assert "rounds that accept at least" not in str(residuals)


def test_a_mean_acceptance_length_alone_is_enough(plan: Plan) -> None:
    runs = (EngineCounts(num_requests=8, num_tokens=1016, acceptance_length=plan.chosen.rounds.tokens_per_round),)
    residuals = compare(plan, engine_metrics=as_predicted(plan, runs=runs, draft_tokens=None))
    assert residuals.acceptance_error_frac == pytest.approx(0, abs=1e-9)
    assert residuals.measured_round_s is None


Change = Callable[[Plan], Plan]
REFUSED: list[tuple[Change, str]] = [
    (lambda plan: replace(plan, engine="openvino"), "was made for engine openvino, not for engine vllm"),
    (lambda plan: with_policy(plan, replace(POLICY, tokens=8)), "was made for draft length 8, not for draft length 5"),
    (lambda plan: with_policy(plan, None), "was made for plain decoding, not for a run with a draft"),
    (
        lambda plan: with_policy(plan, Policy(exits=(2, 4), thresholds=(0.5,), tokens=5)),
        "not for an engine, which drafts with one exit alone",
    ),
    (
        lambda plan: with_policy(plan, replace(POLICY, tokens=4, stop=ConfidenceFloor(floor=0.1))),
        "was made for 4 drafted tokens per round, not for a run with 5.00 drafted and 4.15 emitted tokens per round",
    ),
]


def with_policy(plan: Plan, policy: Policy | None) -> Plan:
    return replace(plan, chosen=replace(plan.chosen, policy=policy))


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_metrics_of_another_run_are_refused(change: Change, message: str, plan: Plan) -> None:
    with pytest.raises(Mismatch, match=message):
        compare(change(plan), engine_metrics=PAIRS["vllm-answers"][0])


def test_another_draft_length_is_seen_in_the_counters(plan: Plan) -> None:
    with pytest.raises(Mismatch, match=r"made for 8 drafted tokens per round, not for a run with 4\.86 drafted"):
        compare(with_policy(plan, replace(POLICY, tokens=8)), engine_metrics=PAIRS["llama.cpp-answers"][0])


def test_metrics_without_acceptance_are_refused(plan: Plan) -> None:
    runs = (EngineCounts(num_requests=8, num_tokens=1016),)
    with pytest.raises(UserInputError, match=r"metrics have no acceptance, expected rounds and tokens, or a mean"):
        compare(plan, engine_metrics=as_predicted(plan, runs=runs))


def test_what_may_not_fit_is_said(plan: Plan) -> None:
    report = as_predicted(plan, engine="vllm", model="/models/Llama-3.1-8B", concurrency=16)
    notes = compare(plan, engine_metrics=report).notes
    assert "the plan prices the bundled runtime, the run was in vllm" in notes[0]
    assert "the engine served '/models/Llama-3.1-8B', the plan's target is 'ref-target-32'" in notes[1]
    assert notes[2] == "16 requests ran at a time, the plan is for a batch of 1"


def test_either_a_report_or_metrics_are_given(plan: Plan) -> None:
    for given in ({}, {"report": DATA, "engine_metrics": DATA}):
        with pytest.raises(UserInputError, match="expected either --report or --engine-metrics"):
            compare(plan, **given)  # type: ignore[arg-type]


def call(name: str, num_tokens: int, num_rounds: int | None, decode_s: float) -> EngineCall:
    return EngineCall(
        prompt=name,
        prompt_tokens=40,
        num_tokens=num_tokens,
        decode_s=decode_s,
        output_sha256="0" * 64,
        num_rounds=num_rounds,
        num_drafted=None if num_rounds is None else POLICY.tokens * num_rounds,
        num_accepted=None if num_rounds is None else num_tokens - 1 - num_rounds,
    )


def write_profile(path: Path, plan: Plan, *, target_sha256: str = "a" * 64) -> Path:
    """A profile of two exits at 5 tokens and plain decoding, over three prompts."""
    names = ("p", "q", "r")
    runs = [
        EngineRun(
            exit_layer=layer,
            draft_tokens=length,
            floor=None,
            is_draft_alone=False,
            calls=tuple(call(name, 64, num_rounds, seconds * (1 + 0.1 * n)) for n, name in enumerate(names)),
        )
        for layer, length, num_rounds, seconds in ((None, 0, None, 0.2), (2, 5, 18, 0.12), (4, 5, 15, 0.1))
    ]
    profile = EngineProfile(
        setting=EngineSetting(
            engine="llama.cpp", version="b11434", weights="f32", device="a CPU", num_devices=1, num_threads=1
        ),
        target=plan.target,
        target_sha256=target_sha256,
        draft=plan.draft,
        draft_sha256=plan.draft_sha256 or "b" * 64,
        tokenizer_sha256=None,
        max_new_tokens=64,
        runs=tuple(runs),
    )
    ENGINE_PROFILE_FILE.write(path, profile, provenance())
    return path


def test_the_run_of_an_engine_profile_with_the_plans_policy_is_taken(plan: Plan, tmp_path: Path) -> None:
    served = replace(plan, engine="llama.cpp", target_sha256="a" * 64)
    residuals = compare(served, engine_metrics=write_profile(tmp_path / "profile.json", plan))
    assert (residuals.engine, residuals.measured_prompts) == ("llama.cpp", 3)
    assert residuals.measured_tokens_per_round == pytest.approx(63 / 15)
    assert residuals.measured_speedup == pytest.approx(2.0)
    assert residuals.measured_interval is not None
    assert math.isclose(residuals.measured_interval.value, 2.0)


def test_a_profile_without_the_plans_run_or_of_another_target_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = write_profile(tmp_path / "profile.json", plan)
    longer = with_policy(plan, replace(POLICY, tokens=8))
    with pytest.raises(Mismatch, match=r"made for exit 2 with 5 tokens, exit 4 with 5 tokens, not for exit 4, 8 tokens"):
        compare(longer, engine_metrics=path)
    other = write_profile(tmp_path / "other.json", plan, target_sha256="c" * 64)
    with pytest.raises(Mismatch, match="was made for target aaaaaaaaaaaa, not for target cccccccccccc"):
        compare(replace(plan, target_sha256="a" * 64), engine_metrics=other)
    with pytest.raises(UserInputError, match="holds several runs, expected the policy of one"):
        read_engine_metrics(path)


def command(plan: Plan, folder: Path, *flags: str) -> list[str]:
    plan.save(folder / "plan.json")
    return ["--plan", str(folder / "plan.json"), *flags]


def test_the_command_reads_both_arms_and_writes_the_comparison(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plain = ([str(path) for path in paths] for paths in PAIRS["vllm-prometheus"])
    flags = ["--engine-metrics", *run, "--plain-metrics", *plain, "--engine", "vllm", "--format", "vllm-prometheus"]
    assert main_compare(command(plan, tmp_path, *flags, "-o", str(tmp_path / "residuals.json"))) == 0
    text = unfolded(capsys.readouterr().out)
    assert "engine vllm planned 1 x A100" in text
    assert "priced the engine's rounds and drafted tokens, with the plan's mean seconds" in text
    residuals = RESIDUALS_FILE.read(tmp_path / "residuals.json").record
    assert residuals.measured_speedup == pytest.approx(2.486, abs=0.001)
    assert residuals.measured_interval is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected either --report or --engine-metrics"),
        (["--report", "r.json", "--engine-metrics", "m.json"], "expected either --report or --engine-metrics"),
        (
            ["--engine-metrics", str(DATA / "vllm-draft-bench.json"), "--profile", "p.json"],
            "--profile and --fit price the passes",
        ),
        (["--report", "r.json", "--plain-metrics", "m.json"], "--plain-metrics belongs to --engine-metrics"),
        (["--report", "r.json", "--engine", "vllm"], "--engine belongs to --engine-metrics"),
        (["--report", "r.json", "--format", "vllm-bench"], "--format belongs to --engine-metrics"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(
    flags: list[str], message: str, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_compare(command(plan, tmp_path, *flags)) == 2
    assert message in capsys.readouterr().err
