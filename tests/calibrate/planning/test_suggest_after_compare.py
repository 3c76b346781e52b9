"""The step after a comparison: every branch, and commands that their own parsers accept."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan, plan_parser
from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from calibrate.planning.suggest_after_compare import ComparedFiles, Errors, explained_frac, next_step
from perfmodel.core.files import Stored
from perfmodel.core.stats import Interval
from perfmodel.results.plan import PLAN_FILE, Plan
from perfmodel.results.report import REPORT_FILE, RunReport
from perfmodel.results.residuals import PassResidual
from profiler.commands.profile_cli import profile_parser
from s2d.commands.run_cli import run_parser
from tests.calibrate.factories import (
    draft_profile,
    make_report,
    make_trace,
    provenance,
    target_profile,
    unfolded,
    write_evidence,
    write_profile,
)

PASSES = (
    PassResidual(arm="plan", kind="verify", num_passes=1, predicted_s=1.0, measured_s=2.0),
    PassResidual(arm="plan", kind="exit", num_passes=1, predicted_s=0.1, measured_s=0.3),
)
MODELS = "--target ref-target-16 --draft ref-draft"
PROFILE_AGAIN = f"s2d-profile latency {MODELS} --dtype fp32 --num-prompts 12 --max-new-tokens 96 --budget 25 -o mine"
COMMAND = "s2d-profile --target ref-target-16 --draft ref-draft --num-prompts 12 --max-new-tokens=96 --budget 25 -o mine"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("planned")
    assert main_plan([*write_evidence(folder), "--json", "-o", str(folder / "plan.json")]) == 0
    return PLAN_FILE.read(folder / "plan.json").record


def make_errors(acceptance_frac: float, latency_frac: float, *, is_inside: bool = False) -> Errors:
    """A measured speedup of 1.93, in the predicted interval or below it; the intervals explain up to 14 %."""
    predicted = Interval(value=2.25, low=1.9 if is_inside else 2.02, high=2.38 if is_inside else 2.5)
    return Errors(
        acceptance_frac=acceptance_frac,
        latency_frac=latency_frac,
        passes=PASSES,
        predicted=predicted,
        measured=Interval(value=1.93, low=1.85, high=2.01),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One branch of the next step."""

    errors: Errors
    expected: str
    profile_waited: float | None = None
    run_waited: float | None = None
    has_profiles: bool = True
    run_tokens: int = 64
    run_command: str = ""


