"""A failure of one rank ends all of them, with one message.

Every other rank keeps a TCP connection to rank 0, and a thread of each process watches its end of it. A rank that fails sends
its error. A process that is killed closes its connection. A machine that is lost no longer answers the kernel's keep-alive
probes. Rank 0 prints the message and tells the others to end; rank 1 prints it where rank 0 is the one that was lost.

Nothing here waits for a collective operation: on NCCL one that lacks a rank never ends, and its kernel blocks every later
synchronisation of the main thread. So the thread prints the message first, leaves the main thread a few seconds to clean up,
and then ends the process with `os._exit`, which also removes a kernel that hangs.

torchrun sends SIGTERM to the other processes of a machine as soon as one fails. The thread receives it too (Python runs signal
handlers in the main thread, which may be blocked) and waits a moment for the cause, so that the message is still printed.
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

_CAUSE_WITHIN_S: Seconds = 2.0
"""How long a rank with an error waits for the failure of another rank, which may be the cause."""
_PRINTED_WITHIN_S: Seconds = 10.0
"""How long a failed rank waits for rank 0 to print its message, before it prints it itself."""
_CLEAN_UP_WITHIN_S: Seconds = 5.0
"""How long the main thread has to end after a failure, before the process is ended."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Socket options (seconds, seconds, probes): a machine that is lost is noticed after 20 s. Not every system has them all."""
_EXIT_TERMINATED = 128 + signal.SIGTERM
_ADDRESS_KEY = "watch"
_WELCOME = "welcome"

_log = logging.getLogger(__name__)


