"""Requests to profile an engine, and the configurations that such a profile runs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perfmodel.acceptance.splits import Split
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadPolicy, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.engines.engine import Engine
from perfmodel.engines.engine_profile import EngineRun, configuration_label
from perfmodel.engines.find_engine import engine_weights, find_engine
from perfmodel.engines.weight_words import find_dtype
from perfmodel.models.geometry import check_exit_layers
from s2d.engines.session_request import Interface, can_change_length
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names, family_prompts
from s2d.prompt_files.load_prompts import PromptSource
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt, check_texts

DEFAULT_LENGTHS: tuple[Tokens, ...] = (2, 5, 8)
"""With plain decoding, they show verification of 1, 3, 6 and 9 rows, between which its seconds are interpolated."""
_CPU_FILES = ("onnxruntime",)
"""Engines whose files depend on the device, and are written for CPUs."""
_FLOATS = ("fp32", "bf16", "fp16")

_SLOW_STARTS = ("vllm", "sglang", "tensorrt-llm")
"""Engines that take a minute or more to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfileRequest:
    """A measurement of a target and exits of a draft in an engine. The defaults are those of `s2d-profile engine`."""

    engine: str
    """A name or an alias in the table of engines."""
    target: str
    """A model folder, a name of the reference family (`ref-target-16`), or `org/name` on the Hugging Face hub."""
    draft: str
    """As for `target`. Its exits are written as ordinary checkpoints."""
    output: Path | None = None
    """The file. A repeated request continues an interrupted measurement there. None: `NAME.engine.json`."""
    exits: tuple[int, ...] | None = None
    """Exits to run; None takes the first and the last of the draft."""
    lengths: tuple[Tokens, ...] = DEFAULT_LENGTHS
    """Draft lengths to run with every exit."""
    configurations: tuple[Arm, ...] | None = None
    """What to run, plain decoding first; None runs plain decoding, every exit alone, and every exit with every length."""
    weights: str | None = None
    """Storage of the weights of both models; None takes the first that the engine's row names."""
    threads: int | None = 1
    """Threads of a CPU run; None runs on the engine's GPU."""
    interface: Interface | None = None
    """How the engine is driven; None takes its Python API where there is one."""
    prompts: PathLike | Sequence[str | Prompt] | None = None
    """A prompt file, or the prompts themselves; None takes the prompts of the reference family."""
    read_as: ReadAs = field(default_factory=lambda: ReadAs(use="prompt"))
    """How to read the prompt file."""
    split: Split = "calibration"
    """The half of the prompt file to use."""
    num_prompts: int = 8
    """The maximum number of prompts to choose from the file."""
    max_new_tokens: Tokens = 96
    """Tokens written after each prompt."""
    repeats: int = 2
    """How often every configuration decodes every prompt; every second time in reverse order."""
    plain_calls: int = 1
    """How often plain decoding runs in each of them: every speedup is over its seconds, so all share its noise."""
    restarts: int | None = None
    """How often the processes are started anew between repeats: two processes with the same arguments can differ by a fifth in
    seconds as long as they live. None: before every repeat if each length has its own process, which starts within seconds
    (llama.cpp); otherwise never."""
    warm_up_tokens: Tokens = 8
    """Tokens decoded just before each measured call, by the same process. 0: no warm-up."""
    work_folder: Path | None = None
    """Where exits and converted checkpoints are kept for later profiles; None: `engine-models` beside the file."""
    seed: int = 0
    """The seed of the measuring order."""

    def __post_init__(self) -> None:
        for flag, count, lowest in (
            ("--num-prompts", self.num_prompts, 1),
            ("--max-new-tokens", self.max_new_tokens, 2),
            ("--repeats", self.repeats, 1),
            ("--plain-calls", self.plain_calls, 1),
            ("--threads", self.threads, 1),
            ("--warm-up-tokens", self.warm_up_tokens, 0),
        ):
            if count is not None and count < lowest:
                raise UserInputError(f"{flag} {count}: expected at least {lowest}.")
        if self.restarts is not None and not 0 <= self.restarts < self.repeats:
            raise UserInputError(
                f"--restarts {self.restarts}: expected 0 to {self.repeats - 1}, as processes start anew between {self.repeats} "
                "repeats. Give a higher --repeats."
            )
        _check_device(self.row, "cuda" if self.threads is None else "cpu")
        _check_weights(self.row, self.stored_weights)
        _check_lengths(self.row, self.lengths)
        if self.exits is not None:
            check_exit_layers(self.exits)
        if self.configurations is not None:
            _check_configurations(self.configurations, self.exits)

    @property
    def row(self) -> Engine:
        """The row of the engine."""
        return find_engine(self.engine)

    @property
    def num_restarts(self) -> int:
        """How often the processes are started anew."""
        if self.restarts is not None:
            return self.restarts
        has_one_length = not can_change_length(self.row.name, self.interface)
        return self.repeats - 1 if has_one_length and self.row.name not in _SLOW_STARTS else 0

    @property
    def file(self) -> Path:
        """The file to write."""
        return Path(f"{self.row.name}.engine.json") if self.output is None else self.output

    @property
    def partial_file(self) -> Path:
        """The file of an unfinished measurement."""
        return self.file.with_name(f"{self.file.name.removesuffix('.json')}.partial.json")

    @property
    def models_folder(self) -> Path:
        """Where exits and converted checkpoints are kept."""
        return self.work_folder or self.file.absolute().parent / "engine-models"

    @property
    def stored_weights(self) -> str:
        """The storage of the weights in the engine's words."""
        return self.row.weights[0] if self.weights is None else engine_weights(self.row, self.weights)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Arm:
    """One configuration of a profile."""

    exit_layer: int | None
    """None: no draft."""
    draft_tokens: Tokens
    is_draft_alone: bool
    floor: float | None = None
    """Confidence floor in the engine's own measure; None: no floor."""

    @property
    def is_plain(self) -> bool:
        """Whether this is plain decoding of the target."""
        return self.exit_layer is None

    @property
    def label(self) -> str:
        """The configuration: `plain`, `exit 4 alone`, `exit 4, 5 tokens`."""
        return configuration_label(self.exit_layer, self.draft_tokens, floor=self.floor, is_draft_alone=self.is_draft_alone)

    @classmethod
    def of(cls, run: EngineRun) -> Arm:
        """The configuration of a run."""
        return cls(exit_layer=run.exit_layer, draft_tokens=run.draft_tokens, is_draft_alone=run.is_draft_alone, floor=run.floor)


