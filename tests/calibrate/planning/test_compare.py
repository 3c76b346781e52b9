"""A plan compared with a run: both errors against the errors that were put in, and refusals."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.compare_cli import main_compare
from calibrate.commands.plan_cli import main_plan
from calibrate.planning.compare import compare, load_pricing
from calibrate.planning.suggest_after_compare import worst_pass
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import Stored
from perfmodel.policies.sampling import Sampling
from perfmodel.results.plan import PLAN_FILE, Plan
from perfmodel.results.report import REPORT_FILE, Adaptation, RunReport
from perfmodel.results.residuals import RESIDUALS_FILE, Residuals
from tests.calibrate.factories import make_report, make_trace, provenance, unfolded, write_evidence


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with evidence and the plan made from it."""
    folder = tmp_path_factory.mktemp("planned")
    assert main_plan([*write_evidence(folder), "--json", "-o", str(folder / "plan.json")]) == 0
    return folder


@pytest.fixture
def plan(planned: Path) -> Stored[Plan]:
    return PLAN_FILE.read(planned / "plan.json")


def profiles(folder: Path) -> list[Path]:
    return [folder / "target.latency.json", folder / "draft.latency.json"]


def stored(report: RunReport) -> Stored[RunReport]:
    return Stored(record=report, provenance=provenance(), sha256="d" * 64)


def both_ways(plan: Stored[Plan], report: RunReport, folder: Path) -> list[Residuals]:
    """Priced by the profiles, and by the plan alone."""
    return [compare(plan, stored(report), given) for given in (profiles(folder), [])]


def test_a_run_that_matches_its_prediction_has_no_error(plan: Stored[Plan], planned: Path) -> None:
    report = make_report(plan.record, plan.sha256, make_trace())
    for residuals in both_ways(plan, report, planned):
        assert residuals.acceptance_error_frac == pytest.approx(0, abs=1e-9)
        assert residuals.latency_error_frac == pytest.approx(0, abs=1e-9)
        assert residuals.next_step.startswith("nothing: both errors are within ")


def test_paths_and_records_give_one_result(plan: Stored[Plan], planned: Path, tmp_path: Path) -> None:
    report, path = make_report(plan.record, plan.sha256, make_trace(), slower={"verify": 1.02}), tmp_path / "report.json"
    REPORT_FILE.write(path, report, provenance())
    from_paths = compare(planned / "plan.json", str(path), profiles(planned))
    from_records = compare(plan.record, report, profiles(planned))
    assert (from_paths.plan_sha256, from_paths.report_sha256) == (plan.sha256, REPORT_FILE.read(path).sha256)
    assert replace(from_paths, next_step="") == replace(from_records, next_step="")


def test_a_run_that_changed_its_policy_is_refused(plan: Stored[Plan]) -> None:
    report = make_report(plan.record, plan.sha256, make_trace())
    adapted = replace(report, adaptation=Adaptation(num_switches=0, shares=()))
    with pytest.raises(Mismatch, match=r"one policy throughout.*Run the plan again without --adapt"):
        compare(plan, stored(adapted))


def test_slower_segments_are_a_latency_error_only_and_are_named(plan: Stored[Plan], planned: Path) -> None:
    report = make_report(plan.record, plan.sha256, make_trace(), slower={"segment": 3.0})
    for residuals in both_ways(plan, report, planned):
        assert residuals.acceptance_error_frac == pytest.approx(0, abs=1e-9)
        assert residuals.latency_error_frac > 0.02
        worst = worst_pass(residuals.passes)
        assert worst is not None
        assert (worst.arm, worst.kind) == ("plan", "segment")
        assert worst.error_frac == pytest.approx(1 / 3 - 1)
        assert "most of the error is in the seconds, mostly in plan segment passes (-66.7 %)" in residuals.next_step


def test_other_prompts_are_an_acceptance_error_only(plan: Stored[Plan], planned: Path) -> None:
    report = make_report(plan.record, plan.sha256, make_trace(seed=7))
    by_profiles = both_ways(plan, report, planned)[0]
    assert by_profiles.acceptance_error_frac != pytest.approx(0, abs=1e-4)
    assert by_profiles.latency_error_frac == pytest.approx(0, abs=1e-9)


