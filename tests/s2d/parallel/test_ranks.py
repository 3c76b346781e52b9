"""Commands on two processes: rank 0 prints errors and results, and unsuitable plans and models are refused."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfmodel.core.torchrun import torchrun_command
from perfmodel.results.report import REPORT_FILE
from s2d.commands.run_cli import main_run
from s2d.decoding.pair import PairRequest, load_pair
from s2d.parallel.rank_failure import Stage
from s2d.parallel.ranks import PASS, Ranks, RowsRequest, join_ranks
from tests.s2d.parallel.test_parallel_decoder import ROOT, TOKENIZER, torchrun_environment
from tests.stubs import TinySpec, tiny_llama

pytestmark = pytest.mark.e2e


def test_rank_0_prints_the_error_of_another_rank(capsys: pytest.CaptureFixture[str]) -> None:
    def request_unknown_model(ranks: Ranks) -> int:
        with ranks.adding_stage_to_errors():
            ranks.request_pass(RowsRequest(PASS, 99, 0, 0, 0, 1, Stage.VERIFICATION), torch.zeros(1, 8))
            ranks.barrier()
        return 0

    with torchrun_environment(), join_ranks("s2d-run") as ranks:
        assert ranks.run_leader(request_unknown_model) == 1
    assert capsys.readouterr().err == "s2d-run: rank 1 failed during verification: KeyError: 99\n"


def save_shared_models(folders: Path) -> None:
    for name, layers in (("target", 6), ("draft", 4)):
        tiny_llama(TinySpec(num_kv_heads=2, num_layers=layers, vocab_size=len(TOKENIZER))).save_pretrained(folders / name)


@pytest.mark.parametrize(("draft_num_devices", "shared"), [(1, "the target shared"), (2, "shared")])
def test_two_processes_generate_the_checked_text_and_place_the_draft_by_the_plan(
    folders: Path, plan_file, capsys, draft_num_devices: int, shared: str
) -> None:
    save_shared_models(folders)
    device = load_pair(
        PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    ).device_key
    plan = plan_file(device=replace(device, num_devices=2), draft_num_devices=draft_num_devices)
    report_file = folders / "report.json"
    flags = ["--target", folders / "target", "--draft", folders / "draft", "--plan", plan, "--prompt", "the cat", "--check"]
    with torchrun_environment():
        assert main_run([*map(str, flags), "-o", str(report_file)]) == 0
    stdout = capsys.readouterr().out
    assert f"target with draft, exits 2/4 (the plan), {shared} by 2 processes" in stdout
    assert "1 of 1 outputs equal the plain target's" in stdout
    report = REPORT_FILE.read(report_file).record
    assert report.device.num_devices == 2


def torchrun(folders: Path, plan: Path) -> subprocess.CompletedProcess[str]:
    command = torchrun_command(
        [sys.executable, "-c", "import sys; from s2d.commands.run_cli import main_run; sys.exit(main_run(sys.argv[1:]))"], 2
    )
    flags = ["--target", folders / "target", "--draft", folders / "draft", "--plan", plan, "--prompt", "the cat"]
    argv = [sys.executable, "-m", "torch.distributed.run", *command[1:], *map(str, flags)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)


def test_torchrun_prints_once_that_a_model_cannot_be_split(folders: Path, plan_file) -> None:
    device = load_pair(
        PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    ).device_key
    job = torchrun(folders, plan_file(device=replace(device, num_devices=2)))
    assert job.returncode != 0
    assert job.stderr.count("s2d-run: model ") == job.stderr.count("2 processes cannot share evenly") == 1
    assert "exitcode  : 2" in job.stderr
    assert job.stdout == ""


def test_a_plan_for_more_or_fewer_devices_is_refused(folders: Path, plan_file, capsys) -> None:
    device = load_pair(
        PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    ).device_key
    plan = plan_file(device=replace(device, num_devices=2))
    assert main_run(["--plan", str(plan), "--prompt", "the cat"]) == 2
    stderr = capsys.readouterr().err
    assert (
        f"was made for 2 x {device.device}, not for 1, one for each process. Run it with torchrun --nproc-per-node 2" in stderr
    )
    assert "to plan for 1, profile with s2d-profile." in stderr
