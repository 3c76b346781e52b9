"""A plan's configuration is run beside plain decoding, with the plan's models and settings."""

from dataclasses import replace
from pathlib import Path

import pytest

import s2d
from perfmodel.core.errors import UserInputError
from profiler.commands.profile_cli import main_profile
from profiler.engines.engine_request import PLAIN, Arm
from profiler.engines.planned_runs import planned_runs

TRACE = Path(__file__).parents[2] / "data" / "engine_metrics" / "trace.npz"


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    plan = s2d.plan(trace=TRACE, device="h100", engine="transformers")
    policy = s2d.Policy(exits=(4,), tokens=12, stop=s2d.ConfidenceFloor(floor=0.2))
    replace(plan, chosen=replace(plan.chosen, policy=policy)).save(path)
    return path


def test_the_configuration_is_the_plans_with_its_floor(plan_file: Path) -> None:
    runs = planned_runs(plan_file)
    assert runs.configurations == (PLAIN, Arm(exit_layer=4, draft_tokens=12, is_draft_alone=False, floor=0.2))
    assert (runs.engine, runs.target, runs.draft) == ("transformers", "ref-target-32", "ref-draft")
    assert (runs.exits, runs.split) == ((4,), "evaluation")


def test_a_plan_for_the_bundled_runtime_is_refused(tmp_path: Path) -> None:
    s2d.plan(trace=TRACE, device="h100").save(tmp_path / "plan.json")
    with pytest.raises(UserInputError, match="expected one for another engine"):
        planned_runs(tmp_path / "plan.json")


def test_flags_that_are_missing_or_run_something_else_are_one_message(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--engine", "ort", "--target", "ref-target-16"], "--draft is missing: expected it, or --plan FILE"),
        (["--plan", str(plan_file), "--exits", "4"], "--exits with --plan: the plan has its exit and length"),
        (["--plan", str(plan_file), "--lengths", "4"], "--lengths with --plan"),
        (["--plan", str(plan_file), "--engine", "ort"], "--engine ort: the plan is for transformers"),
        (["--plan", "absent.json"], "absent.json"),
    ):
        assert main_profile(["engine", *arguments]) == 2
        assert message in capsys.readouterr().err