class Stage(IntEnum):
    """What a job is doing, for the message about its end."""

    START = 0
    LOADING = 1
    PREFILL = 2
    """A pass that begins a text."""
    DRAFTING = 3
    VERIFICATION = 4
    SAMPLING = 5
    """Whatever rank 0 does alone between two passes."""

    def __str__(self) -> str:
        return "sampling (or drafting on rank 0 alone)" if self is Stage.SAMPLING else self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job ended."""

    message: str
    exit_code: int
    trace: str
    """The traceback, for -v; empty for a process that was killed."""


@dataclass(slots=True)
class _Peer:
    """The other end of a connection."""

    connection: socket.socket
    rank: int | None
    """None until it has introduced itself."""
    unread: bytes = b""
    """The beginning of a line whose end has not arrived."""


@dataclass(slots=True)
class _State:
    """What both threads know of the job's end."""

    is_over: bool = False
    """From here on a closed connection is not a failure."""
    failure: Failure | None = None
    exit_code: int = EXIT_ANSWERED
    """With which the process is ended if the main thread does not end it."""
    news: threading.Event = field(default_factory=threading.Event)
    """Set when another rank has ended the job."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class RankMonitor:
    """Watches the other ranks from a thread of its own.

    Args:
        rank: of this process.
        prog: the command's name, which begins its messages.
    """

    def __init__(self, rank: int, prog: str) -> None:
        self.stage = Stage.START
        """The main thread keeps it up to date."""
        self._rank = rank
        self._prog = prog
        self._state = _State()
        self._peers: list[_Peer] = []
        self._token = ""
        self._selector = selectors.DefaultSelector()
        self._bell, self._bell_rope = socket.socketpair()
        self._is_closing = False
        self._timers: list[threading.Timer] = []
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)

    def start(self, store: Store) -> None:
        """Connect to rank 0, or be found by the others, and begin to watch.

        Args:
            store: where rank 0 leaves its address.
        """
        if self._rank == 0:
            self._listen(store)
        else:
            self._connect(store)
        for end in (self._bell, self._bell_rope):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, self._on_bell)
        self._thread.start()

    @contextlib.contextmanager
    def receiving_sigterm(self) -> Iterator[None]:
        """Let the thread handle SIGTERM, which the main thread may be too busy for."""

        def nothing(_number: int, _frame: FrameType | None) -> None:
            """The thread reads the signal's number from the socket."""

        wakeup = signal.set_wakeup_fd(self._bell_rope.fileno(), warn_on_full_buffer=False)
        handler = signal.signal(signal.SIGTERM, nothing)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, handler)
            signal.set_wakeup_fd(wakeup)

    def end(self, exit_code: int) -> None:
        """Rank 0: the job ends, and what there was to print has been printed. Later calls do nothing."""
        with self._state.lock:
            if self._state.is_over:
                return
            self._state.is_over = True
            self._state.exit_code = exit_code
        if exit_code != EXIT_ANSWERED:
            self._limit_clean_up()
        self._send_ended()

    def failure_of_others(self) -> Failure | None:
        """Rank 0: the failure of another rank, which has been printed; None after waiting for one in vain."""
        self._state.news.wait(_CAUSE_WITHIN_S)
        return self._state.failure

    def fail(self, err: Exception) -> int:
        """Another rank: have rank 0 print an error, unless it is the consequence of another failure; returns the exit code."""
        state = self._state
        if state.news.wait(_CAUSE_WITHIN_S):
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
        if not state.news.wait(_PRINTED_WITHIN_S):
            self._print(failure.message)
        self._limit_clean_up()
        return failure.exit_code

    def close(self) -> None:
        """Stop watching."""
        self._is_closing = True
        self._bell_rope.send(b"\0")
        self._thread.join()
        for timer in self._timers:
            timer.cancel()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()
        self._bell_rope.close()

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
        # Rank 0 runs where the ranks meet.
        peer = self._add_peer(socket.create_connection((os.environ["MASTER_ADDR"], int(port))), 0)
        _send(peer, f"{token} {self._rank}")
        # From here on rank 0 knows whom to tell of its end.
        answer = peer.connection.recv(len(_WELCOME) + 1, socket.MSG_WAITALL)
        if answer.decode() != f"{_WELCOME}\n":
            raise ConnectionError("rank 0 ended before the ranks had met")

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
                react: Callable[[], None] = key.data
                react()

    def _read(self, peer: _Peer) -> None:
        """Take in what a peer sent, or that its process has ended."""
        try:
            data = peer.connection.recv(1 << 16)
        except OSError:  # reset by a process that ended, or timed out as its machine was lost
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
        if self._rank > 0:  # rank 0 sends one line only: the job has ended
            self._on_ended()
        elif peer.rank is not None:
            self._on_failure(Failure(**json.loads(line)))
        else:
            token, _, rank = line.partition(b" ")
            if secrets.compare_digest(token, self._token.encode()):
                peer.rank = int(rank)
                _send(peer, _WELCOME)
            elif peer in self._peers:  # it is no rank of this job
                self._peers.remove(peer)

    def _on_lost(self, peer: _Peer) -> None:
        if peer.rank is None:
            return
        message = f"rank {peer.rank} ended without a message during {self.stage}: it was killed, or its machine was lost"
        self._on_failure(Failure(message=message, exit_code=EXIT_OUR_FAULT, trace=""))

    def _on_failure(self, failure: Failure) -> None:
        """Another rank has failed: print it, and end the job."""
        state = self._state
        with state.lock:
            if state.is_over:
                return
            state.is_over, state.failure, state.exit_code = True, failure, failure.exit_code
        self._limit_clean_up()
        if self._rank <= 1:
            self._print(failure.message)
            if failure.trace:
                _log.debug("%s", failure.trace)
        self._send_ended()
        state.news.set()

    def _on_ended(self) -> None:
        """Rank 0 has ended the job, and printed why."""
        with self._state.lock:
            self._state.is_over = True
        self._limit_clean_up()
        self._state.news.set()

    def _on_bell(self) -> None:
        if signal.SIGTERM in self._bell.recv(1 << 10):
            # The cause may be another rank's failure, which is known then. Rank 0 is the first to give up waiting.
            self._after(_CAUSE_WITHIN_S * (2 if self._rank else 1), self._on_sigterm)

    def _on_sigterm(self) -> None:
        if self._state.failure is not None:  # the main thread is cleaning up
            return
        if self._rank == 0 and not self._state.is_over:
            self._print(f"ended by SIGTERM during {self.stage}; torchrun sends it when another process has failed")
            self._send_ended()
        os._exit(self._state.exit_code or _EXIT_TERMINATED)

    def _send_ended(self) -> None:
        if self._rank == 0:
            for peer in tuple(self._peers):
                _send(peer, "ended")

    def _limit_clean_up(self) -> None:
        self._after(_CLEAN_UP_WITHIN_S, lambda: os._exit(self._state.exit_code))

    def _after(self, seconds: Seconds, action: Callable[[], None]) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def _print(self, message: str) -> None:
        """Print without touching stdout, whose lock a blocked main thread may hold."""
        with contextlib.suppress(OSError, ValueError):  # it is closed
            begin = "\n" if sys.stderr.isatty() else ""  # a progress line, or text, may stand there
            sys.stderr.write(f"{begin}{self._prog}: {message}\n")
            sys.stderr.flush()


def _send(peer: _Peer, line: str) -> None:
    """Send a line; a peer that has ended needs none."""
    with contextlib.suppress(OSError):
        peer.connection.sendall(line.encode() + b"\n")


@contextlib.contextmanager
def monitored_ranks(rank: int, store: Store, prog: str) -> Iterator[RankMonitor]:
    """Watch the other ranks meanwhile.

    Args:
        rank: of this process.
        store: shared by all ranks.
        prog: the command's name.
    """
    watch = RankMonitor(rank, prog)
    watch.start(store)
    try:
        with watch.receiving_sigterm():
            yield watch
    finally:
        watch.close()
