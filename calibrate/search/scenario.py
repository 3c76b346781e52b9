"""Where a policy is to run: one target on one workload, or several of them, and what it is worth there.

Letters: A policies, B scenarios, D documents of a scenario, R resamples of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.splits import document_of
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import OutOfDomain
from perfmodel.core.stats import resample_counts
from perfmodel.core.units import Floats, Seconds
from perfmodel.latency.latency_model import LatencyModel
from perfmodel.passes.passes import PASS_MODEL, Line, PassKind
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import Price, replay_batch


Objective = Literal["mean", "worst"]
"""Over scenarios: the geometric mean of their rates in tokens/s, or the smallest of their speedups over plain decoding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scenario:
    """A target and a workload: what the draft's exits said there, and what passes cost."""

    trace: Trace
    price: Price

    def pass_s(self, kind: PassKind, stage: int, rows: int) -> Seconds:
        """Of a warm pass at the mean context, halfway through the outputs; infinite where it has no price."""
        prompts = self.trace.header.prompts
        context_tokens = sum(prompt.prompt_tokens + prompt.num_positions / 2 for prompt in prompts) / len(prompts)
        return self.price.line(kind, stage, rows).at(context_tokens)


def scenario_of(trace: Trace, draft: LatencyModel, target: LatencyModel) -> Scenario:
    """A trace priced by latency models of its draft and its target."""
    return Scenario(trace=trace, price=price_of(draft, target))


def price_of(draft: LatencyModel, target: LatencyModel) -> Price:
    """Prices of both models' passes; a pass without evidence costs for ever, so that no policy needing it is chosen."""

    def model_of(kind: PassKind) -> LatencyModel:
        return draft if PASS_MODEL[kind] == "draft" else target

    @cache
    def line(kind: PassKind, stage: int, rows: int) -> Line:
        try:
            return model_of(kind).line(kind, stage, rows)
        except OutOfDomain:
            return Line(math.inf, 0.0)

    return Price(line=line, cold_s=lambda kind, stage, place: model_of(kind).cold_s(kind, stage, place))


def rates_at(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> Floats:
    """Predicted tokens per second, 0 where a pass has no price. [A, B]."""
    batches = [replay_batch(scenario.trace, policies) for scenario in scenarios]
    return np.stack(
        [batch.num_tokens / batch.seconds(scenario.price) for batch, scenario in zip(batches, scenarios, strict=True)], axis=1
    )


def merit_of(rates: Floats, plain: Floats, objective: Objective) -> Floats:
    """What an objective makes of rates by scenario, given plain decoding's. The last axis, [..., B], is used up."""
    if objective == "worst":
        worst: Floats = (rates / plain).min(axis=-1)
        return worst
    with np.errstate(divide="ignore"):
        mean: Floats = np.exp(np.log(rates).mean(axis=-1))
    return mean


def resampled_rates(scenarios: Sequence[Scenario], policies: Sequence[Policy | None]) -> Floats:
    """Rates over documents drawn anew, up to a factor by scenario and resample that all policies share. [A, R, B].

    All policies must have a price.
    """
    by_case = []
    for scenario in scenarios:
        by_prompt = replay_batch(scenario.trace, policies, by_prompt=True).seconds(scenario.price).reshape(len(policies), -1)
        documents = [document_of(prompt.name) for prompt in scenario.trace.header.prompts]
        is_of = np.array([[name == document for name in documents] for document in dict.fromkeys(documents)])
        by_case.append(1 / (by_prompt @ is_of.T @ resample_counts(len(is_of)).T))
    return np.stack(by_case, axis=2)