CASES = {
    "both small": Case(errors=make_errors(0.015, -0.019), expected="nothing: both errors are within 2.0 %"),
    "explained": Case(
        errors=make_errors(0.01, 0.1, is_inside=True),
        profile_waited=0.188,
        expected="nothing: both errors are within 13.1 %, which the intervals of plan and run explain",
    ),
    "inside, but two large errors cancel": Case(
        errors=make_errors(-0.3, 0.31, is_inside=True),
        expected=f"most of the error is in the seconds, mostly in plan verify passes (-50.0 %): {PROFILE_AGAIN}",
    ),
    "below, profile disturbed": Case(
        errors=make_errors(0.01, 0.1),
        profile_waited=0.188,
        run_waited=0.05,
        expected="profile again on a quiet machine, as 18.8 % of the profile's processor time went to other programs: "
        f"{PROFILE_AGAIN}",
    ),
    "below, run disturbed": Case(
        errors=make_errors(0.01, 0.1),
        profile_waited=0.01,
        run_waited=0.3,
        expected="run again on a quiet machine, as 30.0 % of the run's processor time went to other programs: "
        "s2d-run --plan out/plan.json --check -o out/report.json",
    ),
    "below, run on texts of one's own disturbed": Case(
        errors=make_errors(0.01, 0.1),
        run_waited=0.3,
        run_command="s2d-run --plan p.json --prompts=own.jsonl --split all --stop 'a b' --chat --outputs o.jsonl -o r.json",
        expected="run again on a quiet machine, as 30.0 % of the run's processor time went to other programs: s2d-run --plan "
        "out/plan.json --prompts path/to/own.jsonl --split all --stop 'a b' --chat --check -o out/report.json",
    ),
    "below, neither disturbed": Case(
        errors=make_errors(0.01, 0.1),
        profile_waited=0.019,
        run_waited=0.0,
        expected=f"most of the error is in the seconds, mostly in plan verify passes (-50.0 %): {PROFILE_AGAIN}",
    ),
    "below, nobody knows": Case(
        errors=make_errors(0.01, 0.1),
        has_profiles=False,
        expected="most of the error is in the seconds, mostly in plan verify passes (-50.0 %) (give --profile to see whether "
        f"the profile was disturbed): s2d-profile latency {MODELS} --dtype fp32 -o profile",
    ),
    "below, by acceptance on a disturbed machine": Case(
        errors=make_errors(0.15, 0.02),
        profile_waited=0.5,
        run_waited=0.5,
        expected="most of the error is in the acceptance: record it on prompts like those that were run: "
        f"s2d-profile acceptance {MODELS} --dtype fp32 --num-prompts 12 --max-new-tokens 96 --budget 25 -o mine",
    ),
    "acceptance of shorter texts": Case(
        errors=make_errors(0.15, 0.02),
        run_tokens=32,
        expected="most of the error is in the acceptance: plan for texts as long as those that were run: s2d-plan "
        "--profile mine/target.latency.json --profile mine/draft.latency.json --trace path/to/trace.npz --output-tokens 32 "
        "-o out/plan.json",
    ),
    "acceptance of longer texts": Case(
        errors=make_errors(0.15, 0.02),
        run_tokens=128,
        expected="most of the error is in the acceptance: record it on prompts like those that were run and as long as those "
        f"that were run (128 tokens): s2d-profile acceptance {MODELS} --dtype fp32 --num-prompts 12 --max-new-tokens 128 "
        "--budget 25 -o mine",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_error_has_a_next_step_and_its_command_is_complete(plan: Plan, case: Case) -> None:
    made_by = replace(provenance(), command=COMMAND)
    profiles = {
        Path("mine/target.latency.json"): target_profile(),
        Path("mine/draft.latency.json"): draft_profile(),
    }
    stored = {
        path: Stored(record=replace(profile, waited_frac=case.profile_waited), provenance=made_by, sha256="a" * 64)
        for path, profile in profiles.items()
        if case.has_profiles
    }
    report = replace(make_report(plan, "d" * 64, make_trace()), max_new_tokens=case.run_tokens, waited_frac=case.run_waited)
    files = ComparedFiles(
        plan=Path("out/plan.json"), report=Path("out/report.json"), profiles=stored, run_command=case.run_command
    )
    step = next_step(case.errors, plan, report, files)
    assert step == case.expected
    command = shlex.split(step.rpartition(": ")[2])
    if command[0] != "both":  # errors are small
        parsers = {"s2d-profile": profile_parser, "s2d-run": run_parser, "s2d-plan": plan_parser}
        parsers[command[0]]().parse_args(command[1:])


def test_published_acceptance_is_recorded_with_folders_to_fill_in(plan: Plan) -> None:
    flags = (
        "--target path/to/vicuna-7b --draft path/to/s2d-vicuna-12 --prompts path/to/prompts.jsonl --device cuda --dtype bf16"
    )
    published = make_plan(PlanRequest(target="vicuna-7b"))
    report = replace(make_report(plan, "d" * 64, make_trace()), max_new_tokens=32)
    step = next_step(make_errors(0.15, 0.02), published, report, ComparedFiles())
    assert step.endswith(f": s2d-profile acceptance {flags} --max-new-tokens 32 -o profile")


def test_the_half_widths_of_both_intervals_explain_an_error() -> None:
    predicted, measured = Interval(value=1.46, low=1.40, high=1.52), Interval(value=1.50, low=1.42, high=1.58)
    assert explained_frac(predicted, measured) == pytest.approx(0.1 / 1.5)


def test_a_trace_beside_the_profiles_is_named(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "trace.npz").touch()
    stored = Stored(record=target_profile(), provenance=provenance(), sha256="a" * 64)
    report: RunReport = replace(make_report(plan, "d" * 64, make_trace()), max_new_tokens=32)
    files = ComparedFiles(profiles={tmp_path / "target.latency.json": stored})
    assert f"--trace {tmp_path / 'trace.npz'} --output-tokens 32" in next_step(make_errors(0.15, 0.02), plan, report, files)


def test_a_comparison_with_a_disturbed_profile_names_the_command_and_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = write_evidence(tmp_path)
    for path, profile in (("target.latency.json", target_profile()), ("draft.latency.json", draft_profile())):
        write_profile(tmp_path / path, replace(profile, waited_frac=0.188))
    assert main_plan([*flags, "--json", "-o", str(tmp_path / "plan.json")]) == 0
    plan = PLAN_FILE.read(tmp_path / "plan.json")
    report = make_report(plan.record, plan.sha256, make_trace(), slower={"segment": 3.0})
    REPORT_FILE.write(tmp_path / "report.json", report, provenance())
    capsys.readouterr()
    files = ["--plan", str(tmp_path / "plan.json"), "--report", str(tmp_path / "report.json")]
    assert main_compare([*files, *(word for word in flags if "trace" not in word)]) == 0
    shown = unfolded(capsys.readouterr().out)
    share = "as 18.8 % of the profile's processor time went to other programs"
    command = f"s2d-profile latency {MODELS} --dtype fp32 -o {tmp_path}"
    assert shown.endswith(f"next: profile again on a quiet machine, {share}: {command}")
