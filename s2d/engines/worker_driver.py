"""Drives an engine through its Python API, in a process of the engine's own interpreter (`workers/serve.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfmodel.core.errors import EngineFailure
from perfmodel.core.units import Seconds, Tokens
from s2d.engines.environments import engine_python
from s2d.engines.processes.child_process import ChildProcess
from s2d.engines.processes.process_variables import engine_variables
from s2d.engines.session_request import CALL_TIMEOUT_S, START_TIMEOUT_S, CallResult, EngineFacts, SessionRequest

WORKERS = Path(__file__).with_name("workers")
"""Scripts that run inside an engine's environment."""
_FIELDS = ("tokens", "call_s", "decode_s", "untimed_tokens", "raw")
_OPTIONAL_FIELDS = ("num_rounds", "num_drafted", "num_accepted", "draft_s", "verify_s")
_MAX_QUOTED_CHARS = 80


def find_worker(engine: str) -> Path | None:
    """The script that calls an engine's Python API; None if the engine is driven through its server alone."""
    path = WORKERS / f"{engine.replace('.', '_').replace('-', '_')}_worker.py"
    return path if path.is_file() else None


class WorkerDriver:
    """A worker process and the engine inside it.

    Args:
        request: the engine, which has a worker, and its models.
        scratch: a folder for files of the session.

    Raises:
        UserInputError: the engine is not installed.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest, scratch: Path) -> None:
        worker = find_worker(request.engine)
        assert worker is not None
        settings = json.dumps(_settings(request, scratch))
        self._process = ChildProcess(
            request.engine,
            [str(engine_python(request.engine)), str(WORKERS / "serve.py"), str(worker), settings],
            environment=engine_variables(request.engine, request.num_threads),
            log=request.log,
            has_pipes=True,
        )
        self.pid = self._process.pid
        try:
            answer = self._answer(START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        options = tuple(f"{name}={value}" for name, value in answer["options"].items())
        self.facts = EngineFacts(version=str(answer["version"]), options=options)

    def call(self, prompt: Sequence[int], max_new_tokens: Tokens, *, draft_tokens: Tokens, floor: float | None) -> CallResult:
        """Decode one prompt. After an interruption, the engine is ended: its answer would be taken for that of the next call.

        Raises:
            EngineFailure: the engine fails, ends, or does not answer in time.
        """
        request = {"prompt": list(prompt), "max_new_tokens": max_new_tokens, "draft_tokens": draft_tokens, "floor": floor}
        try:
            self._process.write_line(json.dumps(request))
            answer = self._answer(CALL_TIMEOUT_S)
        except EngineFailure:
            raise
        except BaseException:
            self.close()
            raise
        fields = {name: answer[name] for name in _FIELDS} | {name: answer.get(name) for name in _OPTIONAL_FIELDS}
        return CallResult(**fields | {"tokens": tuple(answer["tokens"])})

    def close(self) -> None:
        """End the worker."""
        self._process.stop()

    def _answer(self, timeout_s: Seconds) -> dict[str, Any]:
        line = self._process.read_line(timeout_s)
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError as err:
            raise self._process.failure(f"it answered {line[:_MAX_QUOTED_CHARS]!r}") from err
        if "error" in answer:
            raise self._process.failure(answer["error"])
        return answer


def _settings(request: SessionRequest, scratch: Path) -> Mapping[str, str | int | float | None]:
    """What a worker needs to know of a request."""
    return {
        "target": str(request.target),
        "draft": None if request.draft is None else str(request.draft),
        "weights": request.weights,
        "num_threads": request.num_threads,
        "context_tokens": request.context_tokens,
        "cache_gib": request.cache_gib,
        "draft_tokens": request.draft_tokens,
        "floor": request.floor,
        "scratch": str(scratch),
    }
