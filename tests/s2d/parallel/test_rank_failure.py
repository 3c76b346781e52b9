"""A failing rank ends the job within 30 s, with a single message that names rank, stage and error."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from torch.distributed import HashStore

from s2d.decoding.pair import PairRequest, load_pair
from s2d.parallel.rank_failure import RankMonitor, monitored_ranks
from tests.s2d.parallel import failing_rank
from tests.s2d.parallel.failing_rank import NUM_LAYERS, STAGES
from tests.s2d.parallel.test_parallel_decoder import ROOT, TOKENIZER
from tests.stubs import TinySpec, tiny_llama

pytestmark = pytest.mark.e2e

ENDS_WITHIN_S = 30
WAIT_S = 60
STAGE_TEXT = {"sampling": "sampling (or drafting on rank 0 alone)"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    exit_codes: tuple[int | None, ...]
    """By rank."""
    messages: tuple[str, ...]
    """Lines of stderr that start with the name of the command."""
    stderr: str
    after_s: float
    """Time from the failure to the end."""


@pytest.fixture
def argv(folders: Path, plan_file) -> list[str]:
    spec = TinySpec(num_kv_heads=2, vocab_size=len(TOKENIZER))
    for name, layers in (("target", NUM_LAYERS), ("draft", 4)):
        tiny_llama(replace(spec, num_layers=layers)).save_pretrained(folders / name)
    device = load_pair(
        PairRequest(target=str(folders / "target"), draft=str(folders / "draft"), dtype="fp32", device="cpu")
    ).device_key
    plan = plan_file(device=replace(device, num_devices=2))
    flags = ["--target", folders / "target", "--draft", folders / "draft", "--plan", plan, "--prompt", "the cat"]
    return list(map(str, flags))


def run_job(failing: int, stage: str, how: str, argv: Sequence[str], folder: Path) -> EndedJob:
    """Run two ranks as torchrun would start them, but as forks of this process, which has already imported torch."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    stderr, failed_at = folder / "stderr", folder / "failed_at"
    stderr.touch()
    fork = multiprocessing.get_context("fork")

    def run_rank(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        with stderr.open("a") as sys.stderr, Path(os.devnull).open("w") as sys.stdout:
            os.dup2(sys.stderr.fileno(), 2)
            code = failing_rank.run(rank, failing, stage, how, argv, failed_at)
        os._exit(code)

    ranks = [fork.Process(target=run_rank, args=(rank,), daemon=True) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(WAIT_S)
        rank.kill()  # has no effect on an ended process
    after_s = time.monotonic() - float(failed_at.read_text())
    return ended_job([rank.exitcode for rank in ranks], stderr.read_text(), after_s)


def ended_job(exit_codes: Sequence[int | None], stderr: str, after_s: float) -> EndedJob:
    messages = tuple(line for line in stderr.splitlines() if line.startswith("s2d-run: "))
    return EndedJob(exit_codes=tuple(exit_codes), messages=messages, stderr=stderr, after_s=after_s)


def message_about(rank: int, stage: str, how: str) -> str:
    during = f"during {STAGE_TEXT.get(stage, stage)}"
    if how.startswith("killed"):
        return f"s2d-run: rank {rank} ended without a message {during}: it was killed, or its machine was lost"
    return f"s2d-run: rank {rank} failed {during}: KeyError: 99" if rank else "s2d-run: KeyError: 99"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["raises", "killed"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_ends_with_a_single_message_if_a_rank(rank: int, how: str, stage: str, argv: list[str], tmp_path: Path) -> None:
    job = run_job(rank, stage, how, argv, tmp_path)
    assert job.messages == (message_about(rank, stage, how),), job.stderr
    assert job.after_s < ENDS_WITHIN_S
    if how == "killed":
        assert (job.exit_codes[rank], job.exit_codes[1 - rank]) == (-signal.SIGKILL, 1)
    else:
        assert job.exit_codes == ((1, 1) if rank else (1, 0))
        assert rank or f"Rank 0 failed during {STAGE_TEXT.get(stage, stage)}.\nThis is a fault of s2d" in job.stderr


@pytest.mark.parametrize("how", ["raises, hanging", "killed, hanging"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_job_ends_even_if_the_other_rank_hangs_in_a_sum(rank: int, how: str, argv: list[str], tmp_path: Path) -> None:
    job = run_job(rank, "verification", how, argv, tmp_path)
    assert job.messages == (message_about(rank, "verification", how),), job.stderr
    assert job.after_s < ENDS_WITHIN_S
    assert job.exit_codes[1 - rank] == (0 if rank == 0 and how.startswith("raises") else 1)


def test_a_user_error_on_another_rank_has_the_exit_code_of_a_user_error(argv: list[str], tmp_path: Path) -> None:
    job = run_job(1, "loading", "refuses", argv, tmp_path)
    assert job.messages == ("s2d-run: rank 1 failed during loading: a bad share",)
    assert job.exit_codes == (2, 2)
    assert "Traceback" not in job.stderr


def test_the_traceback_of_another_rank_is_shown_with_v(argv: list[str], tmp_path: Path) -> None:
    job = run_job(1, "verification", "raises", [*argv, "-v"], tmp_path)
    assert job.messages == (message_about(1, "verification", "raises"),)
    assert "parallel_decoder.py" in job.stderr
    assert "in fail\n" in job.stderr


def test_sigterm_ends_a_job_whose_main_thread_is_busy(argv: list[str], tmp_path: Path) -> None:
    job = run_job(0, "verification", "terminated", argv, tmp_path)
    message = "s2d-run: ended by SIGTERM during verification; torchrun sends it when another process has failed"
    assert job.messages == (message,)
    assert job.exit_codes == (128 + signal.SIGTERM, 0)
    assert job.after_s < ENDS_WITHIN_S


def test_rank_0_accepts_only_ranks_of_its_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    store = HashStore()
    with monitored_ranks(0, store, "s2d-run") as monitor:
        port = int(store.get("rank monitor address").split()[1])
        with socket.create_connection(("localhost", port)) as unrelated:
            unrelated.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert unrelated.recv(1) == b""
        assert monitor.wait_for_failure() is None
        other = RankMonitor(1, "s2d-run")
        other.start(store)
        other.close()  # without a message
        failure = monitor.wait_for_failure()
    assert failure is not None
    message = "rank 1 ended without a message during start: it was killed, or its machine was lost"
    assert (failure.message, capsys.readouterr().err) == (message, f"s2d-run: {message}\n")


@pytest.mark.parametrize(("rank", "stage", "how"), [(1, "verification", "killed, hanging"), (0, "sampling", "killed")])
def test_under_torchrun_no_process_survives_if_a_rank(rank: int, stage: str, how: str, argv: list[str], tmp_path: Path) -> None:
    failed_at = tmp_path / "failed_at"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tests.s2d.parallel.failing_rank", str(rank), stage, how, str(failed_at), *argv]
    job = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=2 * WAIT_S)
    after_s = time.monotonic() - float(failed_at.read_text())
    assert job.returncode == 1
    assert ended_job((), job.stderr, after_s).messages == (message_about(rank, stage, how),), job.stderr
    assert after_s < ENDS_WITHIN_S
    for pid_rank in range(2):
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"{failed_at}.pid{pid_rank}").read_text()), 0)
