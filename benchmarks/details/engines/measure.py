"""Runs one setting: profile the engine, plan with the profile, and measure held-out configurations on other prompts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from details.engines.evidence import PairEvidence, on_prompts
from details.engines.sizes import EngineSize, Setting, drafting
from perfmodel.core.console import print_err
from perfmodel.engines.engine import Engine
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.results.plan import Plan
from profiler.engines.engine_request import PLAIN, Arm, EngineProfileRequest
from profiler.engines.profile_engine import run_profile_engine
from s2d.prompts.conversation import Prompt

RunProfile = Callable[[EngineProfileRequest, Sequence[Prompt]], EngineProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where measurements are kept, and how engines run."""

    folder: Path
    """Checkpoints, traces and measurements. What is there already is not made again."""
    threads: int
    is_fresh: bool
    """Whether to measure again what was measured before."""
    run: RunProfile = run_profile_engine
    """Runs the configurations of a request in the engine, and writes its file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """One setting, profiled and evaluated."""

    setting: Setting
    engine: Engine
    evidence: PairEvidence
    """With the evaluated prompts only."""
    profile: EngineProfile
    plan_request: PlanRequest
    """What `s2d-plan --engine NAME --profile FILE --trace FILE` requests, with the trace of the calibration prompts."""
    plan: Plan
    evaluation: EngineProfile
    evaluation_request: EngineProfileRequest
    held_out: tuple[Arm, ...]
    """Configurations that are predicted and scored. The profile has none of them."""
    chosen: Arm
    """The plan's; plain decoding if it does not speculate."""
    default: Arm | None
    """The engine's default length and floor, with the plan's best exit; None if the user must give a length."""


def measure_setting(setting: Setting, size: EngineSize, evidence: PairEvidence, place: Workplace) -> Measured:
    """Profile an engine on calibration prompts, and measure other configurations on evaluation prompts.

    Raises:
        UserInputError: the engine is not installed, or does not load such weights.
        EngineFailure: it fails.
    """
    evidence = on_prompts(evidence, setting.num_prompts)
    profiled = setting.profiled(evidence.exits)
    request = _request(setting, size, evidence, place, "profile", profiled)
    profile = _measured(request, evidence.calibration_prompts[: size.profile_prompts], place)
    plan_request = PlanRequest(engine=setting.engine, trace=evidence.calibration, profiles=(request.file,))
    plan = make_plan(plan_request)
    chosen, default = _arm_of(plan.chosen.policy), _default_arm(request.row, plan)
    wanted = [drafting(*pair) for pair in setting.held_out] + [arm for arm in (chosen, default) if arm is not None]
    arms = tuple(dict.fromkeys((PLAIN, *wanted)))
    evaluation_request = _request(setting, size, evidence, place, "evaluation", arms)
    return Measured(
        setting=setting,
        engine=request.row,
        evidence=evidence,
        profile=profile,
        plan_request=plan_request,
        plan=plan,
        evaluation=_measured(evaluation_request, evidence.evaluation_prompts, place),
        evaluation_request=evaluation_request,
        held_out=tuple(arm for arm in arms if arm not in profiled),
        chosen=chosen,
        default=default,
    )


def policy_of(arm: Arm) -> Policy | None:
    """The policy of a configuration; None is plain decoding."""
    if arm.exit_layer is None:
        return None
    stop = None if arm.floor is None else ConfidenceFloor(floor=arm.floor)
    return Policy(exits=(arm.exit_layer,), tokens=arm.draft_tokens, stop=stop)


def _arm_of(policy: Policy | None) -> Arm:
    """The configuration of a plan for an engine, which has one exit."""
    if policy is None:
        return PLAIN
    floor = policy.stop.floor if isinstance(policy.stop, ConfidenceFloor) else None
    return drafting(policy.exits[0], policy.tokens, floor)


def _default_arm(engine: Engine, plan: Plan) -> Arm | None:
    if engine.default_draft_tokens is None:
        return None
    policies = (candidate.policy for candidate in (plan.chosen, *plan.runners_up))
    best = next(policy for policy in policies if policy is not None)
    return drafting(best.exits[0], engine.default_draft_tokens, engine.default_floor)


def _request(
    setting: Setting, size: EngineSize, evidence: PairEvidence, place: Workplace, part: str, arms: tuple[Arm, ...]
) -> EngineProfileRequest:
    name = f"{setting.label.replace(' ', '-')}.{part}.json"
    return EngineProfileRequest(
        engine=setting.engine,
        target=evidence.target,
        draft=evidence.draft,
        output=place.folder / Path(evidence.target).name / name,
        exits=evidence.exits,
        configurations=arms,
        weights=setting.weights,
        threads=place.threads,
        max_new_tokens=size.max_new_tokens,
        repeats=size.num_repeats,
        work_folder=place.folder / "models",
    )


def _measured(request: EngineProfileRequest, prompts: Sequence[Prompt], place: Workplace) -> EngineProfile:
    """What is kept of a measurement, else a new one."""
    assert request.configurations is not None
    if place.is_fresh:
        for path in (request.file, request.partial_file):
            path.unlink(missing_ok=True)
    if request.file.exists():
        kept = ENGINE_PROFILE_FILE.read(request.file).record
        if _is_complete(kept, request, prompts):
            print_err(f"{request.file.name} is measured already")
            return kept
    request.file.parent.mkdir(parents=True, exist_ok=True)
    print_err(f"{request.file.stem}: {len(request.configurations)} configurations on {len(prompts)} prompts")
    return place.run(request, prompts)


def _is_complete(kept: EngineProfile, request: EngineProfileRequest, prompts: Sequence[Prompt]) -> bool:
    """Whether a kept measurement has all calls of a request."""
    names = {prompt.name for prompt in prompts}
    calls = {Arm.of(run): Counter(call.prompt for call in run.calls) for run in kept.runs}
    if (kept.max_new_tokens, kept.setting.num_threads) != (request.max_new_tokens, request.threads):
        return False
    counted = [calls.get(arm, Counter()) for arm in request.configurations or ()]
    return all(set(count) == names and min(count.values()) >= request.repeats for count in counted)