PLAIN = Arm(exit_layer=None, draft_tokens=0, is_draft_alone=False)


def arms_of(exits: Sequence[int], lengths: Sequence[Tokens]) -> tuple[Arm, ...]:
    """Plain decoding, every exit alone, and every exit with every length."""
    alone = [Arm(exit_layer=layer, draft_tokens=0, is_draft_alone=True) for layer in exits]
    drafting = [Arm(exit_layer=layer, draft_tokens=count, is_draft_alone=False) for layer in exits for count in lengths]
    return (PLAIN, *alone, *drafting)


def processes_of(arms: Sequence[Arm], engine: str, interface: Interface | None) -> tuple[tuple[Arm, ...], ...]:
    """The configurations that share a process: those of one exit, if the engine takes a length with every call."""
    shared: dict[tuple[int | None, bool, Tokens, float | None], list[Arm]] = {}
    for arm in arms:
        can_change = can_change_length(engine, interface)
        length, floor = (min(arm.draft_tokens, 1), None) if can_change else (arm.draft_tokens, arm.floor)
        shared.setdefault((arm.exit_layer, arm.is_draft_alone, length, floor), []).append(arm)
    return tuple(map(tuple, shared.values()))


def chosen_exits(requested: tuple[int, ...] | None, available: tuple[int, ...]) -> tuple[int, ...]:
    """The exits to run: as requested, or the first and the last, between which seconds of a draft are interpolated.

    Raises:
        BadPolicy: the draft has no such exit.
    """
    if requested is None:
        return tuple(sorted({available[0], available[-1]}))
    unknown = [layer for layer in requested if layer not in available]
    if unknown:
        raise BadPolicy(f"exit {unknown[0]}", f"exits of the draft: {', '.join(map(str, available))}")
    return requested


