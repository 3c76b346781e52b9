"""What a session with an engine is asked for, and what it answers.

Both drivers and the session share these records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from perfmodel.core.units import Seconds, Tokens

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"
Interface = Literal["api", "server"]
"""How an engine is driven: through its Python API, or through its HTTP server on 127.0.0.1."""

API_ENGINES = ("s2d", "onnxruntime", "openvino", "vllm", "transformers", "mlx-lm")
"""Engines that are driven through their Python API by default."""
SERVER_ENGINES = ("llama.cpp", "vllm", "sglang", "tensorrt-llm")
"""Engines that are driven through their server: by default if they have no other interface here."""
LLAMA_SERVER_VARIABLE = "S2D_LLAMA_SERVER"
"""The environment variable with the path of a `llama-server` to run in place of the environment's."""
START_TIMEOUT_S: Seconds = 1800.0
"""Large models take long to load and compile; an engine that ends is noticed at once."""
CALL_TIMEOUT_S: Seconds = 3600.0
"""A call of many tokens on a slow machine."""
_CHANGES_LENGTH = ("s2d", "onnxruntime", "openvino", "transformers", "mlx-lm")


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRequest:
    """What to load in an engine. Both models are in the engine's own format."""

    engine: str
    """Name in the table of engines."""
    target: Path
    draft: Path | None
    """None: plain decoding."""
    weights: str
    """Storage of the weights, in the engine's words."""
    num_threads: int | None
    """Threads of a CPU run; None runs on the engine's GPU."""
    context_tokens: Tokens
    """The longest text, prompt included."""
    draft_tokens: Tokens
    """The draft length; the longest one, if the engine takes a length with every call. 0 without a draft."""
    floor: float | None
    """Confidence floor in the engine's own measure; None: no floor."""
    log: Path
    """The file that receives what the engine prints. A folder beside it holds files of the session while it runs."""
    interface: Interface | None = None
    """None takes the Python API where there is one."""
    cache_gib: int = 1
    """Size of the KV cache of both models, for engines that reserve it when they start (OpenVINO, vLLM on a CPU)."""

    def __post_init__(self) -> None:
        if (self.draft is None) != (self.draft_tokens == 0):
            raise ValueError(f"draft {self.draft} with draft_tokens {self.draft_tokens}: expected both or neither")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What a started engine reports of itself."""

    version: str
    options: tuple[str, ...] = ()
    """Settings that it was given beside those of the request, as `name=value`: those that change its speed or its text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """One prompt decoded once. None: the engine does not report it."""

    tokens: tuple[int, ...]
    """The emitted tokens."""
    call_s: Seconds
    """All of the call, the prompt's pass included."""
    decode_s: Seconds
    """Without the prompt's pass."""
    untimed_tokens: Tokens
    """Emitted tokens that `decode_s` does not cover, because they come with the prompt's pass."""
    num_rounds: int | None = None
    """Rounds within `decode_s`."""
    num_drafted: int | None = None
    num_accepted: int | None = None
    draft_s: Seconds | None = None
    """Seconds in the draft, by the engine's own timers."""
    verify_s: Seconds | None = None
    """Seconds in the target, by the engine's own timers."""
    raw: Mapping[str, Json]
    """What the engine itself reported, in its own words and units."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of decoding."""
        return (len(self.tokens) - self.untimed_tokens) / self.decode_s


class Driver(Protocol):
    """Starts an engine, calls it, and ends it."""

    facts: EngineFacts
    pid: int
    """A process above all processes of the engine."""

    def call(self, prompt: Sequence[int], max_new_tokens: Tokens, *, draft_tokens: Tokens, floor: float | None) -> CallResult:
        """Decode one prompt."""
        ...

    def close(self) -> None:
        """End all processes of the engine."""
        ...


def can_change_length(engine: str, interface: Interface | None = None) -> bool:
    """Whether an engine takes the draft length with every call; otherwise it takes it when it starts."""
    return interface != "server" and engine in _CHANGES_LENGTH
