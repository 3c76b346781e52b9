"""What the files of every engine are written from, and the files themselves."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.units import Tokens
from perfmodel.engines.engine import Engine
from s2d.engines.processes.loopback_client import HOST
from s2d.exporting.served_policy import ServedPolicy

TARGET_VARIABLE = '"$TARGET"'
"""The target in a script. The user may set it to another place."""
_RESOLVE_TARGET = 'case ${TARGET:-} in "" | /*) ;; *) if [ -e "$TARGET" ]; then TARGET=$PWD/$TARGET; fi ;; esac'
"""A relative path is one of the caller's folder, which the script leaves."""
_OFFLINE = "export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}"
"""Engines would fetch a target that is named and not here."""
PORT_VARIABLE = '"${PORT}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One target and one exported exit, as an engine will serve them. Paths are relative to the exported folder."""

    engine: Engine
    weights: str
    """Storage of the weights, in the engine's words."""
    policy: ServedPolicy
    target: str
    """A path inside the folder, or the user's own path or hub name."""
    is_target_inside: bool
    draft: str
    """A path inside the folder."""
    num_devices: int
    draft_num_devices: int
    context_tokens: Tokens
    """Longest text that both models can read."""
    text_tokens: Tokens
    """Prompt and output of the plan's workload."""
    max_batch: int
    """Sequences decoded together."""
    num_threads: int | None
    """Threads of a CPU; None on a GPU."""
    kv_cache_gib: int
    """KV caches of both models for all sequences of the largest batch, each as long as the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A file to write."""

    name: str
    """Relative to the exported folder."""
    text: str
    purpose: str
    """One line for the README."""
    is_command: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFiles:
    """The files of one engine, the first of them the one that serves."""

    files: tuple[TextFile, ...]
    notes: tuple[str, ...] = ()
    """Facts about this engine that the README states."""
    default_port: int | None = None
    """Port of the server; None if the engine is a Python library."""


def quote_words(*words: object) -> list[str]:
    """Words of a command, each quoted for a shell."""
    return [shlex.quote(str(word)) for word in words]


def script(serving: Serving, purpose: str, commands: Sequence[str], *, port: int | None = None) -> str:
    """A shell script that works wherever the folder is moved to.

    Args:
        serving: for the target's default place.
        purpose: one sentence.
        commands: lines after the variables.
        port: default of the variable PORT; None without a server.
    """
    lines = ["#!/bin/sh", f"# {purpose}", "set -eu", _RESOLVE_TARGET, 'cd -- "$(dirname -- "$0")"']
    lines += [_OFFLINE] if serving.engine.checkpoint in ("huggingface", "mlx") else []
    lines += [f'if [ -z "${{TARGET:-}}" ]; then TARGET={shlex.quote(serving.target)}; fi']
    lines += [f"PORT=${{PORT:-{port}}}"] if port is not None else []
    return "\n".join([*lines, *commands]) + "\n"


def serving_file(text: str, port: int) -> TextFile:
    """`serve.sh`, which serves the plan."""
    return TextFile(name="serve.sh", text=text, purpose=f"serves the plan on port {port}, or $PORT", is_command=True)


def plain_file(text: str) -> TextFile:
    """`serve-plain.sh`, which serves the target alone."""
    return TextFile(name="serve-plain.sh", text=text, purpose="serves the target without a draft", is_command=True)


def address_words() -> list[str]:
    """Where a server listens: on this machine only, at the script's port."""
    return [*quote_words("--host", HOST, "--port"), PORT_VARIABLE]


def command_lines(words: Sequence[str]) -> str:
    """A command over several lines: an option and its value on one. The user's own options follow.

    Args:
        words: already quoted.
    """
    lines: list[str] = []
    for word in words:
        is_value = bool(lines) and not word.startswith("-")
        lines = [*lines[:-1], f"{lines[-1]} {word}"] if is_value else [*lines, word]
    return " \\\n    ".join([*lines, '"$@"'])


def compact_json(value: object) -> str:
    """JSON on one line, keys in the given order."""
    return json.dumps(value, allow_nan=False)


def rounded_rates(serving: Serving) -> list[float]:
    """Acceptance rates with four decimals, which keeps them from rising."""
    return [round(rate, 4) for rate in serving.policy.acceptance_rates]
