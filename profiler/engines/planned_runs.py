"""What a profile of an engine runs: as requested, or the configuration of a plan beside plain decoding, to compare them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from typing import Literal

from perfmodel.acceptance.splits import Split
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Tokens
from perfmodel.engines.find_engine import find_engine
from perfmodel.policies.policy import ConfidenceFloor
from profiler.engines.engine_request import DEFAULT_LENGTHS, PLAIN, Arm, EngineProfileRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRuns:
    """Engine, models and configurations of a profile."""

    engine: str
    target: str
    draft: str
    weights: str | None
    """In the engine's words; None takes the first of its row."""
    device: Literal["cpu", "cuda"]
    num_threads: int
    """Of a CPU run."""
    split: Split
    exits: tuple[int, ...] | None
    """None takes the first and the last of the draft."""
    lengths: tuple[Tokens, ...] = DEFAULT_LENGTHS
    configurations: tuple[Arm, ...] | None = None
    """None runs every exit with every length, and alone."""


def planned_runs(path: PathLike) -> EngineRuns:
    """Plain decoding and the configuration of a plan, with the plan's models and settings, on prompts that were not profiled.

    Raises:
        BadFile: the file is no complete plan.
        UserInputError: the plan is for the bundled runtime, or does not speculate.
    """
    from perfmodel.results.plan import Plan

    plan = Plan.load(path)
    engine, policy, setting = find_engine(plan.engine), plan.policy, plan.engine_setting
    if engine.runs_exits:
        raise UserInputError("the plan is for the bundled runtime: expected one for another engine. Run s2d-run --check.")
    if policy is None:
        raise UserInputError("the plan is plain decoding: expected one that speculates. There is nothing to compare.")
    floor = policy.stop.floor if isinstance(policy.stop, ConfidenceFloor) else None
    drafting = Arm(exit_layer=policy.exits[-1], draft_tokens=policy.tokens, is_draft_alone=False, floor=floor)
    num_threads = None if setting is None else setting.num_threads
    return EngineRuns(
        engine=engine.name,
        target=plan.target.name,
        draft=plan.draft_name,
        weights=None if setting is None else setting.weights,
        device="cpu" if setting is None or num_threads is not None else "cuda",
        num_threads=num_threads or 1,
        split="evaluation",
        exits=policy.exits[-1:],
        lengths=(policy.tokens,),
        configurations=(PLAIN, drafting),
    )


def compare_command(plan: PathLike, request: EngineProfileRequest) -> str:
    """The command that compares a plan with a profile of its configuration."""
    return shlex.join(["s2d-compare", "--plan", os.fspath(plan), "--engine-metrics", os.fspath(request.file)])
