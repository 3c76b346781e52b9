"""Predict the speed of one configuration in a profiled engine."""

from __future__ import annotations

from calibrate.engines.agreement import thin_agreement
from perfmodel.acceptance.trace import Trace
from perfmodel.core.units import Tokens
from perfmodel.engines.engine_fit import EngineFit
from perfmodel.engines.engine_latency import engine_latencies
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import Speedup, estimate
from perfmodel.replay.replay import replay_prompts


def predict_in_engine(fit: EngineFit, trace: Trace, policy: Policy | None) -> Speedup:
    """The speed of a policy in an engine, on the prompts of a trace, relative to the engine's plain decoding.

    Args:
        fit: of the engine's profile.
        trace: acceptance on any prompts. It is thinned to the agreement that is left in the engine.
        policy: one exit; None is plain decoding.

    Raises:
        OutOfDomain: the profile does not cover the policy's exit or length.
        BadPolicy: the policy uses an exit that the traced draft does not have, or another confidence measure.
    """
    left = trace if fit.agreement_kept_frac is None else thin_agreement(trace, fit.agreement_kept_frac)
    rounds = [with_round_shape(stats, fit.round_shape, policy) for stats in replay_prompts(left, policy)]
    exit_layer, draft_tokens = (None, 0) if policy is None else (policy.exits[-1], policy.tokens)
    latencies = engine_latencies(fit, exit_layer, draft_tokens, context_tokens=longest_context(trace))
    return estimate(*latencies, rounds, replay_prompts(left, None))


def longest_context(trace: Trace) -> Tokens:
    """Cached tokens at the end of the longest text of a trace."""
    return max(prompt.prompt_tokens + prompt.num_positions for prompt in trace.header.prompts)
