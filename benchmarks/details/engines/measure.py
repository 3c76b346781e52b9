"""Runs one setting: profile the engine, measure held-out configurations on other prompts meanwhile, and then what is planned.

The machine changes within minutes, and plain decoding by more than the rest. So the calls of the profile and those of the
evaluation take turns over the whole time. The plan is made afterwards. What it chooses and the engine's default are
then measured beside the best held-out configuration, unless the evaluation has them all.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibrate.inputs.requests import PlanRequest
from calibrate.planning.make_plan import make_plan
from details.engines.evidence import PairEvidence, on_prompts
from details.engines.sizes import EngineSize, Setting, drafting
from details.engines.timing import measured_speedup, run_of
from perfmodel.core.console import print_err
from perfmodel.engines.engine import Engine
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.results.plan import Plan
from profiler.engines.engine_request import PLAIN, Arm, EngineProfileRequest
from profiler.engines.profile_engine import run_profiles_together
from s2d.prompts.conversation import Prompt

Requested = tuple[EngineProfileRequest, Sequence[Prompt]]
RunProfiles = Callable[[Sequence[Requested]], Sequence[EngineProfile]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """Where measurements are kept, and how engines run."""

    folder: Path
    """Checkpoints, traces and measurements. What is there already is not made again."""
    threads: int
    is_fresh: bool
    """Whether to measure again what was measured before."""
    profile_first: bool = False
    """Whether the profile is complete before the evaluation begins."""
    run: RunProfiles = run_profiles_together
    """Runs the configurations of some requests in the engine, taking turns, and writes their files."""


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
    decision: EngineProfile
    """With the plan's configuration, the default and the best held-out one: the evaluation, if it has them all."""
    decision_request: EngineProfileRequest
    held_out: tuple[Arm, ...]
    """Configurations that are predicted and scored, all of the evaluation. The profile has none of them."""
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
    held_out = tuple(arm for arm in (drafting(*pair) for pair in setting.held_out) if arm not in profiled)
    request = _request(setting, size, evidence, place, "profile", profiled)
    evaluation_request = _request(setting, size, evidence, place, "evaluation", (PLAIN, *held_out))
    requested: list[Requested] = [
        (request, evidence.calibration_prompts[: setting.profile_prompts]),
        (evaluation_request, evidence.evaluation_prompts),
    ]
    if place.profile_first:
        [profile], [evaluation] = (_measured([part], place) for part in requested)
    else:
        profile, evaluation = _measured(requested, place)
    plan_request = PlanRequest(engine=setting.engine, trace=evidence.calibration, profiles=(request.file,))
    plan = make_plan(plan_request)
    chosen, default = _arm_of(plan.chosen.policy), _default_arm(request.row, plan)
    best = max(held_out, key=lambda arm: measured_speedup(evaluation.plain, run_of(evaluation, arm)))
    wanted = tuple(dict.fromkeys(arm for arm in (PLAIN, best, chosen, default) if arm is not None))
    decision, decision_request = evaluation, evaluation_request
    if not set(wanted) <= {PLAIN, *held_out}:
        decision_request = _request(setting, size, evidence, place, "decision", wanted)
        [decision] = _measured([(decision_request, evidence.evaluation_prompts)], place)
    return Measured(
        setting=setting,
        engine=request.row,
        evidence=evidence,
        profile=profile,
        plan_request=plan_request,
        plan=plan,
        evaluation=evaluation,
        evaluation_request=evaluation_request,
        decision=decision,
        decision_request=decision_request,
        held_out=held_out,
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
    order = "profile-first." if place.profile_first else ""
    name = f"{setting.label.replace(' ', '-')}.{order}{part}.json"
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
        plain_calls=size.plain_calls,
        restarts=setting.restarts,
        work_folder=place.folder / "models",
    )


def _measured(requested: Sequence[Requested], place: Workplace) -> list[EngineProfile]:
    """What is kept of some measurements, else new ones that take turns."""
    if place.is_fresh:
        for request, _ in requested:
            for path in (request.file, request.partial_file):
                path.unlink(missing_ok=True)
    kept = {request.file: _kept(request, prompts) for request, prompts in requested}
    left = [(request, prompts) for request, prompts in requested if kept[request.file] is None]
    for request, prompts in left:
        request.file.parent.mkdir(parents=True, exist_ok=True)
        print_err(f"{request.file.stem}: {len(request.configurations or ())} configurations on {len(prompts)} prompts")
    profiles = place.run(left) if left else ()
    new = {request.file: profile for (request, _), profile in zip(left, profiles, strict=True)}
    return [kept[request.file] or new[request.file] for request, _ in requested]


def _kept(request: EngineProfileRequest, prompts: Sequence[Prompt]) -> EngineProfile | None:
    """The measurement in the file of a request; None if it lacks calls."""
    if not request.file.exists():
        return None
    kept = ENGINE_PROFILE_FILE.read(request.file).record
    if not _is_complete(kept, request, prompts):
        return None
    print_err(f"{request.file.name} is measured already")
    return kept


def _is_complete(kept: EngineProfile, request: EngineProfileRequest, prompts: Sequence[Prompt]) -> bool:
    """Whether a kept measurement has all calls of a request."""
    names = {prompt.name for prompt in prompts}
    calls = {Arm.of(run): Counter(call.prompt for call in run.calls) for run in kept.runs}
    if (kept.max_new_tokens, kept.setting.num_threads) != (request.max_new_tokens, request.threads):
        return False
    counts = {arm: calls.get(arm, Counter()) for arm in request.configurations or ()}
    needed = {arm: request.repeats * (request.plain_calls if arm.is_plain else 1) for arm in counts}
    return all(set(count) == names and min(count.values()) >= needed[arm] for arm, count in counts.items())
