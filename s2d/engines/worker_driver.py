"""Drives an engine through its Python API, in a process of the engine's own interpreter (`workers/serve.py`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfmodel.core.disk import translate_write_errors
from perfmodel.core.units import Tokens
from s2d.engines.processes.child_process import ChildProcess
from s2d.engines.processes.interpreter import engine_interpreter, engine_variables
from s2d.engines.session_request import CallResult, SessionRequest

_WORKERS = Path(__file__).with_name("workers")
_FIELDS = ("tokens", "call_s", "decode_s", "untimed_tokens", "raw")
_OPTIONAL_FIELDS = ("num_rounds", "num_drafted", "num_accepted", "draft_s", "verify_s")


class WorkerDriver:
    """A worker process and the engine inside it.

    Raises:
        UserInputError: the engine is not installed.
        EngineFailure: it does not start.
    """

    def __init__(self, request: SessionRequest) -> None:
        self._scratch = request.log.with_suffix(".files").absolute()
        self._process: ChildProcess | None = None
        try:
            shutil.rmtree(self._scratch, ignore_errors=True)  # left by a session whose process was killed
            with translate_write_errors(self._scratch):
                self._scratch.mkdir()
            self._process = ChildProcess(
                request.engine,
                _command(request, self._scratch),
                environment=engine_variables(request.engine, request.num_threads),
                log=request.log,
                has_pipes=True,
            )
            self.pid = self._process.pid
            self.version = str(self._answer()["version"])
        except BaseException:
            self.close()
            raise

    def call(self, prompt: Sequence[int], max_new_tokens: Tokens, *, draft_tokens: Tokens, floor: float | None) -> CallResult:
        """Decode one prompt.

        Raises:
            EngineFailure: the engine fails or ends.
        """
        assert self._process is not None
        request = {"prompt": list(prompt), "max_new_tokens": max_new_tokens, "draft_tokens": draft_tokens, "floor": floor}
        self._process.write_line(json.dumps(request))
        answer = self._answer()
        fields = {name: answer[name] for name in _FIELDS} | {name: answer.get(name) for name in _OPTIONAL_FIELDS}
        return CallResult(**fields | {"tokens": tuple(answer["tokens"])})

    def close(self) -> None:
        """End the worker, and remove the files of the session."""
        if self._process is not None:
            self._process.stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        answer: dict[str, Any] = json.loads(self._process.read_line())
        if "error" in answer:
            raise self._process.failure(answer["error"])
        return answer


def _command(request: SessionRequest, scratch: Path) -> list[str]:
    worker = _WORKERS / f"{request.engine.replace('.', '_').replace('-', '_')}_worker.py"
    return [
        engine_interpreter(request.engine),
        str(_WORKERS / "serve.py"),
        str(worker),
        json.dumps(_settings(request, scratch)),
    ]


def _settings(request: SessionRequest, scratch: Path) -> Mapping[str, str | int | float | None]:
    """What a worker needs to know of a request."""
    return {
        "target": str(request.target.absolute()),
        "draft": None if request.draft is None else str(request.draft.absolute()),
        "weights": request.weights,
        "num_threads": request.num_threads,
        "context_tokens": request.context_tokens,
        "draft_tokens": request.draft_tokens,
        "floor": request.floor,
        "scratch": str(scratch),
    }