def test_the_two_errors_add_up_to_the_error_of_the_speedup(plan: Stored[Plan], planned: Path) -> None:
    report = make_report(plan.record, plan.sha256, make_trace(seed=7), slower={"verify": 1.3, "exit": 0.5})
    for residuals in both_ways(plan, report, planned):
        parts = residuals.acceptance_error_frac + residuals.latency_error_frac
        assert parts == pytest.approx(residuals.total_error_frac, abs=1e-12)
        measured = residuals.measured_speedup
        assert measured is not None
        assert residuals.total_error_frac == pytest.approx(residuals.predicted_speedup / measured - 1)


def test_a_report_of_another_plan_is_refused_naming_both(plan: Stored[Plan]) -> None:
    report = make_report(plan.record, "e" * 64, make_trace())
    with pytest.raises(Mismatch, match=f"the report was made for plan {'e' * 12}, not for plan {plan.sha256[:12]}"):
        compare(plan, stored(report))


def test_a_report_from_another_device_is_refused_naming_both(plan: Stored[Plan]) -> None:
    report = make_report(plan.record, plan.sha256, make_trace())
    elsewhere = replace(report, device=replace(report.device, num_threads=2))
    with pytest.raises(Mismatch, match="1 x a CPU, 1 thread, fp32, eager, not for the run's 1 x a CPU, 2 threads"):
        compare(plan, stored(elsewhere))


def test_a_report_without_plain_decoding_is_refused(plan: Stored[Plan]) -> None:
    report = replace(make_report(plan.record, plan.sha256, make_trace()), plain_arm=None, measured=None)
    with pytest.raises(UserInputError, match=r"no plain decoding, expected both arms: .* again with s2d-run --check"):
        compare(plan, stored(report))
    ratio = replace(report, sampling=Sampling(rule="ratio", temperature=1.0, top_k=None, top_p=None, seed=0))
    with pytest.raises(UserInputError, match="s2d-run measures none under the ratio test"):
        compare(plan, stored(ratio))


def test_without_profiles_a_datasheet_plan_is_priced_by_its_datasheet(tmp_path: Path) -> None:
    assert main_plan(["--target", "vicuna-7b", "--json", "-o", str(tmp_path / "plan.json")]) == 0
    plan = PLAN_FILE.read(tmp_path / "plan.json").record
    pricing = load_pricing(plan, [], None)
    assert pricing is not None
    assert pricing.device == plan.device


def test_a_plan_for_a_device_from_a_file_is_priced_by_its_own_means(tmp_path: Path) -> None:
    assert main_plan(["--target", "vicuna-7b", "--json", "-o", str(tmp_path / "plan.json")]) == 0
    plan = PLAN_FILE.read(tmp_path / "plan.json").record
    assert load_pricing(replace(plan, device=replace(plan.device, device="my gpu")), [], None) is None


def test_profiles_that_the_plan_was_not_made_with_are_refused(tmp_path: Path, planned: Path) -> None:
    assert main_plan(["--trace", str(planned / "trace.npz"), "--json", "-o", str(tmp_path / "plan.json")]) == 0
    with pytest.raises(Mismatch, match="was made for"):
        load_pricing(PLAN_FILE.read(tmp_path / "plan.json").record, profiles(planned), None)


def test_the_command_prints_both_errors_and_writes_what_it_prints(
    plan: Stored[Plan], planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_path, output = tmp_path / "report.json", tmp_path / "residuals.json"
    REPORT_FILE.write(report_path, make_report(plan.record, plan.sha256, make_trace(), slower={"segment": 2.0}), provenance())
    arguments = ["--plan", str(planned / "plan.json"), "--report", str(report_path)]
    assert main_compare(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "device   1 x a CPU, 1 thread, fp32, eager"
    assert lines[1] == "prompts  predicted from 6, measured on 6"
    errors = {name: next(line for line in lines if line.startswith(name)) for name in ("acceptance", "latency", "total")}
    assert "  +0.0 %  tokens per round " in errors["acceptance"]
    shown = [line.partition(" %")[0].split()[-1] for line in (errors["latency"], errors["total"])]
    assert shown[0] == shown[1] != "+0.0"
    shown = unfolded("\n".join(lines))
    assert "next: most of the error is in the seconds, mostly in plan segment passes" in shown
    assert "(give --profile to see whether the profile was disturbed): s2d-profile latency --target" in shown
    assert main_compare([*arguments, "--json", "-o", str(output)]) == 0
    assert capsys.readouterr().out == output.read_text(encoding="utf-8")
    assert RESIDUALS_FILE.read(output).record.plan_sha256 == plan.sha256
