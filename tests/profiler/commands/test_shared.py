"""Profiles of two processes, with the draft shared and not: what they are of, and that the plan made from them is run so."""

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


@pytest.mark.parametrize(("flags", "num_devices"), [((), 1), (("--share-draft",), 2)])
def test_a_draft_is_planned_for_and_run_where_it_was_profiled(
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
    said = capsys.readouterr().out
    assert f"exits 1/2/4 (the plan), {'' if num_devices == 2 else 'the target '}shared by 2 processes" in said
    assert "4 of 4 outputs equal the plain target's" in said


def test_sharing_without_others_or_of_a_self_draft_is_refused(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evidence"
    assert main_profile(arguments(folders, out, "--share-draft")) == 2
    assert "--share-draft: expected several processes to share it" in capsys.readouterr().err
    assert not out.exists()
    with torchrun_environment():
        assert main_profile([*arguments(folders, out, "--share-draft"), "--draft", "self"]) == 2
    assert "--share-draft: a self-draft is shared with its target in any case" in capsys.readouterr().err
