"""Sessions with an engine: one target, with or without a draft, loaded in a process of its own and decoding prompts.

Every engine is asked for the same: greedy decoding of given token ids to exactly `max_new_tokens`, without an end token. What
`decode_s` measures in each is in the docstring of its worker (`s2d/engines/workers`) or of `s2d.engines.servers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from perfmodel.core.errors import EngineFailure, UnknownName, UserInputError
from perfmodel.core.units import Tokens
from s2d.engines.server_driver import ServerDriver
from s2d.engines.session_request import (
    API_ENGINES,
    SERVER_ENGINES,
    CallResult,
    Driver,
    SessionRequest,
    can_change_length,
)
from s2d.engines.worker_driver import WorkerDriver

__all__ = ["CallResult", "EngineSession", "SessionRequest"]


class EngineSession:
    """A running engine. Leaving the `with` block ends all of its processes, and so does any end of this process.

    ```python
    with EngineSession(request) as session:
        result = session.call(prompt, max_new_tokens=96, draft_tokens=5)
    ```

    Raises:
        UserInputError: the engine is not installed, or cannot be driven as requested.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest) -> None:
        self.request = request
        self._driver: Driver | None = None

    def __enter__(self) -> Self:
        self._driver = start_driver(self.request)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    @property
    def version(self) -> str:
        """The version that the engine reports."""
        return self._running.version

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
            ValueError: the engine cannot change the length or the floor from call to call.
        """
        request = self.request
        length = request.draft_tokens if draft_tokens is None else draft_tokens
        limit = request.floor if floor is None else floor
        if (length, limit) != (request.draft_tokens, request.floor) and not self.can_change_length:
            raise ValueError(f"engine {request.engine!r} keeps its draft length and floor: start another session")
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


def start_driver(request: SessionRequest) -> Driver:
    """Start the engine of a request, through its Python API or its server.

    Raises:
        UserInputError: the engine is unknown, not installed, or has no such interface.
        EngineFailure: it does not start.
    """
    engine, interface = request.engine, request.interface
    if engine not in {*API_ENGINES, *SERVER_ENGINES}:
        raise UnknownName("engine", engine, sorted({*API_ENGINES, *SERVER_ENGINES}), listed_in="docs/reference/engines.md")
    allowed = {"api": API_ENGINES, "server": SERVER_ENGINES}
    if interface is not None and engine not in allowed[interface]:
        raise UserInputError(
            f"engine {engine!r} has no {interface} that this project drives: expected the "
            f"{'server' if interface == 'api' else 'api'}. Leave the interface out."
        )
    if interface == "server" or engine not in API_ENGINES:
        return ServerDriver(request)
    return WorkerDriver(request)
