"""Plan for every engine of the table, and put the plans side by side."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.engine_evidence import DEFAULT_ENGINE, all_engines, engine_profiles
from calibrate.planning.make_plan import make_plan
from calibrate.planning.suggest_after_plan import DEFAULT_PLAN_PATH
from perfmodel.core.console import without_flag
from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.results.engine_plans import EnginePlan, EnginePlans

NOT_PROFILED = "not profiled"


def plan_engines(request: PlanRequest) -> EnginePlans:
    """One plan for each engine, the fastest first, and why the others have none.

    With engine profiles, only profiled engines are planned: a datasheet knows no difference between the kernels of two engines.

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
