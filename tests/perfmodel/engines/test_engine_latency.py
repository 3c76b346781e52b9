"""Prices of an engine's passes, by a fit of its profile."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.core.errors import OutOfDomain, UserInputError
from perfmodel.engines.engine import RoundShape
from perfmodel.engines.engine_fit import EngineFit, FittedRun, VerifyPoint
from perfmodel.engines.engine_latency import EngineDraftLatency, EngineTargetLatency, engine_latencies
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.engines.weight_words import find_dtype, weights_dtype
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import pass_seconds
from perfmodel.replay.replay import replay
from tests.calibrate.engines.simulate_engine import SETTING
from tests.calibrate.factories import make_trace

TRACE = make_trace()
LAYERS = TRACE.header.exit_layers


def run(exit_layer: int, draft_tokens: int) -> FittedRun:
    return FittedRun(
        exit_layer=exit_layer,
        draft_tokens=draft_tokens,
        num_rounds=100.0,
        tokens_per_round=2.0,
        round_s=3e-3,
        fitted_round_s=3e-3,
        draft_s=None,
        fitted_draft_s=1e-3,
    )


FIT = EngineFit(
    setting=SETTING,
    exit_layers=LAYERS,
    round_shape=RoundShape(),
    verify=(
        VerifyPoint(rows=1, seconds=2e-3),
        VerifyPoint(rows=4, seconds=5e-3),
        VerifyPoint(rows=9, seconds=6e-3),
    ),
    overhead_s=1e-4,
    draft_pass_s=8e-5,
    draft_layer_s=6e-5,
    cold_layer_s=3e-5,
    exit_extra_s=(1e-6, 0.0, -1e-6, 0.0),
    profiled_exits=(1, 4),
    timed_exits=(1, 4),
    context_tokens=104,
    agreement_kept_frac=None,
    error_frac=0.04,
    noise_frac=0.01,
    runs=tuple(run(layer, tokens) for layer in (1, 4) for tokens in (3, 8)),
)


@given(stage=st.integers(0, len(LAYERS) - 1), tokens=st.integers(1, 12))
def test_the_passes_of_a_round_add_up_to_the_formula(stage: int, tokens: int) -> None:
    rounds = replay(TRACE, Policy(exits=(LAYERS[stage],), tokens=tokens))
    seconds = pass_seconds(EngineDraftLatency(FIT), EngineTargetLatency(FIT), rounds)
    drafting, layer = rounds.drafted_by_position[0], LAYERS[stage]
    draft_s = rounds.num_drafted * FIT.draft_s(layer) + drafting * FIT.cold_layer_s * layer
    verify_s = sum(part.num_passes * FIT.verify_s(part.rows) for part in rounds.passes if part.kind == "verify")
    assert sum(seconds.values()) == pytest.approx(draft_s + verify_s + drafting * FIT.overhead_s)


def test_a_block_that_is_read_again_costs_as_much_more_as_in_the_target() -> None:
    rereading = replace(FIT, round_shape=RoundShape(rereads_block=True))
    policy = Policy(exits=(4,), tokens=3)
    rounds = replay(TRACE, policy)
    shaped = with_round_shape(rounds, rereading.round_shape, policy)
    added_s = sum(
        sum(pass_seconds(EngineDraftLatency(rereading), EngineTargetLatency(rereading), stats).values()) * sign
        for stats, sign in ((shaped, 1), (rounds, -1))
    )
    wide = [part for part in rounds.passes if part.kind == "verify" and part.rows > 1]
    expected_s = sum(part.num_passes * FIT.draft_s(4) * FIT.verify_s(part.rows) / FIT.plain_s for part in wide)
    pairs = [part for part in rounds.passes if part.kind == "segment" and part.rows == 2]
    replaced_s = sum(
        part.num_passes * FIT.draft_layer_s * ((0, *LAYERS)[part.stage + 1] - (0, *LAYERS)[part.stage]) for part in pairs
    ) * (FIT.verify_s(2) / FIT.plain_s - 1)
    assert added_s == pytest.approx(expected_s - replaced_s)


def test_plain_decoding_pays_no_overhead_of_speculation() -> None:
    rounds = replay(TRACE, None)
    seconds = pass_seconds(None, EngineTargetLatency(FIT), rounds)
    assert sum(seconds.values()) == pytest.approx(rounds.num_rounds * FIT.plain_s)


def test_verification_is_as_measured_linear_between_and_never_falls_beyond() -> None:
    assert [FIT.verify_s(rows) for rows in (1, 4, 9)] == pytest.approx([2e-3, 5e-3, 6e-3])
    assert FIT.verify_s(2) == pytest.approx(3e-3)
    assert FIT.verify_s(14) == pytest.approx(7e-3)
    falling = replace(FIT, verify=(*FIT.verify[:2], VerifyPoint(rows=9, seconds=4e-3)))
    assert falling.verify_s(12) == 4e-3


def test_a_draft_more_than_twice_the_longest_profiled_has_no_price() -> None:
    assert FIT.verify_s(17) > 0
    with pytest.raises(OutOfDomain, match=r"draft tokens = 17 is outside the evidence, which covers 1 to 16\. Profile longer"):
        FIT.verify_s(18)


def test_an_exit_that_was_not_profiled_lies_on_the_line_of_the_others() -> None:
    assert FIT.draft_s(2) == pytest.approx(8e-5 + 2 * 6e-5)
    single = replace(FIT, profiled_exits=(4,), timed_exits=(4,))
    assert single.draft_s(4) == FIT.draft_s(4)
    with pytest.raises(OutOfDomain, match=r"layers of the exit = 2 .* covers 4 to 4\. Profile two exits or more"):
        EngineDraftLatency(single).line("exit", LAYERS.index(2), 1)


def test_the_error_grows_outside_the_profile_and_the_level_says_so() -> None:
    inside, longer, deeper = (
        engine_latencies(FIT, layer, tokens, context_tokens=100)[0] for layer, tokens in ((4, 8), (4, 16), (6, 8))
    )
    assert (inside.level, inside.error_frac) == ("measured", FIT.error_frac)
    assert (longer.level, longer.error_frac) == ("extrapolated", pytest.approx(0.10))
    assert deeper.level == "extrapolated"
    assert inside.error_frac < deeper.error_frac < longer.error_frac
    assert engine_latencies(FIT, None, 0, context_tokens=800)[1].level == "extrapolated"


def test_a_length_between_two_profiled_ones_is_measured_with_a_larger_error() -> None:
    """Verification bends between lengths: 5 tokens are 0.68 doublings from 8, and 0.74 from 3."""
    between = engine_latencies(FIT, 4, 5, context_tokens=100)[0]
    assert between.level == "measured"
    assert between.error_frac == pytest.approx(FIT.error_frac + 0.06 * math.log2(8 / 5))


def test_no_engine_runs_ahead_or_has_profiled_prompts() -> None:
    for latency, kind in ((EngineDraftLatency(FIT), "ahead"), (EngineTargetLatency(FIT), "target_prefill")):
        with pytest.raises(OutOfDomain):
            latency.line(kind, 0, 1)  # type: ignore[arg-type]


def test_words_for_weights_name_number_types() -> None:
    assert [find_dtype(word) for word in ("f32", "FP16", "bf16", "q8_0", "int4", "nvfp4")] == [
        "fp32",
        "fp16",
        "bf16",
        "q8_0",
        "int4",
        None,
    ]
    with pytest.raises(UserInputError, match="weights 'nvfp4': expected a type whose size is known"):
        weights_dtype("nvfp4")
