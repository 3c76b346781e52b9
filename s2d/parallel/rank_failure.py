"""Failures across ranks: if one rank fails, the whole job ends with one error message.

Every other rank keeps a TCP connection to rank 0, and a thread in each process monitors its end. A rank that fails sends its
error. A killed process closes its connection. A lost machine stops answering the kernel's keep-alive probes. Rank 0 prints the
message and ends the other ranks. If rank 0 itself is lost, rank 1 prints the message.

Nothing here waits for a collective operation: with NCCL, a collective that lacks a rank never ends, and its kernel blocks every
later synchronisation of the main thread. The thread prints the message first, gives the main thread a few seconds to clean up,
and then ends the process with `os._exit`, which also removes a hanging kernel.

torchrun sends SIGTERM to the other processes of a machine as soon as one fails. The thread receives this signal too, because
Python runs signal handlers in the main thread, which may be blocked. It waits a moment for the cause, and prints it.
"""

import contextlib
import json
import logging
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from types import FrameType

from torch.distributed.distributed_c10d import Store

from perfmodel.core.console import EXIT_ANSWERED, EXIT_OUR_FAULT
from perfmodel.core.errors import S2DError
from perfmodel.core.units import Seconds

_CAUSE_TIMEOUT_S: Seconds = 2.0
"""How long a rank with an error waits for the failure of another rank, which may be the cause."""
_PRINT_TIMEOUT_S: Seconds = 10.0
"""How long a failed rank waits for rank 0 to print its message, before it prints the message itself."""
_CLEAN_UP_TIMEOUT_S: Seconds = 5.0
"""How long the main thread may clean up after a failure, before the process is ended."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Socket options (seconds, seconds, probes): a lost machine is detected after 20 s. Not every system has all of them."""
_EXIT_TERMINATED = 128 + signal.SIGTERM
_ADDRESS_KEY = "rank monitor address"
_ACCEPTED = "accepted"

_log = logging.getLogger(__name__)


