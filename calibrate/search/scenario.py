"""Scenarios: one target on one workload, and the predicted speed of policies there.

Letters: A policies, B scenarios, D documents of a scenario, R resamples of the documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from perfmodel.acceptance.splits import document_name
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import OutOfDomain
from perfmodel.core.stats import resample_counts
from perfmodel.core.units import Floats, Seconds
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.round_shape import DEFAULT_SHAPE, with_round_shape
from perfmodel.passes.passes import Line, PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import PassLatency, line_or_infinity, model_for, pass_seconds
from perfmodel.replay.replay import ReplayBatch, replay_batch
from perfmodel.replay.round_stats import RoundStats

Objective = Literal["mean", "worst"]
"""How to combine several scenarios: the geometric mean of the tokens/s, or the smallest speedup over plain decoding."""


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """One target on one workload: an acceptance trace, and the latency models of its draft and its target."""

    trace: Trace
    draft: PassLatency
    target: PassLatency
    round_shape: RoundShape = DEFAULT_SHAPE
    """Passes of a round of the engine. With another shape than the default, policies have one exit."""

    def line(self, kind: PassKind, stage: int, rows: int) -> Line:
        """Seconds of a warm pass; infinity where there is no evidence."""
        return line_or_infinity(model_for(kind, self.draft, self.target), kind, stage, rows)

    def pass_s(self, kind: PassKind, stage: int, rows: int) -> Seconds:
        """Seconds of a warm pass at the mean context, halfway through each output; infinity where there is no evidence."""
        prompts = self.trace.header.prompts
        context_tokens = sum(prompt.prompt_tokens + prompt.num_positions / 2 for prompt in prompts) / len(prompts)
        return self.line(kind, stage, rows).at(context_tokens)

    def tokens_per_s(self, policies: Sequence[Policy | None]) -> Floats:
        """Predicted tokens per second of each policy; 0 where a pass has no evidence. [A]."""
        batch = replay_batch(self.trace, policies)
        rates: Floats = batch.num_tokens / self._seconds(batch, policies)
        return rates

    def resampled_rates(self, policies: Sequence[Policy | None]) -> Floats:
        """Tokens per second over resampled documents, up to a factor by resample that all policies share. [A, R].

        Every pass of the policies needs evidence.
        """
        batch = replay_batch(self.trace, policies, by_prompt=True)
        by_prompt = self._seconds(batch, policies).reshape(len(policies), -1)
        documents = [document_name(prompt.name) for prompt in self.trace.header.prompts]
        is_of_document = np.array([[name == document for name in documents] for document in dict.fromkeys(documents)])
        rates: Floats = 1 / (by_prompt @ is_of_document.T @ resample_counts(len(is_of_document)).T)
        return rates

    def _seconds(self, batch: ReplayBatch, policies: Sequence[Policy | None]) -> Floats:
        """Predicted seconds of each replay; infinity where a pass has no evidence. [G]."""
        if self.round_shape == DEFAULT_SHAPE:
            return batch.seconds(self.draft, self.target)
        replays = batch.stats()
        replayed = [policy for policy in policies for _ in range(len(replays) // len(policies))]
        shaped = (with_round_shape(stats, self.round_shape, policy) for stats, policy in zip(replays, replayed, strict=True))
        return np.array([self._rounds_s(stats) for stats in shaped])

    def _rounds_s(self, rounds: RoundStats) -> Seconds:
        """Predicted seconds of some rounds; infinity where a pass has no evidence."""
        try:
            return math.fsum(pass_seconds(self.draft, self.target, rounds).values())
        except OutOfDomain:
            return math.inf

    def subset(self, prompts: Iterable[int]) -> Scenario:
        """The scenario with some of its prompts, by zero-based number."""
        return replace(self, trace=self.trace.subset(list(prompts)))


def rates_by_scenario(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> Floats:
    """Predicted tokens per second of each policy in each scenario; 0 where a pass has no evidence. [A, B]."""
    return np.stack([scenario.tokens_per_s(policies) for scenario in scenarios], axis=1)


def resampled_rates(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> Floats:
    """`Scenario.resampled_rates` of each scenario. [A, R, B]."""
    return np.stack([scenario.resampled_rates(policies) for scenario in scenarios], axis=2)


def merits(rates: Floats, plain: Floats, objective: Objective) -> Floats:
    """The objective's value from tokens/s by scenario and the tokens/s of plain decoding. Reduces the last axis, [..., B]."""
    if objective == "worst":
        worst: Floats = (rates / plain).min(axis=-1)
        return worst
    with np.errstate(divide="ignore"):
        mean: Floats = np.exp(np.log(rates).mean(axis=-1))
    return mean
