"""The inputs of a run, read before any model is loaded: request, plan and prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from perfmodel.acceptance.splits import Split
from perfmodel.core.console import print_err
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import UserInputError
from perfmodel.core.files import record_sha256
from perfmodel.core.lock import locked_file
from perfmodel.core.units import Tokens
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.results.plan import PLAN_FILE, Plan
from s2d.loading.model_folder import FAMILY_PROMPTS, check_model_names
from s2d.prompt_files.load_prompts import PromptSource
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Prompt, check_texts
from s2d.prompts.special_tokens import SpecialTokens
from s2d.running.check_plan import check_plan_runs

DEFAULT_NUM_PROMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run of a plan. The defaults are those of `s2d-run`."""

    plan: PathLike | Plan
    target: str | None = None
    """A model folder or name; None takes the plan's."""
    draft: str | None = None
    """As for `target`; `self` means the target's own first layers."""
    prompts: PathLike | Sequence[str | Prompt] | None = None
    """A prompt file, or the prompts themselves; None takes the held-out prompts of the reference family."""
    read_as: ReadAs = field(default_factory=lambda: ReadAs(use="prompt"))
    """How to read the prompt file."""
    split: Split = "evaluation"
    """The half of the prompt file to use. Plans are fitted to the calibration half."""
    num_prompts: int = DEFAULT_NUM_PROMPTS
    """The number of prompts to choose from the file."""
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as a user turn."""
    special_tokens: SpecialTokens = "parse"
    max_new_tokens: Tokens | None = None
    """The maximum length of an output; None takes the plan's."""
    stop: tuple[str, ...] = ()
    """Strings that end an output."""
    check: bool = False
    """Also decode plainly, compare the outputs token by token, and measure the speedup."""
    adapt: bool = False
    """Change the policy while running, along the plan's frontier."""
    outputs: Path | None = None
    """A JSONL file of finished outputs. A repeated run continues after those it contains."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if self.outputs is not None:
            object.__setattr__(self, "outputs", Path(self.outputs))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRequest:
    """An exit of a draft to write as an ordinary checkpoint."""

    model: str
    exit_layer: int
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPlan:
    """A plan, its name in messages, and its hash."""

    record: Plan
    name: str
    """How messages refer to the plan: `plan 'plan.json'`."""
    sha256: str
    """The hash of its content."""

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """The policies that an adapting run may choose.

        Raises:
            UserInputError: the plan has none.
        """
        if not self.record.frontier:
            raise UserInputError(
                f"--adapt: {self.name} has no frontier, expected a plan from a trace. Record a trace with s2d-profile and plan "
                "again with --trace, or leave --adapt out."
            )
        return self.record.frontier


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInputs:
    """The prompts, and a plan that passed the checks that need no model."""

    plan: NamedPlan
    prompts: tuple[Prompt, ...]


def read_run_inputs(request: RunRequest) -> RunInputs:
    """Read the plan and the prompts of a request.

    Raises:
        UserInputError: a file cannot be read, a model does not exist, or a prompt is a conversation and `chat` is false.
        Mismatch: the plan is for an assumed draft, a quantised target, or another number of devices.
    """
    plan = load_plan(request.plan)
    check_plan_runs(plan.name, plan.record)
    check_model_names(request.target, request.draft)
    source = PromptSource(
        prompts=request.prompts,
        default=FAMILY_PROMPTS,
        read_as=request.read_as,
        split=request.split,
        num_prompts=request.num_prompts,
    )
    prompts = source.load(first_turns=not request.chat)
    if not request.chat:
        check_texts(prompts)
    return RunInputs(plan=plan, prompts=tuple(prompts))


def load_plan(plan: PathLike | Plan) -> NamedPlan:
    """A plan from its file, or as given.

    Raises:
        BadFile: the file is not a complete plan.
    """
    if isinstance(plan, Plan):
        return NamedPlan(record=plan, name="the plan", sha256=record_sha256(plan))
    stored = PLAN_FILE.read(plan)
    return NamedPlan(record=stored.record, name=f"plan {os.fspath(plan)!r}", sha256=stored.sha256)


@contextmanager
def lock_outputs(path: Path | None) -> Iterator[None]:
    """Keep other runs from writing to the outputs file.

    Raises:
        UserInputError: another run writes to it.
    """
    with locked_file(path) if path is not None else nullcontext(True) as is_locked:
        if not is_locked:
            print_err(f"note: this file system has no file locks: do not let another s2d-run write to {path}")
        yield
