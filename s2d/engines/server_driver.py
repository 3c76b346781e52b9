"""Drives an engine through its HTTP server, which it starts on a free port of 127.0.0.1 and ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from perfmodel.core.units import Seconds, Tokens
from s2d.engines.processes.child_process import ChildProcess
from s2d.engines.processes.loopback_client import BadAnswer, LoopbackClient, free_port
from s2d.engines.processes.process_variables import engine_variables
from s2d.engines.servers import SERVERS
from s2d.engines.session_request import START_TIMEOUT_S, CallResult, EngineFacts, SessionRequest

_POLL_S: Seconds = 0.1
_NOT_UNDERSTOOD = (KeyError, TypeError, ValueError, AttributeError)
"""What reading an answer of another form than expected raises."""


class ServerDriver:
    """A server process, and requests to it.

    Args:
        request: the engine, which has a server, and its models.
        scratch: a folder for files of the session.

    Raises:
        UserInputError: the engine is not installed.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest, scratch: Path) -> None:
        port = free_port()
        self._server = SERVERS[request.engine](request, port, scratch)
        self._client = LoopbackClient(port)
        self._process = ChildProcess(
            request.engine,
            self._server.command(),
            environment=engine_variables(request.engine, request.num_threads) | dict(self._server.variables),
            log=request.log,
            has_pipes=False,
        )
        self.pid = self._process.pid
        try:
            self._wait()
            self.facts = EngineFacts(version=self._server.version(self._client), options=self._server.options)
        except (BadAnswer, *_NOT_UNDERSTOOD) as err:
            self.close()
            raise self._process.failure(_problem(err)) from err
        except BaseException:
            self.close()
            raise

    def call(self, prompt: Sequence[int], max_new_tokens: Tokens, *, draft_tokens: Tokens, floor: float | None) -> CallResult:
        """Decode one prompt, with the draft length and floor of the session.

        Raises:
            EngineFailure: the engine fails, ends, or does not answer in time.
        """
        self._check_runs()
        try:
            return self._server.call(self._client, prompt, max_new_tokens)
        except (BadAnswer, *_NOT_UNDERSTOOD) as err:
            raise self._process.failure(_problem(err)) from err

    def close(self) -> None:
        """End the server and all processes it started."""
        self._process.stop()

    def _wait(self) -> None:
        """Wait until the server is ready."""
        deadline_s = time.perf_counter() + START_TIMEOUT_S
        while not self._client.is_ready(self._server.ready_path):
            self._check_runs(" before it was ready")
            if time.perf_counter() > deadline_s:
                raise self._process.failure(f"its server was not ready after {START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        self._check_runs(" before it was ready")

    def _check_runs(self, when: str = "") -> None:
        """Refuse to go on if the server has ended: another program may then answer at its port."""
        if self._process.has_ended:
            raise self._process.failure(f"its server ended{when}")


def _problem(err: Exception) -> str:
    """What went wrong in a request."""
    return str(err) if isinstance(err, BadAnswer) else f"its answer is not understood ({type(err).__name__}: {err})"
