"""The engine profile: configurations that were run in an engine, with their seconds and acceptance counters.

One file format for all engines. Nothing in it is derived: `calibrate` solves it for the seconds of passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from perfmodel.core.blocks import Block, Printable
from perfmodel.core.files import FileFormat
from perfmodel.core.units import Frac, Seconds, Tokens
from perfmodel.models.geometry import DraftGeometry, ModelGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetting:
    """Which engine ran, and how. Seconds of one setting do not hold for another."""

    engine: str
    """Name in the table of engines."""
    version: str
    """As the engine reports it."""
    weights: str
    """Storage of the weights of both models, in the engine's words: `f32`, `bf16`, `q8_0`, `int8`."""
    device: str
    """`NVIDIA H200`, or the model name of a CPU."""
    num_devices: int
    num_threads: int | None
    """Threads of a CPU run; None on a GPU."""
    options: tuple[str, ...] = ()
    """Other settings that were given to the engine, as `name=value`."""

    @property
    def label(self) -> str:
        """`llama.cpp b11434, q8_0, 1 x AMD EPYC, 1 thread`."""
        threads = "" if self.num_threads is None else f", {self.num_threads} thread{'s' if self.num_threads > 1 else ''}"
        return f"{self.engine} {self.version}, {self.weights}, {self.num_devices} x {self.device}{threads}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCall:
    """One prompt decoded once. None: the engine does not report it."""

    prompt: str
    """Name of the prompt, as in a trace."""
    prompt_tokens: Tokens
    num_tokens: Tokens
    """Emitted tokens, the first one included."""
    decode_s: Seconds
    """From the first emitted token to the last, without the prompt's pass."""
    output_sha256: str
    """Hash of the emitted token ids, which shows whether two configurations wrote the same text."""
    num_rounds: int | None = None
    """Rounds within `decode_s`."""
    num_drafted: int | None = None
    num_accepted: int | None = None
    draft_s: Seconds | None = None
    """Seconds in the draft, by the engine's own timers."""
    verify_s: Seconds | None = None
    """Seconds in the target, by the engine's own timers."""
    waited_frac: Frac | None = None
    """Share of the call in which other programs had the processor; None if unknown."""
    estimated_tokens_per_round: float | None = None
    """Tokens of a round by the engine's own formula, from its mean acceptance (ONNX Runtime GenAI)."""
    untimed_tokens: Tokens = 1
    """Emitted tokens that `decode_s` does not cover: 1 where the prompt's pass emits the first token, 0 where decoding does."""
    visit: int | None = None
    """Number of the visit to the prompt. Its calls ran one after another: the machine was in the same state."""


def configuration_label(exit_layer: int | None, draft_tokens: Tokens, *, floor: float | None, is_draft_alone: bool) -> str:
    """`plain`, `exit 4 alone`, `exit 4, 5 tokens`, `exit 4, 20 tokens, floor 0.4`."""
    if exit_layer is None:
        return "plain"
    if is_draft_alone:
        return f"exit {exit_layer} alone"
    return f"exit {exit_layer}, {draft_tokens} tokens" + ("" if floor is None else f", floor {floor:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRun:
    """One configuration over some prompts, each possibly several times."""

    exit_layer: int | None
    """The exit that drafts; None: no draft."""
    draft_tokens: Tokens
    """Fixed draft length; 0 without a draft."""
    floor: float | None
    """Confidence floor in the engine's own measure; None: no floor."""
    is_draft_alone: bool
    """Whether the exit itself was decoded plainly, as if it were a target. `exit_layer` names it, `draft_tokens` is 0."""
    calls: tuple[EngineCall, ...]

    def __post_init__(self) -> None:
        if not self.calls:
            raise ValueError("an engine run has at least one call")
        if (self.draft_tokens > 0) and (self.exit_layer is None or self.is_draft_alone):
            raise ValueError("a run with a draft names its exit, and an exit alone has no draft")

    @property
    def is_plain(self) -> bool:
        """Whether this is plain decoding of the target."""
        return self.exit_layer is None

    @property
    def label(self) -> str:
        """The configuration: `plain`, `exit 4 alone`, `exit 4, 5 tokens`."""
        return configuration_label(self.exit_layer, self.draft_tokens, floor=self.floor, is_draft_alone=self.is_draft_alone)

    @property
    def decode_tokens(self) -> Tokens:
        """Tokens that `decode_s` covers: in most engines, all but the first of each call."""
        return sum(call.num_tokens - call.untimed_tokens for call in self.calls)

    @property
    def decode_s(self) -> Seconds:
        """Seconds of all calls, without the passes over the prompts."""
        return sum(call.decode_s for call in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile(Printable):
    """Configurations measured in one engine, interleaved over the same prompts."""

    setting: EngineSetting
    target: ModelGeometry
    target_sha256: str
    draft: DraftGeometry
    draft_sha256: str
    tokenizer_sha256: str | None
    max_new_tokens: Tokens
    runs: tuple[EngineRun, ...]

    def __post_init__(self) -> None:
        if not any(run.is_plain for run in self.runs):
            raise ValueError("an engine profile holds plain decoding of the target")

    def blocks(self, *, explain: bool = False) -> Sequence[Block]:
        """The answer of `s2d-profile engine` as blocks of text."""
        from perfmodel.engines.engine_profile_text import profile_blocks

        return profile_blocks(self, explain=explain)

    @property
    def plain(self) -> EngineRun:
        """Plain decoding of the target."""
        return next(run for run in self.runs if run.is_plain)


ENGINE_PROFILE_FILE = FileFormat(record=EngineProfile, schema="s2d/engine-profile", made_with="s2d-profile engine")
