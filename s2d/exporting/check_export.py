"""Everything that would fail in the engine, checked before anything is written. Each check has a name."""

from collections.abc import Sequence

from perfmodel.core.errors import Mismatch, UnknownName, UserInputError
from perfmodel.engines.check_constraints import ModelFacts, PlanFacts, check_constraints
from perfmodel.engines.engine import Engine
from perfmodel.engines.find_engine import engine_weights, find_engine
from perfmodel.models.geometry import check_degree
from perfmodel.results.plan import Plan
from s2d.exporting.local_models import ExportedModels, LocalModel

_OWN_CHECKS = ("engine", "policy", "weights", "reduced-head", "tensor-parallelism")


def planned_engine(plan: Plan, given: str | None) -> Engine:
    """The engine that a plan was made for.

    Raises:
        UnknownName: there is no such engine.
        Mismatch: another one is given. A plan's draft length depends on the engine's pass times.
    """
    engine = find_engine(plan.engine)
    if given is not None and find_engine(given).name != engine.name:
        other = find_engine(given)
        raise Mismatch(
            "engine: the plan",
            made_for=engine.name,
            given=f"{other.name}, whose pass times differ",
            fix=f"Plan for it: s2d-plan --engine {other.name}",
        )
    return engine


def planned_weights(plan: Plan, engine: Engine, given: str | None) -> str:
    """The engine's word for the weights to export: those given, profiled or priced.

    Raises:
        UnknownName: the engine does not load them.
    """
    profiled = None if plan.engine_setting is None else plan.engine_setting.weights
    word = given or profiled or (plan.target_weights.label if plan.target_weights.is_plain else plan.device.dtype)
    try:
        return engine_weights(engine, word)
    except UnknownName as err:
        err.add_note("Choose the weights of the export with --weights.")
        raise


def check_export(engine: Engine, plan: Plan, models: ExportedModels, weights: str) -> tuple[str, ...]:
    """Check a plan and its models against everything that the engine is known to refuse.

    Returns:
        Names of the checks that were made.

    Raises:
        UserInputError: the first problem. Further ones are notes.
    """
    problems = [str(problem) for problem in check_constraints(engine, plan_facts(plan, models, weights))]
    problems += _own_problems(engine, plan)
    if problems:
        error = UserInputError(problems[0])
        for problem in problems[1:]:
            error.add_note(problem)
        raise error
    _check_degrees(plan, models)
    return (*_OWN_CHECKS, *dict.fromkeys(constraint.check for constraint in engine.constraints))


def plan_facts(plan: Plan, models: ExportedModels, weights: str) -> PlanFacts:
    """What engines check about a plan. Of a target that is elsewhere, the plan knows the shape."""
    target, draft, workload = models.target, models.draft, plan.workload
    geometry = plan.target if target is None else target.geometry
    return PlanFacts(
        target=ModelFacts(
            name=geometry.name,
            vocab_tokens=geometry.vocab_size,
            tokenizer_sha256=plan.tokenizer_sha256 if target is None else target.tokenizer_sha256,
            context_tokens=geometry.max_context_tokens,
            architecture=None if target is None else target.architecture,
            num_devices=plan.device.num_devices,
        ),
        draft=_draft_facts(draft, plan.draft_num_devices),
        policy=plan.policy,
        weights=weights,
        context_tokens=workload.prompt_tokens + workload.output_tokens,
        batch=workload.batch,
        sampling=workload.sampling,
    )


def _draft_facts(draft: LocalModel, num_devices: int) -> ModelFacts:
    return ModelFacts(
        name=draft.geometry.name,
        vocab_tokens=draft.geometry.vocab_size,
        tokenizer_sha256=draft.tokenizer_sha256,
        context_tokens=draft.geometry.max_context_tokens,
        architecture=draft.architecture,
        num_devices=num_devices,
    )


def _own_problems(engine: Engine, plan: Plan) -> Sequence[str]:
    """Problems that depend on this project's drafts."""
    problems = []
    if plan.draft.model.has_reduced_head and not engine.runs_exits:
        problems.append(
            f"reduced-head: the draft has {plan.draft.model.head_label}: expected the whole head, the only kind that "
            f"{engine.title} loads. Plan with the draft before s2d-train trim."
        )
    if plan.has_assumed_head:
        problems.append("reduced-head: the plan assumes a head that does not exist yet: expected a draft. Plan without it.")
    return problems


def _check_degrees(plan: Plan, models: ExportedModels) -> None:
    """Refuse numbers of devices that cannot share the layers.

    Raises:
        UserInputError: with the numbers that can.
    """
    fix = "Plan with another --num-devices"
    geometry = plan.target if models.target is None else models.target.geometry
    check_degree(geometry, plan.device.num_devices, noun="devices (tensor parallelism)", fix=fix)
    check_degree(models.draft.geometry, plan.draft_num_devices, noun="devices (tensor parallelism)", fix=fix)
