"""No process of an engine outlives the process that started it, however that one ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from perfmodel.core.errors import EngineFailure
from s2d.engines.processes.child_process import ChildProcess, run_guarded

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[3]
WITH_GRANDCHILD = (
    "import subprocess, sys, time\n"
    "sleeper = [sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)']\n"
    "print(subprocess.Popen(sleeper, start_new_session=True).pid, flush=True)\n"
    "time.sleep(99)\n"
)
"""An engine that starts a process in a session of its own, which ignores SIGTERM."""
DEFAULT_SIGNALS = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
)
"""Tests that run in the background or under nohup hand down that these signals are ignored."""
PARENT = f"""
{DEFAULT_SIGNALS}
import os, sys, time
from pathlib import Path
from s2d.engines.processes.child_process import ChildProcess
child = ChildProcess("x", [sys.executable, "-c", {WITH_GRANDCHILD!r}], environment=dict(os.environ), log=Path(sys.argv[1]),
                     has_pipes=True)
print(child.pid, child.read_line(30).strip(), flush=True)
if sys.argv[2] == "raise":
    raise ValueError("on purpose")
time.sleep(99)
"""


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that writes lines. It is dead in the end, also if the test fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def child_of(script: str, log: Path) -> ChildProcess:
    return ChildProcess("x", [sys.executable, "-c", script], environment=dict(os.environ), log=log, has_pipes=True)


def has_ended(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_ended(pids: list[int]) -> list[int]:
    """The processes that are still alive after 15 s."""
    deadline_s = time.perf_counter() + 15
    while (alive := [pid for pid in pids if not has_ended(pid)]) and time.perf_counter() < deadline_s:
        time.sleep(0.05)
    return alive


@pytest.mark.parametrize("how", ["raise", signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_nothing_survives_the_end_of_the_parent(tmp_path: Path, how: signal.Signals | str) -> None:
    with running(PARENT, str(tmp_path / "log"), str(how)) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        if isinstance(how, signal.Signals):
            assert not any(map(has_ended, pids))
            parent.send_signal(how)
        parent.wait(timeout=20)
    assert wait_until_ended(pids) == []


def test_stopping_ends_grandchildren_too_and_may_be_repeated(tmp_path: Path) -> None:
    child = child_of(WITH_GRANDCHILD, tmp_path / "log")
    grandchild = int(child.read_line(30))
    child.stop()
    child.stop()
    assert wait_until_ended([child.pid, grandchild]) == []


def test_what_an_ended_command_left_running_is_ended(tmp_path: Path) -> None:
    child = child_of(WITH_GRANDCHILD.replace("time.sleep(99)\n", ""), tmp_path / "log")
    grandchild = int(child.read_line(30))
    assert wait_until_ended([grandchild]) == []
    child.stop()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_command_that_is_run_to_its_end_ends_with_an_interruption_or_the_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = WITH_GRANDCHILD.replace("print(", "print(__import__('os').getpid(), ")
    run = (
        f"{DEFAULT_SIGNALS}import os, sys; from s2d.engines.processes.child_process import run_guarded; "
        f"run_guarded([sys.executable, '-c', {script!r}], environment=dict(os.environ), stdout=None, stderr=None)"
    )
    with running(run) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(map(has_ended, pids))
        parent.send_signal(how)
        parent.wait(timeout=20)
    assert wait_until_ended(pids) == []


def test_the_output_of_a_command_that_is_run_to_its_end_is_returned() -> None:
    command = [sys.executable, "-c", r"import os, sys; os.write(1, b'a\xff'); os.write(2, b'b'); sys.exit(3)"]
    done = run_guarded(command, environment=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "a\ufffd", "b")


def test_lines_are_answered(tmp_path: Path) -> None:
    child = child_of("print(input() * 2, flush=True)", tmp_path / "log")
    child.write_line("ab")
    assert child.read_line(30) == "abab"
    child.stop()


def test_an_ended_command_is_an_error_with_its_exit_code_and_the_end_of_its_log(tmp_path: Path) -> None:
    child = child_of("import sys; [print(n, file=sys.stderr) for n in range(99)]; sys.exit(7)", tmp_path / "log")
    with pytest.raises(
        EngineFailure, match=r"(?s)engine 'x': it ended with exit code 7, expected an answer.*log'.*:\n91\n.*98$"
    ):
        child.read_line(30)
    with pytest.raises(EngineFailure, match="it ended"):
        child.write_line("x" * 1_000_000)  # more than a pipe holds
    child.stop()


def test_a_signal_is_shown_as_a_shell_shows_it(tmp_path: Path) -> None:
    child = child_of("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", tmp_path / "log")
    with pytest.raises(EngineFailure, match=f"exit code {128 + signal.SIGSEGV}"):
        child.read_line(30)
    child.stop()


def test_a_command_that_ends_at_once_is_noticed(tmp_path: Path) -> None:
    for _ in range(20):
        child = ChildProcess("x", ["true"], environment=dict(os.environ), log=tmp_path / "log", has_pipes=True)
        with pytest.raises(EngineFailure, match="it ended with exit code 0"):
            child.read_line(30)
        child.stop()


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    child = ChildProcess("x", ["/no/such program"], environment=dict(os.environ), log=tmp_path / "log", has_pipes=True)
    with pytest.raises(EngineFailure, match=r"exit code 127(?s:.*)cannot run '/no/such program': No such file"):
        child.read_line(30)
    child.stop()


def test_a_command_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    child = child_of("import time; print('half', end='', flush=True); time.sleep(99)", tmp_path / "log")
    with pytest.raises(EngineFailure, match="it did not answer within 1 s"):
        child.read_line(1)
    assert wait_until_ended([child.pid]) == []
    for ask in (lambda: child.write_line("more"), lambda: child.read_line(30)):
        with pytest.raises(EngineFailure, match="it ended"):
            ask()


def test_long_lines_and_bytes_that_are_no_text_are_read(tmp_path: Path) -> None:
    child = child_of(r"import os; os.write(1, b'\xff' + b'x' * 1_000_000 + b'\nnext\n')", tmp_path / "log")
    assert child.read_line(30) == "\ufffd" + "x" * 1_000_000
    assert child.read_line(30) == "next"
    child.stop()


def test_of_a_large_log_only_the_end_is_read(tmp_path: Path) -> None:
    script = r"import os; [os.write(2, b'\xfe' * 1_000_000) for _ in range(20)]; os.write(2, b'\nlast words\n')"
    child = child_of(script, tmp_path / "log")
    with pytest.raises(EngineFailure, match=r"last words$") as failed:
        child.read_line(30)
    assert len(str(failed.value)) < 2000
    child.stop()


def test_a_killed_command_hints_at_memory(tmp_path: Path) -> None:
    child = child_of("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path / "log")
    with pytest.raises(EngineFailure, match="exit code 137: the system probably killed it because memory ran out"):
        child.read_line(30)
    child.stop()
