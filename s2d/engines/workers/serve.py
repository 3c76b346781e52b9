"""Answers calls to an engine, as JSON lines on stdin and stdout: `python serve.py WORKER.py SETTINGS`.

WORKER.py has a class `Engine`, made from the settings: the JSON object that `s2d.engines.worker_driver` writes. Its `version`
and `options`, settings beside those that were asked for, are sent first. Every line of stdin is then a call `{"prompt",
"max_new_tokens", "draft_tokens", "floor"}`, answered by an object with the fields of `CallResult`, or by `{"error"}`.

Engines print what they like, so stdout is sent to stderr before the engine is imported, and answers go to a private copy.
"""

import importlib.util
import json
import os
import sys
import traceback
from typing import Any

_MAX_ERROR_CHARS = 600


def main() -> None:
    """Load the engine, then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.pop(0)  # this folder

    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        engine = _load(sys.argv[1]).Engine(json.loads(sys.argv[2]))
    except Exception as err:
        traceback.print_exc()
        answer({"error": _one_line(err)})
        return
    answer({"version": engine.version, "options": engine.options})
    for line in sys.stdin:
        try:
            answer(engine.call(json.loads(line)))
        except Exception as err:  # the caller decides what a failure means
            traceback.print_exc()
            answer({"error": _one_line(err)})


def _load(path: str) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location("worker", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _one_line(err: Exception) -> str:
    return f"{type(err).__name__}: {' '.join(str(err).split())}"[:_MAX_ERROR_CHARS].rstrip(".")


if __name__ == "__main__":
    main()
