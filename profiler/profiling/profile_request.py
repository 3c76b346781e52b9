"""Requests to profile: models, prompts and settings, their checks, and their command line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from perfmodel.acceptance.splits import Split
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Seconds, Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.passes.device_key import LaunchMode
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import GREEDY, Sampling
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names, family_prompts
from s2d.prompt_files.load_prompts import PromptSource
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt, check_texts
from s2d.prompts.special_tokens import SpecialTokens

PROG = "s2d-profile"
TRACE_NAME, PARTIAL_TRACE_NAME = "trace.npz", "trace.partial.npz"
PROFILE_FILES = ("*.latency.json", "*.latency.partial.json")

Measurement = Literal["all", "latency", "acceptance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """A measurement of a target and its draft. The defaults are those of `s2d-profile`."""

    target: str
    """A model folder, a name of the reference family (`ref-target-16`), or `org/name` on the Hugging Face hub."""
    draft: str
    """As for `target`; `self` means the target's own first layers."""
    what: Measurement = "all"
    output: Path = Path("profile")
    """The folder for the files. A repeated request continues an interrupted measurement there."""
    exits: tuple[int, ...] | None = None
    """Layers after which the draft may answer; None takes those of its `s2d.json`, or its full depth."""
    confidence: Confidence = "max-prob"
    share_draft: bool = False
    """Whether several processes share a draft with its own weights."""
    sampling: Sampling = GREEDY
    seed: int = 0
    """The seed of the measuring order."""
    prompts: PathLike | Sequence[str | Prompt] | None = None
    """A prompt file, or the prompts themselves; None takes the prompts of the reference family."""
    read_as: ReadAs = field(default_factory=lambda: ReadAs(use="prompt"))
    """How to read the prompt file."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as a user turn."""
    special_tokens: SpecialTokens = "parse"
    split: Split = "calibration"
    """The half of the prompt file to use."""
    num_prompts: int = 60
    """The maximum number of prompts to choose from the file."""
    max_new_tokens: Tokens = 128
    """The maximum number of tokens that the target writes after each prompt."""
    num_mistakes: int = 0
    """Draft mistakes per text after which the draft continues off the target's path: see `OffPath`."""
    device: str = "cpu"
    """torch's name: `cpu`, `cuda`, `cuda:1`."""
    dtype: Dtype = "fp32"
    mode: LaunchMode | None = None
    """How passes are launched; None takes graphs on a single GPU, eager elsewhere."""
    kernels: str | None = None
    """`measured`, `standard` or the label of some kernels; None takes `measured` on a GPU, else `standard`."""
    threads: int = 1
    """Threads of a CPU run."""
    draft_cap: Tokens = 12
    """The longest draft whose passes are measured."""
    budget_s: Seconds = 90.0
    """The maximum duration of the latency measurement."""

    def __post_init__(self) -> None:
        counts = {
            "--num-prompts": self.num_prompts,
            "--max-new-tokens": self.max_new_tokens,
            "--draft-cap": self.draft_cap,
            "--threads": self.threads,
        }
        for flag, count in counts.items():
            if count < 1:
                raise UserInputError(f"{flag} {count}: expected at least 1.")
        if self.what not in get_args(Measurement):
            expected = ", ".join(map(repr, get_args(Measurement)))
            raise UserInputError(f"what is {self.what!r}: expected one of {expected}.")
        if self.num_mistakes < 0:
            raise UserInputError(f"--off-path {self.num_mistakes}: expected 0 mistakes or more.")
        check_budget(self.budget_s)

    @property
    def measures_latency(self) -> bool:
        """Whether passes are timed."""
        return self.what != "acceptance"

    @property
    def measures_acceptance(self) -> bool:
        """Whether a trace is recorded."""
        return self.what != "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class LawRequest:
    """A measurement of small models for the latency law. The defaults are those of `s2d-profile law`."""

    output: Path = Path("law")
    """The folder for the files. A repeated request continues an interrupted measurement there."""
    depths: tuple[int, ...] = (1, 2, 4, 8)
    """Layers of the models."""
    hidden_sizes: tuple[int, ...] | None = None
    """Hidden sizes, multiples of 64; None takes 128, 256 and 512 on a CPU, and 1024, 2048 and 4096 on a GPU."""
    rows: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    """Tokens per pass."""
    context_tokens: tuple[Tokens, ...] = (64, 192, 320)
    """Cached tokens before a pass."""
    seed: int = 0
    """The seed of weights and order."""
    device: str = "cpu"
    dtype: Dtype = "fp32"
    mode: LaunchMode | None = None
    kernels: str | None = None
    threads: int = 1
    budget_s: Seconds = 120.0
    """The duration of the measurement without warm-up."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UserInputError(f"--threads {self.threads}: expected at least 1.")
        check_budget(self.budget_s)


def check_budget(budget_s: Seconds) -> None:
    """Refuse a negative time budget.

    Raises:
        UserInputError: it is negative.
    """
    if not budget_s >= 0:
        raise UserInputError(f"--budget {budget_s:g}: expected 0 seconds or more.")


def read_profile_prompts(request: ProfileRequest) -> tuple[Prompt, ...]:
    """The prompts of a request, each with its first user turn only: later turns would need an answer.

    Raises:
        UserInputError: a model does not exist, a file cannot be read, or a prompt is a conversation and `chat` is false.
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
    if not request.chat:
        check_texts(chosen)
    return tuple(prompt.first_turn for prompt in chosen)


def command_line(request: ProfileRequest) -> tuple[str, ...]:
    """The `s2d-profile` command of a request, without the options that have their default values."""
    verb = () if request.what == "all" else (request.what,)
    defaults = _options(ProfileRequest(target=request.target, draft=request.draft))
    words = [PROG, *verb, "--target", request.target, "--draft", request.draft]
    for flag, value in _options(request).items():
        if value != defaults[flag]:
            words += [flag] if value is True else [flag, str(value)]
    return (*words, "-o", str(request.output))


def _options(request: ProfileRequest) -> dict[str, object]:
    """The options of a request by flag. For prompts that are not in a file, the path is a placeholder."""
    sampling, prompts = request.sampling, request.prompts
    is_path = prompts is None or isinstance(prompts, str | os.PathLike)
    return {
        "--exits": request.exits and ",".join(map(str, request.exits)),
        "--confidence": request.confidence,
        "--share-draft": request.share_draft,
        "--rule": "ratio" if sampling.rule == "ratio" else None,  # the other rules follow from the temperature
        "--temperature": sampling.temperature,
        "--top-k": sampling.top_k,
        "--top-p": sampling.top_p,
        "--min-p": sampling.min_p,
        "--repetition-penalty": sampling.repetition_penalty,
        "--presence-penalty": sampling.presence_penalty,
        "--frequency-penalty": sampling.frequency_penalty,
        "--seed": request.seed if sampling.seed is None else sampling.seed,
        "--prompts": prompts if is_path else "path/to/prompts.jsonl",
        "--prompt-format": request.read_as.form,
        "--prompt-column": request.read_as.column,
        "--chat": request.chat,
        "--special-tokens": request.special_tokens,
        "--split": request.split,
        "--num-prompts": request.num_prompts,
        "--max-new-tokens": request.max_new_tokens,
        "--off-path": request.num_mistakes,
        "--device": request.device,
        "--dtype": request.dtype,
        "--mode": request.mode,
        "--kernels": request.kernels,
        "--threads": request.threads,
        "--draft-cap": request.draft_cap,
        "--budget": f"{request.budget_s:g}",
    }
