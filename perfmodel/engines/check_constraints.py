"""Checks of a plan against an engine: why the engine cannot execute its policy, and what its files would fail on."""

from collections.abc import Callable
from dataclasses import dataclass

from perfmodel.core.errors import UnknownName
from perfmodel.core.units import Tokens
from perfmodel.engines.engine import Constraint, ConstraintCheck, Engine, KnownBad
from perfmodel.engines.find_engine import engine_weights
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy, SurvivalFloor
from perfmodel.policies.sampling import GREEDY, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What an engine checks about one model. None: unknown, which passes."""

    name: str
    """For messages."""
    vocab_tokens: Tokens | None = None
    """Rows of the LM head."""
    tokenizer_sha256: str | None = None
    context_tokens: Tokens | None = None
    """Positions that the model was made for."""
    architecture: str | None = None
    """Class name in its config: `LlamaForCausalLM`."""
    num_devices: int = 1
    """Tensor-parallel degree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """What an engine checks about a plan and its models."""

    target: ModelFacts
    draft: ModelFacts | None
    """None: plain decoding."""
    policy: Policy | None
    weights: str | None = None
    """Storage of weights, in any of its common words; None: unknown."""
    context_tokens: Tokens | None = None
    """Prompt and new tokens of the longest request; None: unknown."""
    batch: int = 1
    sampling: Sampling = GREEDY


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why an engine cannot do what a plan asks for."""

    name: str
    """The check: one of `ConstraintCheck`, or `exits`, `draft-tokens`, `stop-rule`."""
    wrong: str
    expected: str
    fix: str
    """A whole sentence without its full stop."""

    def __str__(self) -> str:
        return f"{self.name}: {self.wrong}: expected {self.expected}. {self.fix}."


def check_constraints(engine: Engine, facts: PlanFacts) -> tuple[Problem, ...]:
    """All problems of a plan with an engine, those of its policy first. Empty: an export may be written."""
    policy = () if facts.policy is None else executable_policy_problems(engine, facts.policy)
    found = (_CHECKS[constraint.check](engine, constraint, facts) for constraint in engine.constraints)
    return (*policy, *(problem for problem in found if problem is not None))


def executable_policy_problems(engine: Engine, policy: Policy) -> tuple[Problem, ...]:
    """Why an engine cannot execute a policy: several exits, its length, or its stop rule. Empty: it can."""
    if engine.runs_exits:
        return ()
    found = (_several_exits(engine, policy), _length(engine, policy), _stop_rule(engine, policy))
    return tuple(problem for problem in found if problem is not None)


def known_bad_with(engine: Engine, facts: PlanFacts) -> tuple[KnownBad, ...]:
    """Known-bad combinations that a plan would run into, by its weights. Plain decoding runs into none."""
    if facts.draft is None or facts.weights is None:
        return ()
    return tuple(known for known in engine.known_bad if facts.weights.casefold() in known.weights)


def _several_exits(engine: Engine, policy: Policy) -> Problem | None:
    if len(policy.exits) == 1:
        return None
    return Problem(
        name="exits",
        wrong=f"{engine.title} serves one exit, and the policy has {'/'.join(map(str, policy.exits))}",
        expected="a single exit, which is an ordinary draft model",
        fix=_plan_for(engine),
    )


def _length(engine: Engine, policy: Policy) -> Problem | None:
    upper = engine.max_draft_tokens
    if engine.min_draft_tokens <= policy.tokens and (upper is None or policy.tokens <= upper):
        return None
    limits = f"{engine.min_draft_tokens} to {upper}" if upper is not None else f"at least {engine.min_draft_tokens}"
    return Problem(
        name="draft-tokens",
        wrong=f"{policy.tokens} draft tokens in {engine.title}",
        expected=f"{limits} tokens",
        fix=_plan_for(engine),
    )


def _stop_rule(engine: Engine, policy: Policy) -> Problem | None:
    match policy.stop:
        case None:
            return None
        case ConfidenceFloor(keeps_token=keeps_token):
            return _floor(engine, policy, keeps_token=keeps_token)
        case SurvivalFloor():
            rule = "a survival floor"
        case HeuristicLength():
            rule = "the +2/-1 length"
        case other:
            rule = type(other).__name__
    return _no_stop_rule(engine, f"{engine.title} does not stop by {rule}")


def _floor(engine: Engine, policy: Policy, *, keeps_token: bool) -> Problem | None:
    support = engine.floor
    if support is None:
        return _no_stop_rule(engine, f"{engine.title} has no confidence floor")
    if not support.is_recommended:
        return _no_stop_rule(engine, f"the confidence floor of {engine.title} does not work as documented")
    if policy.confidence != support.measure:
        wrong = f"a floor of {policy.confidence} for {engine.title}, which compares {support.measure}"
        return _no_stop_rule(engine, wrong)
    if keeps_token != support.keeps_token:
        plan, own = ("keeps", "drops") if keeps_token else ("drops", "keeps")
        return _no_stop_rule(engine, f"the policy {plan} the token below its floor, and {engine.title} {own} it")
    return None


def _no_stop_rule(engine: Engine, wrong: str) -> Problem:
    floor = engine.floor
    expected = "a fixed length"
    if floor is not None and floor.is_recommended:
        expected += f", or a floor of {floor.measure} that {'keeps' if floor.keeps_token else 'drops'} its token"
    return Problem(name="stop-rule", wrong=wrong, expected=expected, fix=_plan_for(engine))


def _plan_for(engine: Engine) -> str:
    return f"Plan for this engine: s2d-plan --engine {engine.name}"


def _vocabulary(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    target, draft = facts.target, facts.draft
    if draft is None or target.vocab_tokens is None or draft.vocab_tokens is None:
        return None
    if abs(target.vocab_tokens - draft.vocab_tokens) <= constraint.max_difference:
        return None
    limit = f", or at most {constraint.max_difference} apart" if constraint.max_difference else ""
    return Problem(
        name="same-vocabulary",
        wrong=f"{draft.name} has {draft.vocab_tokens} tokens and {target.name} {target.vocab_tokens}",
        expected=f"equal vocabularies{limit} ({engine.title}: {constraint.text})",
        fix="Use the draft before `s2d-train trim`, or a draft of this target's family",
    )


def _tokenizer(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    target, draft = facts.target, facts.draft
    if draft is None or target.tokenizer_sha256 is None or draft.tokenizer_sha256 in (None, target.tokenizer_sha256):
        return None
    return Problem(
        name="same-tokenizer",
        wrong=f"the tokenizers of {draft.name} and {target.name} differ",
        expected=f"one tokenizer ({engine.title}: {constraint.text})",
        fix="Copy the target's tokenizer files if ids mean the same tokens, else use another draft",
    )


def _parallelism(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    draft = facts.draft
    if draft is None or draft.num_devices == facts.target.num_devices:
        return None
    return Problem(
        name="draft-parallelism",
        wrong=f"{draft.name} on {draft.num_devices} devices and {facts.target.name} on {facts.target.num_devices}",
        expected=f"the same number ({engine.title}: {constraint.text})",
        fix="Plan with the same degree for both models",
    )


def _greedy(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    if facts.draft is None or facts.sampling.temperature == 0:
        return None
    return Problem(
        name="greedy-only",
        wrong=f"temperature {facts.sampling.temperature:g} with a draft in {engine.title}",
        expected=f"greedy decoding ({constraint.text})",
        fix="Plan for temperature 0, or decode without a draft",
    )


def _context(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    for model in (facts.target, facts.draft):
        if model is None or model.context_tokens is None or facts.context_tokens is None:
            continue
        if facts.context_tokens > model.context_tokens:
            return Problem(
                name="context",
                wrong=f"{facts.context_tokens} tokens of prompt and output for {model.name}, made for {model.context_tokens}",
                expected=f"at most {model.context_tokens} tokens ({engine.title}: {constraint.text})",
                fix="Plan for a shorter context, or without this draft",
            )
    return None


def _dtype(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    if facts.weights is None:
        return None
    try:
        engine_weights(engine, facts.weights)
    except UnknownName:
        return Problem(
            name="dtype",
            wrong=f"{facts.weights} weights in {engine.title}",
            expected=f"{', '.join(engine.weights)} ({constraint.text})",
            fix="Choose one of these",
        )
    return None


def _architecture(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    for model in (facts.target, facts.draft):
        if model is not None and model.architecture is not None and model.architecture not in constraint.allowed:
            return Problem(
                name="architecture",
                wrong=f"{model.name} is a {model.architecture}",
                expected=f"{constraint.text}: {', '.join(constraint.allowed)} ({engine.title})",
                fix="Use another engine (s2d-engines list)",
            )
    return None


def _single_sequence(engine: Engine, constraint: Constraint, facts: PlanFacts) -> Problem | None:
    if facts.draft is None or facts.batch == 1:
        return None
    return Problem(
        name="single-sequence",
        wrong=f"batch {facts.batch} with a draft in {engine.title}",
        expected=f"batch 1 ({constraint.text})",
        fix="Plan for one sequence, or for an engine that drafts for a batch (s2d-engines list)",
    )


_CHECKS: dict[ConstraintCheck, Callable[[Engine, Constraint, PlanFacts], Problem | None]] = {
    "same-vocabulary": _vocabulary,
    "same-tokenizer": _tokenizer,
    "draft-parallelism": _parallelism,
    "greedy-only": _greedy,
    "single-sequence": _single_sequence,
    "context": _context,
    "dtype": _dtype,
    "architecture": _architecture,
}
"""The check of each kind of constraint."""
