"""Profiles of two processes, with and without a shared draft, and runs of the plans made from them."""

from dataclasses import replace
from pathlib import Path

import pytest

from calibrate.commands.plan_cli import main_plan
from perfmodel.passes.latency_profile import PROFILE_FILE
from perfmodel.results.plan import PLAN_FILE
from profiler.commands.profile_cli import main_profile
from s2d.commands.run_cli import main_run
from tests.profiler.commands.test_profile_cli import arguments
from tests.profiler.conftest import TARGET, Folders, write_pair
from tests.s2d.parallel.test_parallel_decoder import torchrun_environment

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("flags", "num_devices"), [((), 1), (("--share-draft",), 2)])
def test_a_plan_and_its_run_use_as_many_processes_as_the_profiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], num_devices: int
) -> None:
    pair, out, plan = write_pair(tmp_path, replace(TARGET, num_kv_heads=2)), tmp_path / "evidence", tmp_path / "plan.json"
    with torchrun_environment():
        assert main_profile(arguments(pair, out, *flags)) == 0
    profiles = [out / f"{role}.latency.json" for role in ("draft", "target")]
    devices = [PROFILE_FILE.read(path).record.device for path in profiles]
    assert [device.num_devices for device in devices] == [num_devices, 2]
    files = [word for path in profiles for word in ("--profile", str(path))]
    assert main_plan([*files, "--trace", str(out / "trace.npz"), "-o", str(plan)]) == 0
    planned = PLAN_FILE.read(plan).record
    assert (planned.device, planned.draft_num_devices) == (devices[1], num_devices)
    models = ["--target", str(pair.target), "--draft", str(pair.draft), "--prompts", str(pair.prompts)]
    capsys.readouterr()
    with torchrun_environment():
        assert main_run(["--plan", str(plan), *models, "--split", "all", "--check"]) == 0
    shown = capsys.readouterr().out
    assert f"exits 1/2/4 (the plan), {'' if num_devices == 2 else 'the target '}shared by 2 processes" in shown
    assert "4 of 4 outputs equal the plain target's" in shown


def test_a_draft_cannot_be_shared_by_one_process_or_be_a_self_draft(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    assert main_profile(arguments(folders, out, "--share-draft")) == 2
    assert "--share-draft: expected several processes to share it" in capsys.readouterr().err
    assert not out.exists()
    with torchrun_environment():
        assert main_profile([*arguments(folders, out, "--share-draft"), "--draft", "self"]) == 2
    assert "--share-draft: a self-draft is always shared with its target" in capsys.readouterr().err
