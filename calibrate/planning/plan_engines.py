"""Plan for every engine of the table, and put the plans side by side."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.planning.engine_evidence import DEFAULT_ENGINE, all_engines, engine_profiles
from calibrate.planning.make_plan import make_plan
from calibrate.planning.suggest_after_plan import DEFAULT_PLAN_PATH
from perfmodel.core.console import without_flag
from perfmodel.core.disk import PathLike, as_paths
from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.core.units import Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.results.engine_plans import EnginePlan, EnginePlans

if TYPE_CHECKING:
    from perfmodel.acceptance.trace import Trace

NOT_PROFILED = "not profiled"


def plan_engines(
    target: PathLike | None = None,
    *,
    draft: PathLike | None = None,
    device: PathLike | None = None,
    num_devices: int | None = None,
    dtype: Dtype | None = None,
    trace: PathLike | Trace | None = None,
    profiles: PathLike | Sequence[PathLike] = (),
    prompt_tokens: Tokens | None = None,
    output_tokens: Tokens | None = None,
) -> EnginePlans:
    """What a target and its draft are worth in each engine, the fastest first: `s2d-plan --engine all`.

    Args:
        target: a known name, a config.json or its folder, or `org/name` on the Hugging Face hub. None takes the trace's.
        draft: a known name or a folder. None takes the trace's draft, or the first with a shipped trace for the target.
        device: a known name, `cpu`, or a `.toml` or `.json` file. None takes the GPU of this machine, else an A100.
        num_devices: tensor-parallel degree of the target. None takes the fewest devices that hold the models.
        dtype: of the weights. None takes the device's default.
        trace: acceptance recorded by `s2d-profile`, as a file or in memory. None takes a shipped trace.
        profiles: engine profiles by `s2d-profile engine`, and perhaps latency profiles of the bundled runtime. With profiles,
            only profiled engines are planned: a datasheet knows no difference between the kernels of two engines.
        prompt_tokens: length of a prompt, in tokens. None takes the mean over the trace.
        output_tokens: tokens to generate. None takes the length at which the trace was recorded.

    Returns:
        `plans` in order of their tokens per second, `fastest`, and for every other engine of the table its `problem`.

    Raises:
        UserInputError: no engine has a plan, for example because the target is unknown.

    Example:
        >>> plans = s2d.plan_engines("llama-70b", device="h100")
        >>> {"s2d", "vllm", "sglang"} <= {entry.engine for entry in plans.planned}
        True
    """
    return make_engine_plans(
        PlanRequest(
            target=None if target is None else os.fspath(target),
            draft=None if draft is None else os.fspath(draft),
            trace=Path(trace) if isinstance(trace, (str, os.PathLike)) else trace,
            profiles=as_paths(profiles),
            device=DeviceRequest(device=None if device is None else os.fspath(device), num_devices=num_devices, dtype=dtype),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
        )
    )


def make_engine_plans(request: PlanRequest) -> EnginePlans:
    """One plan for each engine, the fastest first, and why the others have none.

    Args:
        request: for one target; its engine is ignored. An engine with several profiles, such as of two kinds of weights, has
            a plan for each.

    Raises:
        UserInputError: no engine has a plan, for example because the target is unknown.
    """
    requests = _requests(request)
    planned = [_planned(name, own) for name, own in requests]
    plans = [entry for entry in planned if entry.plan is not None]
    if not plans:
        make_plan(requests[0][1])  # raises what every engine meets
    refused = [entry for entry in planned if entry.plan is None]
    profiled = {name for name, _ in requests}
    refused += [
        EnginePlan(engine=engine.name, plan=None, problem=NOT_PROFILED)
        for engine in all_engines()
        if engine.name not in profiled
    ]
    ordered = sorted(plans, key=lambda entry: entry.plan.tokens_per_s if entry.plan else 0.0, reverse=True)
    return EnginePlans(engines=(*ordered, *refused), next_command="")


def command_for_engine(plans: EnginePlans, request: PlanRequest, command: Sequence[str]) -> str:
    """The command that plans for the fastest engine alone.

    Args:
        plans: of all engines.
        request: that was answered.
        command: its command line, program first.
    """
    fastest = plans.fastest
    words = without_flag(command, "--engine", "--output", "-o")
    if profiles := engine_profiles(request.profiles):
        used = set(plans.plans[0].inputs.values())
        own = [path for path in request.profiles if path not in profiles or profiles[path].sha256 in used]
        own = [path for path in own if (path in profiles) == (plans.plans[0].engine_setting is not None)]
        words = [*without_flag(words, "--profile"), *(word for path in own for word in ("--profile", str(path)))]
    return shlex.join([*words, "--engine", fastest.engine, "-o", str(DEFAULT_PLAN_PATH)])


def _requests(request: PlanRequest) -> list[tuple[str, PlanRequest]]:
    """A request for each engine, and for each of its profiles."""
    profiles = engine_profiles(request.profiles)
    others = tuple(path for path in request.profiles if path not in profiles)
    if not request.profiles:
        return [(engine.name, replace(request, engine=engine.name)) for engine in all_engines()]
    by_engine: dict[str, list[tuple[Path, ...]]] = {DEFAULT_ENGINE: [others]} if others else {}
    for path in request.profiles:
        if path in profiles:
            by_engine.setdefault(profiles[path].record.setting.engine, []).append((path,))
    return [
        (name, replace(request, engine=name, profiles=own, fit=request.fit if own == others else None))
        for name, choices in by_engine.items()
        for own in choices
    ]


def _planned(name: str, request: PlanRequest) -> EnginePlan:
    """The plan of an engine, or why it has none."""
    try:
        return EnginePlan(engine=name, plan=make_plan(request), problem=None)
    except (UserInputError, OutOfDomain) as err:
        return EnginePlan(engine=name, plan=None, problem=str(err))