def read_engine_prompts(request: EngineProfileRequest) -> tuple[Prompt, ...]:
    """The prompts of a request, each with its first user turn only.

    Raises:
        UserInputError: a model does not exist, a file cannot be read, or a prompt is a conversation.
    """
    check_model_names(request.target, request.draft)
    source = PromptSource(
        prompts=request.prompts,
        default=family_prompts(request.target) if request.prompts is None else FAMILY_PROMPTS,
        read_as=request.read_as,
        split=request.split,
        num_prompts=request.num_prompts,
    )
    chosen = source.load(first_turns=True)
    check_texts(chosen)
    return tuple(prompt.first_turn for prompt in chosen)


def next_command(request: EngineProfileRequest, exit_layers: Sequence[int]) -> str:
    """The commands that record the acceptance of the same pair on the same prompts, and plan with both.

    Args:
        request: whose profile was written.
        exit_layers: of the draft in this profile, which a trace must have as well.
    """
    trace = ["s2d-profile", "acceptance", "--target", request.target, "--draft", request.draft, *_prompt_flags(request)]
    if request.exits is not None:
        trace += ["--exits", ",".join(map(str, exit_layers))]
    plan = ["s2d-plan", "--profile", os.fspath(request.file), "--trace", "profile/trace.npz", "-o", "plan.json"]
    return f"{shlex.join([*trace, '-o', 'profile'])} && {shlex.join(plan)}"


def _prompt_flags(request: EngineProfileRequest) -> list[str]:
    """The flags that choose the prompt file; none for the default and for prompts from Python."""
    if not isinstance(request.prompts, str | os.PathLike):
        return []
    flags, read_as = ["--prompts", os.fspath(request.prompts)], request.read_as
    flags += [read_as.format_flag, read_as.form] if read_as.form != "auto" else []
    return flags + ([read_as.column_flag, read_as.column] if read_as.column is not None else [])


def _check_device(engine: Engine, device: Literal["cpu", "cuda"]) -> None:
    """Refuse a device that the engine does not run on."""
    if device not in engine.devices:
        expected = " or ".join(engine.devices)
        raise UserInputError(f"--device {device}: {engine.title} runs on {expected}. Give another --device, or another engine.")
    if device == "cuda" and engine.name in _CPU_FILES:
        raise UserInputError(f"--device cuda: models of {engine.title} are converted for CPUs here. Give --device cpu.")


def _check_weights(engine: Engine, weights: str) -> None:
    """Refuse quantised weights of engines that load model folders: what they would load is the folder's own type."""
    floats = [word for word in engine.weights if find_dtype(word) in _FLOATS]
    if engine.checkpoint == "huggingface" and weights not in floats:
        raise UserInputError(
            f"--weights {weights}: {engine.title} would load the models as they are, expected one of {', '.join(floats)}. "
            "Exits of quantised models are not written here."
        )


def _check_configurations(configurations: Sequence[Arm], exits: Sequence[int] | None) -> None:
    """Refuse configurations without plain decoding, or of exits that are not written."""
    if PLAIN not in configurations[:1]:
        raise UserInputError("a profile compares with plain decoding: expected it as the first of the configurations.")
    if exits is None or {arm.exit_layer for arm in configurations} - {None, *exits}:
        raise UserInputError("configurations have exits of their own: expected all of them in `exits`. Add them there.")


def _check_lengths(engine: Engine, lengths: Sequence[Tokens]) -> None:
    """Refuse draft lengths that the engine does not take."""
    upper = engine.max_draft_tokens
    wrong = [count for count in lengths if count < engine.min_draft_tokens or (upper is not None and count > upper)]
    if wrong or not lengths or len(set(lengths)) != len(lengths):
        limits = f"{engine.min_draft_tokens} to {upper}" if upper is not None else f"at least {engine.min_draft_tokens}"
        given = ",".join(map(str, lengths))
        raise UserInputError(
            f"--lengths {given}: expected different draft lengths of {limits} tokens, as {engine.title} takes."
        )