class Stage(IntEnum):
    """The current stage of a job, for error messages."""

    START = 0
    LOADING = 1
    PREFILL = 2
    """The first pass of a text."""
    DRAFTING = 3
    VERIFICATION = 4
    SAMPLING = 5
    """Anything that rank 0 does alone between two passes."""

    def __str__(self) -> str:
        return "sampling (or drafting on rank 0 alone)" if self is Stage.SAMPLING else self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job ended."""

    message: str
    exit_code: int
    trace: str
    """The traceback, shown with -v; empty for a killed process."""


@dataclass(slots=True)
class _Peer:
    """The rank at the other end of a connection."""

    connection: socket.socket
    rank: int | None
    """None until it has sent the token of the job."""
    unread: bytes = b""
    """Start of a line whose end has not arrived."""


@dataclass(slots=True)
class _JobState:
    """State of the job, shared by both threads."""

    is_over: bool = False
    """If set, a closed connection is not a failure."""
    failure: Failure | None = None
    exit_code: int = EXIT_ANSWERED
    """Exit code of the process if the main thread does not end it."""
    ended_by_other: threading.Event = field(default_factory=threading.Event)
    """Set when another rank has ended the job."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class RankMonitor:
    """Monitors the other ranks in its own thread.

    Args:
        rank: the rank of this process.
        prog: name of the command, printed before messages.
    """

    def __init__(self, rank: int, prog: str) -> None:
        self.stage = Stage.START
        """Updated by the main thread."""
        self._rank = rank
        self._prog = prog
        self._state = _JobState()
        self._peers: list[_Peer] = []
        self._token = ""
        self._selector = selectors.DefaultSelector()
        self._wakeup_reader, self._wakeup_writer = socket.socketpair()
        self._is_closing = False
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run, name="rank monitor", daemon=True)

    def start(self, store: Store) -> None:
        """Connect to rank 0, or on rank 0 accept the other ranks, and start to monitor.

        Args:
            store: shared by the ranks; rank 0 writes its address to it.
        """
        if self._rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        for end in (self._wakeup_reader, self._wakeup_writer):
            end.setblocking(False)
        self._selector.register(self._wakeup_reader, selectors.EVENT_READ, self._on_wakeup)
        self._thread.start()

    @contextlib.contextmanager
    def receiving_sigterm(self) -> Iterator[None]:
        """Handle SIGTERM in the thread, because the main thread may be blocked."""

        def ignore(_number: int, _frame: FrameType | None) -> None:
            """The thread reads the signal number from the socket."""

        previous_fd = signal.set_wakeup_fd(self._wakeup_writer.fileno(), warn_on_full_buffer=False)
        previous_handler = signal.signal(signal.SIGTERM, ignore)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous_handler)
            signal.set_wakeup_fd(previous_fd)

    def end_job(self, exit_code: int) -> None:
        """On rank 0: end the job after its output was printed. Later calls do nothing."""
        with self._state.lock:
            if self._state.is_over:
                return
            self._state.is_over = True
            self._state.exit_code = exit_code
        if exit_code != EXIT_ANSWERED:
            self._exit_after_clean_up()
        self._send_end()

    def wait_for_failure(self) -> Failure | None:
        """On rank 0: wait briefly for the failure of another rank, already printed; None if there is none."""
        self._state.ended_by_other.wait(_CAUSE_TIMEOUT_S)
        return self._state.failure

    def report_failure(self, err: Exception) -> int:
        """On other ranks: let rank 0 print an error; returns the exit code.

        If another rank ended the job first, the error is a consequence and is not reported.
        """
        state = self._state
        if state.ended_by_other.wait(_CAUSE_TIMEOUT_S):
            return state.exit_code
        text = str(err) if isinstance(err, S2DError) else f"{type(err).__name__}: {err}"
        failure = Failure(
            message=f"rank {self._rank} failed during {self.stage}: {text}",
            exit_code=err.exit_code if isinstance(err, S2DError) else EXIT_OUR_FAULT,
            trace="".join(traceback.format_exception(err)),
        )
        state.failure, state.exit_code = failure, failure.exit_code
        for peer in tuple(self._peers):  # rank 0, unless it is lost
            _send(peer, json.dumps(asdict(failure)))
        if not state.ended_by_other.wait(_PRINT_TIMEOUT_S):
            self._print(failure.message)
        self._exit_after_clean_up()
        return failure.exit_code

    def close(self) -> None:
        """Stop monitoring."""
        self._is_closing = True
        self._wakeup_writer.send(b"\0")
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._wakeup_writer.close()

    def _listen(self, store: Store) -> None:
        has_both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if has_both else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=has_both)
        listener.setblocking(False)
        self._token = secrets.token_hex(16)
        store.set(_ADDRESS_KEY, f"{self._token} {listener.getsockname()[1]}")
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self._add_peer(listener.accept()[0], None)

    def _connect(self, store: Store) -> None:
        token, port = store.get(_ADDRESS_KEY).decode().split()
        # Rank 0 runs on the machine where the ranks meet.
        peer = self._add_peer(socket.create_connection((os.environ["MASTER_ADDR"], int(port))), 0)
        _send(peer, f"{token} {self._rank}")
        # From this answer on, rank 0 notifies this rank when the job ends.
        answer = peer.connection.recv(len(_ACCEPTED) + 1, socket.MSG_WAITALL)
        if answer.decode() != f"{_ACCEPTED}\n":
            raise ConnectionError("rank 0 ended before all ranks had connected")

    def _add_peer(self, connection: socket.socket, rank: int | None) -> _Peer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        peer = _Peer(connection, rank)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))
        return peer

    def _run(self) -> None:
        while not self._is_closing:
            for key, _ in self._selector.select():
                handle: Callable[[], None] = key.data
                handle()

    def _read(self, peer: _Peer) -> None:
        """Read the lines that a peer sent, and detect the end of its process."""
        try:
            data = peer.connection.recv(1 << 16)
        except OSError:  # the process ended (reset), or its machine was lost (timeout)
            data = b""
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        for line in lines:
            self._on_line(peer, line)
        if not data or peer not in self._peers:
            self._selector.unregister(peer.connection)
            peer.connection.close()
            if peer in self._peers:
                self._peers.remove(peer)
                self._on_lost(peer)

    def _on_line(self, peer: _Peer, line: bytes) -> None:
        if self._rank > 0:  # rank 0 sends a single line: the job has ended
            self._on_ended()
        elif peer.rank is not None:
            self._on_failure(Failure(**json.loads(line)))
        else:
            token, _, rank = line.partition(b" ")
            if secrets.compare_digest(token, self._token.encode()):
                peer.rank = int(rank)
                _send(peer, _ACCEPTED)
            elif peer in self._peers:  # not a rank of this job
                self._peers.remove(peer)

    def _on_lost(self, peer: _Peer) -> None:
        if peer.rank is None:
            return
        message = f"rank {peer.rank} ended without a message during {self.stage}: it was killed, or its machine was lost"
        self._on_failure(Failure(message=message, exit_code=EXIT_OUR_FAULT, trace=""))

    def _on_failure(self, failure: Failure) -> None:
        """Print the failure of another rank and end the job."""
        state = self._state
        with state.lock:
            if state.is_over:
                return
            state.is_over, state.failure, state.exit_code = True, failure, failure.exit_code
        self._exit_after_clean_up()
        if self._rank <= 1:
            self._print(failure.message)
            if failure.trace:
                _log.debug("%s", failure.trace)
        self._send_end()
        state.ended_by_other.set()

    def _on_ended(self) -> None:
        """Rank 0 has printed the reason and ended the job."""
        with self._state.lock:
            self._state.is_over = True
        self._exit_after_clean_up()
        self._state.ended_by_other.set()

    def _on_wakeup(self) -> None:
        if signal.SIGTERM in self._wakeup_reader.recv(1 << 10):
            # The failure of another rank may be the cause and arrive soon. Rank 0 stops waiting first.
            self._schedule(_CAUSE_TIMEOUT_S * (2 if self._rank else 1), self._on_sigterm)

    def _on_sigterm(self) -> None:
        if self._state.failure is not None:  # the main thread is cleaning up
            return
        if self._rank == 0 and not self._state.is_over:
            self._print(f"ended by SIGTERM during {self.stage}; torchrun sends it when another process has failed")
            self._send_end()
        os._exit(self._state.exit_code or _EXIT_TERMINATED)

    def _send_end(self) -> None:
        if self._rank == 0:
            for peer in tuple(self._peers):
                _send(peer, "ended")

    def _exit_after_clean_up(self) -> None:
        self._schedule(_CLEAN_UP_TIMEOUT_S, lambda: os._exit(self._state.exit_code))

    def _schedule(self, seconds: Seconds, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _print(self, message: str) -> None:
        """Print without touching stdout: a blocked main thread may hold its lock."""
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            begin = "\n" if sys.stderr.isatty() else ""  # the current line may hold progress or text
            sys.stderr.write(f"{begin}{self._prog}: {message}\n")
            sys.stderr.flush()


def _send(peer: _Peer, line: str) -> None:
    """Send a line, unless the peer has ended."""
    with contextlib.suppress(OSError):
        peer.connection.sendall(line.encode() + b"\n")


@contextlib.contextmanager
def monitored_ranks(rank: int, store: Store, prog: str) -> Iterator[RankMonitor]:
    """Monitor the other ranks inside the `with` block.

    Args:
        rank: the rank of this process.
        store: shared by all ranks.
        prog: name of the command.
    """
    monitor = RankMonitor(rank, prog)
    monitor.start(store)
    try:
        with monitor.receiving_sigterm():
            yield monitor
    finally:
        monitor.close()
