"""The search for a policy that an engine can execute."""

from dataclasses import replace

import numpy as np
import pytest

from calibrate.engines.fit_engine import fit_engine
from calibrate.engines.search_engine import (
    TIE_FRAC,
    draft_lengths_of,
    engine_overfitting,
    engine_scenario,
    search_engine,
)
from calibrate.inputs.requests import DeviceRequest
from calibrate.planning.engine_evidence import resolve_engine_device
from calibrate.pricing.datasheet import price_by_datasheet
from calibrate.pricing.pricing import Pricing, pair_weights
from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from perfmodel.acceptance.trace import Trace
from perfmodel.engines.check_constraints import executable_policy_problems
from perfmodel.engines.engine import ConfidenceFloorSupport, Engine
from perfmodel.engines.engine_latency import engine_latencies
from perfmodel.engines.known_engines import ENGINES
from perfmodel.policies.policy import ConfidenceFloor, Policy
from tests.calibrate.engines.simulate_engine import SimulatedEngine
from tests.calibrate.factories import make_trace
from tests.perfmodel.engines.test_engine_latency import FIT

TRACE = make_trace()
ONNXRUNTIME, TRANSFORMERS = ENGINES["onnxruntime"], ENGINES["transformers"]


def by_datasheet(engine: Engine, trace: Trace = TRACE) -> Pricing:
    device = resolve_engine_device(DeviceRequest(device="a100-80gb"), engine)
    header = trace.header
    weights = pair_weights(header.draft, header.target, device.dtype)
    pricing = price_by_datasheet(header, device, weights, context_tokens=104)
    return replace(pricing, round_shape=engine.round_shape)


ON_GPU = [engine for engine in ENGINES.values() if not engine.runs_exits and "cuda" in engine.devices]


@pytest.mark.parametrize("engine", ON_GPU, ids=lambda engine: engine.name)
def test_every_engine_gets_a_policy_that_it_can_execute(engine: Engine) -> None:
    pricing = by_datasheet(engine)
    found = search_engine(engine_scenario(TRACE, pricing), engine, pricing)
    policies = [found.chosen.policy, *found.single_exits, *(scored.policy for scored in found.by_exits)]
    for policy in filter(None, policies):
        assert not executable_policy_problems(engine, policy)


@pytest.mark.parametrize("engine", ON_GPU, ids=lambda engine: engine.name)
def test_of_lengths_that_are_nearly_equally_fast_the_shortest_is_chosen(engine: Engine) -> None:
    pricing = by_datasheet(engine)
    scenario = engine_scenario(TRACE, pricing)
    for policy in search_engine(scenario, engine, pricing).single_exits:
        lengths = [replace(policy, tokens=tokens) for tokens in draft_lengths_of(engine)]
        rates = scenario.tokens_per_s(lengths)
        assert policy == lengths[np.flatnonzero(rates >= (1 - TIE_FRAC) * rates.max())[0]]


def test_lengths_stay_within_the_limits_of_the_engine_and_of_the_search() -> None:
    assert draft_lengths_of(ONNXRUNTIME) == range(1, MAX_DRAFT_TOKENS + 1)
    assert draft_lengths_of(replace(ONNXRUNTIME, min_draft_tokens=2, max_draft_tokens=4)) == range(2, 5)


def test_a_floor_is_used_only_if_the_engine_compares_the_confidence_of_the_trace() -> None:
    rng = np.random.default_rng(0)
    is_right = TRACE.accept_prob > 0.5
    confidence = np.where(is_right, 0.9, 0.1) + 0.05 * rng.random(is_right.shape)
    sure = replace(TRACE, confidence=confidence.astype(np.float32))
    pricing = by_datasheet(TRANSFORMERS, sure)
    scenario = engine_scenario(sure, pricing)

    def stop_of(engine: Engine) -> object:
        policy = search_engine(scenario, engine, pricing).chosen.policy
        assert policy is not None
        return policy.stop

    assert isinstance(stop_of(TRANSFORMERS), ConfidenceFloor)
    assert stop_of(replace(TRANSFORMERS, floor=None)) is None
    other = ConfidenceFloorSupport(measure="top10-prob", keeps_token=True, is_recommended=True)
    assert stop_of(replace(TRANSFORMERS, floor=other)) is None
    broken = ConfidenceFloorSupport(measure="max-prob", keeps_token=True, is_recommended=False)
    assert stop_of(replace(TRANSFORMERS, floor=broken)) is None


def test_a_floor_of_llama_cpp_drops_its_token() -> None:
    rng = np.random.default_rng(0)
    is_right = TRACE.accept_prob > 0.5
    confidence = np.where(is_right, 0.9, 0.15) + 0.05 * rng.random(is_right.shape)
    header = replace(TRACE.header, confidence="top10-prob")
    sure = replace(TRACE, header=header, confidence=confidence.astype(np.float32))
    pricing = by_datasheet(ENGINES["llama.cpp"], sure)
    policy = search_engine(engine_scenario(sure, pricing), ENGINES["llama.cpp"], pricing).chosen.policy
    assert policy is not None
    assert isinstance(policy.stop, ConfidenceFloor)
    assert not policy.stop.keeps_token


def profiled() -> Pricing:
    """Prices by the fit of a profile of exits 1 and 4 at 3 and 8 tokens."""

    def for_policy(policy: Policy | None):
        exit_layer, tokens = (None, 0) if policy is None else (policy.exits[-1], policy.tokens)
        return engine_latencies(FIT, exit_layer, tokens, context_tokens=104)

    draft, target = for_policy(None)
    return replace(by_datasheet(ONNXRUNTIME), draft=draft, target=target, for_policy=for_policy)


def test_a_configuration_outside_the_profile_needs_a_gain_beyond_its_added_error() -> None:
    pricing = profiled()
    scenario = engine_scenario(TRACE, pricing)
    scored = {entry.policy.tokens: entry for entry in search_engine(scenario, ONNXRUNTIME, pricing).by_exits if entry.policy}
    for entry in scored.values():
        assert entry.policy is not None
        draft, _ = pricing.models_for(entry.policy)
        added = draft.error_frac - FIT.error_frac if draft.level == "extrapolated" else 0.0
        assert entry.merit == pytest.approx(entry.tokens_per_s[0] * (1 - added))


def test_an_engine_whose_rounds_cost_too_much_is_not_to_speculate() -> None:
    slow = SimulatedEngine(verify_steps=lambda rows: 4.2 * rows if rows > 1 else 1.0)
    assert max(slow.speedup(TRACE, layer, tokens) for layer in (1, 4) for tokens in (1, 3)) < 1
    fit = fit_engine(slow.profile(TRACE, (1, 4), (3, 8)), TRACE, slow.engine)
    draft, target = engine_latencies(fit, None, 0, context_tokens=104)
    pricing = replace(by_datasheet(ONNXRUNTIME), draft=draft, target=target)
    assert search_engine(engine_scenario(TRACE, pricing), ONNXRUNTIME, pricing).chosen.policy is None


def test_overfitting_is_measured_on_the_other_half_of_the_prompts() -> None:
    pricing = profiled()
    header = TRACE.header
    names = tuple(replace(prompt, name=f"{number}.py:1") for number, prompt in enumerate(header.prompts))
    trace = replace(TRACE, header=replace(header, prompts=names))
    found = engine_overfitting(engine_scenario(trace, pricing), ONNXRUNTIME, pricing)
    assert found is not None
    assert found.unseen_speedup <= found.seen_speedup * 1.2
