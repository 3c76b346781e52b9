"""Child processes that never outlive this one: with a log and lines to and from them, or run to their end."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from perfmodel.core.disk import translate_write_errors
from perfmodel.core.errors import EngineFailure
from perfmodel.core.units import Bytes, Seconds

GUARD = Path(__file__).with_name("guard.py")
"""The program above every command."""
_LOG_LINES = 8
_MAX_LOG_CHARS = 1200
_MAX_LOG_BYTES: Bytes = 64 * 1024
"""How much of the end of a log is read: logs may be large."""
_READ_BYTES: Bytes = 64 * 1024
_KILLED = 137
"""A shell's exit code after SIGKILL."""


class ChildProcess:
    """A command that is ended, with all processes it started, by `stop` or by the end of this process for any reason.

    Between this process and the command runs `guard.py`, which watches a pipe that closes when this process ends.

    Args:
        engine: the engine that the command runs, for messages.
        command: the program and its arguments.
        environment: all of its environment variables.
        log: the file that receives its stderr and, without pipes, its stdout.
        has_pipes: whether `write_line` and `read_line` talk to its stdin and stdout.

    Raises:
        BadFile: the log cannot be written.
    """

    def __init__(
        self, engine: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, has_pipes: bool
    ) -> None:
        self.log = log
        self._engine = engine
        read_end, self._guard_pipe = os.pipe()
        try:
            with translate_write_errors(log), log.open("wb") as file:
                self._process = subprocess.Popen(
                    _guarded(command, read_end),
                    stdin=subprocess.PIPE if has_pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if has_pipes else file,
                    stderr=file,
                    env=dict(environment),
                    pass_fds=(read_end,),
                    start_new_session=True,  # Ctrl-C in a terminal reaches this process alone
                )
        except BaseException:
            os.close(self._guard_pipe)
            raise
        finally:
            os.close(read_end)
        self._is_stopped = False
        self._unread = b""

    @property
    def pid(self) -> int:
        """The process above the command and all of its descendants."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the command has ended."""
        return self._process.poll() is not None

    def write_line(self, line: str) -> None:
        """Send a line to its stdin.

        Raises:
            EngineFailure: it has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as err:  # ValueError: it was stopped
            raise self.failure("it ended") from err

    def read_line(self, timeout_s: Seconds) -> str:
        """The next line of its stdout. A command that takes longer is stopped, because its answer may come later.

        Raises:
            EngineFailure: it has ended, or takes longer than the timeout.
        """
        assert self._process.stdout is not None
        deadline_s = time.perf_counter() + timeout_s
        while b"\n" not in self._unread:
            if self._is_stopped:
                raise self.failure("it ended")
            if not _is_readable(self._process.stdout.fileno(), deadline_s - time.perf_counter()):
                self.stop()
                raise self.failure(f"it did not answer within {timeout_s:.0f} s")
            read = os.read(self._process.stdout.fileno(), _READ_BYTES)
            if not read:
                raise self.failure(_ending(self._process.wait()))
            self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("utf-8", errors="replace")

    def failure(self, problem: str) -> EngineFailure:
        """The error for a problem of this process, with the last lines of its log."""
        return EngineFailure(self._engine, problem, log=self.log, last_lines=_last_lines(self.log))

    def stop(self) -> None:
        """End the command and all processes it started, and wait until none is left. A second call does nothing."""
        if self._is_stopped:
            return
        self._is_stopped = True
        os.close(self._guard_pipe)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a line that the ended process never read
                    stream.close()


def run_guarded(
    command: Sequence[str], *, environment: Mapping[str, str], stdout: int | None, stderr: int | None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. It ends early, with all processes it started, if this process ends or is interrupted.

    Args:
        command: the program and its arguments.
        environment: all of its environment variables.
        stdout: where its output goes, as `subprocess` takes it.
        stderr: the same of its errors.
    """
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as guard_pipe:
        try:
            process = subprocess.Popen(
                _guarded(command, read_end),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=dict(environment),
                pass_fds=(read_end,),
                start_new_session=True,  # Ctrl-C in a terminal reaches this process alone
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        finally:
            os.close(read_end)
        try:
            output, errors = process.communicate()
        except BaseException:
            guard_pipe.close()
            process.communicate()  # until none of its processes is left
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output or "", errors or "")


def _guarded(command: Sequence[str], read_end: int) -> list[str]:
    """A command below the guard, which watches the other end of a pipe."""
    return [sys.executable, "-I", "-S", str(GUARD), str(read_end), *command]


def _is_readable(descriptor: int, timeout_s: Seconds) -> bool:
    """Whether there is something to read, or the end, before the timeout."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(0.0, timeout_s) * 1e3))


def _ending(code: int) -> str:
    """How a command ended."""
    hint = ": the system probably killed it because memory ran out" if code == _KILLED else ""
    return f"it ended with exit code {code}{hint}"


def _last_lines(log: Path) -> str:
    """The end of a log; empty if it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_LOG_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line.rstrip() for line in lines if line.strip()][-_LOG_LINES:])[-_MAX_LOG_CHARS:]
