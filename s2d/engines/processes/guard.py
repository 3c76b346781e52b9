"""Runs a command, and ends it with all of its descendants once the process that asked for it closes a pipe or dies.

Started by `s2d.engines.processes.child_process` as `python guard.py PIPE COMMAND…`, outside of the package: it uses the
standard library alone. PIPE is the number of an inherited file descriptor whose other end only the asking process holds. The
operating system closes that end when the process ends for any reason, SIGKILL included.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE_S = 3.0
"""Between SIGTERM and SIGKILL."""
_POLL_S = 0.02
_PROC = "/proc"
_CANNOT_RUN = 127
"""A shell's exit code of a command that it cannot run."""
_ENDED_BY_SIGNAL = 128
"""A shell's exit code of a command that a signal ended is this number plus the signal's."""


def main() -> int:
    """Run the command until it ends or the pipe is closed; returns the command's exit code."""
    pipe, command = os.dup(int(sys.argv[1])), sys.argv[2:]  # a low number, which `select` needs
    os.close(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the pipe alone decides: a terminal sends these to the asking process too
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _prctl(_PR_SET_CHILD_SUBREAPER)  # orphaned descendants become children of this process
    try:
        process = subprocess.Popen(command, preexec_fn=_die_with_parent, process_group=0, close_fds=True)
    except OSError as err:
        sys.stderr.write(f"cannot run {command[0]!r}: {err.strerror}\n")
        return _CANNOT_RUN
    child = process.pid  # the object stays: when it is deleted, it may collect an ended child before `_reap` does
    code = None
    while code is None:
        ready, _, _ = select.select([pipe, wake_read], [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        code = _reap(child)
        if pipe in ready:
            break
    return _end_all(child, code)


def _end_all(child: int, code: int | None) -> int:
    """End the command and its descendants, first with SIGTERM, then with SIGKILL."""
    deadline_s = time.perf_counter() + _GRACE_S
    _signal_all(child, signal.SIGTERM)
    while code is None or _descendants():
        if time.perf_counter() > deadline_s:
            _signal_all(child, signal.SIGKILL)
        time.sleep(_POLL_S)
        ended = _reap(child)
        code = ended if code is None else code
    return code


def _signal_all(child: int, number: signal.Signals) -> None:
    for process in _descendants():
        with contextlib.suppress(OSError):
            os.kill(process, number)
    if not os.path.isdir(_PROC):  # noqa: PTH112
        with contextlib.suppress(OSError):  # all that such a system lets us reach
            os.killpg(child, number)


def _reap(child: int) -> int | None:
    """Collect all processes that have ended; returns the exit code of the command if it is one of them."""
    code = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if process == 0:
            return code
        if process == child:
            code = os.waitstatus_to_exitcode(status)
            code = _ENDED_BY_SIGNAL - code if code < 0 else code


def _descendants() -> list[int]:
    """Processes below this one that have not been collected."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdecimal, os.listdir(_PROC) if os.path.isdir(_PROC) else ()):  # noqa: PTH208, PTH112
        with contextlib.suppress(OSError), open(f"{_PROC}/{name}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            parent = int(file.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found, below = [], [os.getpid()]
    while below:
        new = children.get(below.pop(), [])
        found += new
        below += new
    return found


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int = 1) -> None:
    """Set an attribute of this process on Linux; elsewhere there is none."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, int(value), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
