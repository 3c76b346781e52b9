"""Drives an engine through its HTTP server, which it starts on a free port of 127.0.0.1 and ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from perfmodel.core.disk import translate_write_errors
from perfmodel.core.units import Seconds, Tokens
from s2d.engines.processes.child_process import ChildProcess
from s2d.engines.processes.interpreter import engine_variables
from s2d.engines.processes.loopback_client import BadAnswer, LoopbackClient, free_port
from s2d.engines.servers import make_server
from s2d.engines.session_request import CallResult, SessionRequest

_START_TIMEOUT_S: Seconds = 1800.0
"""Large models take long to load and compile; a server that ends is noticed at once."""
_POLL_S: Seconds = 0.1


class ServerDriver:
    """A server process, and requests to it.

    Raises:
        UserInputError: the engine is not installed, or has no server.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest) -> None:
        self._scratch = request.log.with_suffix(".files").absolute()
        self._process: ChildProcess | None = None
        port = free_port()
        self._server = make_server(request, port, self._scratch)
        self._client = LoopbackClient(port)
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)  # left by a session whose process was killed
            with translate_write_errors(self._scratch):
                self._scratch.mkdir()
            variables = engine_variables(request.engine, request.num_threads) | dict(self._server.variables)
            self._process = ChildProcess(
                request.engine, self._server.command(), environment=variables, log=request.log, has_pipes=False
            )
            self.pid = self._process.pid
            self._wait(self._process)
            self.version = self._server.version(self._client)
        except BadAnswer as err:
            self.close()
            assert self._process is not None
            raise self._process.failure(str(err)) from err
        except BaseException:
            self.close()
            raise

    def call(self, prompt: Sequence[int], max_new_tokens: Tokens, *, draft_tokens: Tokens, floor: float | None) -> CallResult:
        """Decode one prompt, with the draft length and floor of the session.

        Raises:
            EngineFailure: the engine fails or ends.
        """
        assert self._process is not None
        try:
            return self._server.call(self._client, prompt, max_new_tokens)
        except BadAnswer as err:
            raise self._process.failure(str(err)) from err

    def close(self) -> None:
        """End the server and all processes it started, and remove the files of the session."""
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _wait(self, process: ChildProcess) -> None:
        """Wait until the server is ready."""
        deadline_s = time.perf_counter() + _START_TIMEOUT_S
        while not self._client.is_ready(self._server.ready_path):
            if process.has_ended:
                raise process.failure("its server ended before it was ready")
            if time.perf_counter() > deadline_s:
                raise process.failure(f"its server was not ready after {_START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
