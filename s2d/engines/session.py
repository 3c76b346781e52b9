"""Sessions with an engine: one target, with or without a draft, loaded in a process of its own and decoding prompts.

Every engine is asked for the same: greedy decoding of given token ids to exactly `max_new_tokens`, without an end token. What
`decode_s` measures in each is in the docstring of its worker (`s2d/engines/workers`) or of `s2d.engines.servers`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from perfmodel.core.disk import translate_write_errors
from perfmodel.core.errors import EngineFailure, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.engines.find_engine import find_engine
from s2d.engines.environments import engine_python
from s2d.engines.server_driver import ServerDriver
from s2d.engines.servers import SERVERS
from s2d.engines.session_request import (
    API_ENGINES,
    SERVER_ENGINES,
    CallResult,
    Driver,
    EngineFacts,
    Interface,
    SessionRequest,
    can_change_length,
)
from s2d.engines.worker_driver import WorkerDriver


class EngineSession:
    """A running engine. Leaving the `with` block ends all of its processes, and so does any end of this process.

    ```python
    with EngineSession(request) as session:
        result = session.call(prompt, max_new_tokens=96, draft_tokens=5)
    ```

    Raises:
        UnknownName: there is no such engine.
        UserInputError: the engine is not installed, or cannot be driven as requested.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest) -> None:
        self.request = _resolved(request)
        self._driver: Driver | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            scratch = stack.enter_context(_scratch_folder(self.request.log))
            self._driver = start_driver(self.request, scratch)
            stack.callback(self._driver.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._driver = None
        self._stack.close()

    @property
    def facts(self) -> EngineFacts:
        """The version that the engine reports, and the settings it was given."""
        return self._running.facts

    @property
    def pid(self) -> int:
        """A process above all processes of the engine, to read how long they waited for a processor."""
        return self._running.pid

    @property
    def can_change_length(self) -> bool:
        """Whether every call can have a draft length of its own, at most that of the request."""
        return can_change_length(self.request.engine, self.request.interface)

    def call(
        self, prompt: Sequence[int], max_new_tokens: Tokens, draft_tokens: Tokens | None = None, floor: float | None = None
    ) -> CallResult:
        """Decode one prompt greedily, to exactly `max_new_tokens`.

        Args:
            prompt: token ids.
            max_new_tokens: number of tokens to emit.
            draft_tokens: the draft length; None takes that of the request.
            floor: confidence floor; None takes that of the request.

        Raises:
            EngineFailure: the engine fails, ends, or emits another number of tokens.
            ValueError: the engine cannot change the length or the floor from call to call, or the length is too large.
        """
        request = self.request
        length = request.draft_tokens if draft_tokens is None else draft_tokens
        limit = request.floor if floor is None else floor
        if (length, limit) != (request.draft_tokens, request.floor) and not self.can_change_length:
            raise ValueError(f"engine {request.engine!r} keeps its draft length and floor: start another session")
        if length > request.draft_tokens:
            raise ValueError(
                f"a draft of {length} tokens: expected at most {request.draft_tokens}, for which the session started"
            )
        result = self._running.call(prompt, max_new_tokens, draft_tokens=length, floor=limit)
        if len(result.tokens) != max_new_tokens:
            problem = f"it emitted {len(result.tokens)} tokens in place of {max_new_tokens}"
            raise EngineFailure(request.engine, problem, log=request.log, last_lines="")
        return result

    @property
    def _running(self) -> Driver:
        if self._driver is None:
            raise RuntimeError("an engine session runs inside its `with` block only")
        return self._driver


def check_installed(engine: str, interface: Interface | None) -> None:
    """Refuse an engine that no session can start, before the work that its models take.

    Raises:
        UserInputError: the engine is not installed, or has no such interface.
    """
    if _is_server(engine, interface):
        SERVERS[engine].program()
    else:
        engine_python(engine)


def start_driver(request: SessionRequest, scratch: Path) -> Driver:
    """Start the engine of a request, through its Python API or its server.

    Args:
        request: the engine and its models.
        scratch: a folder for files of the session.

    Raises:
        UserInputError: the engine is not installed, or has no such interface.
        EngineFailure: it does not start.
    """
    if _is_server(request.engine, request.interface):
        return ServerDriver(request, scratch)
    return WorkerDriver(request, scratch)


def _is_server(engine: str, interface: Interface | None) -> bool:
    """Whether an engine is driven through its server.

    Raises:
        UserInputError: it does not have the requested interface.
    """
    if interface is not None and engine not in {"api": API_ENGINES, "server": SERVER_ENGINES}[interface]:
        other = "HTTP server" if interface == "api" else "Python API"
        raise UserInputError(
            f"--interface {interface}: this project drives {engine} through its {other} only. Leave --interface out."
        )
    return interface == "server" or engine not in API_ENGINES


def _resolved(request: SessionRequest) -> SessionRequest:
    """The request with the engine's name in place of an alias, and absolute paths: engines may change their folder."""
    draft = None if request.draft is None else request.draft.absolute()
    return replace(request, engine=find_engine(request.engine).name, target=request.target.absolute(), draft=draft)


@contextmanager
def _scratch_folder(log: Path) -> Iterator[Path]:
    """An empty folder beside the log, removed at the end."""
    folder = log.with_suffix(".files").absolute()
    shutil.rmtree(folder, ignore_errors=True)  # left by a session whose process was killed
    with translate_write_errors(folder):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
