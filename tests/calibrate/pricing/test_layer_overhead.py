import pytest

from calibrate.pricing.layer_overhead import exit_costs, without_overhead
from perfmodel.hardware.find_hardware import find_hardware
from perfmodel.latency.latency_model import RooflineLatency
from perfmodel.latency.roofline_law import roofline_law
from perfmodel.models.find_model import find_draft
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.flops_bytes import PassSetting
from perfmodel.passes.passes import PassKind
from perfmodel.quantisation.weight_format import plain_format

DRAFT, A100 = find_draft("s2d-vicuna-12"), find_hardware("a100")
CONTEXT = 768


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_parts_of_a_drafted_token_add_up_to_its_price(mode: LaunchMode) -> None:
    setting = PassSetting(
        model=DRAFT.model, exit_layers=DRAFT.exit_layers, weights=plain_format("bf16"), context_tokens=CONTEXT
    )
    latency = RooflineLatency(setting, A100, mode)
    expected = 0.0
    for stage, cost in enumerate(exit_costs(DRAFT, A100, "bf16", mode, context_tokens=CONTEXT)):
        kinds: tuple[PassKind, ...] = ("segment", "exit")
        expected += sum(latency.line(kind, stage, 1).at(CONTEXT) for kind in kinds)
        assert cost.exit_layer == DRAFT.exit_layers[stage]
        assert cost.token_s == pytest.approx(expected, rel=1e-3)


def test_the_head_read_at_each_exit_is_bytes_over_bandwidth() -> None:
    law = roofline_law(A100, plain_format("bf16"), "graph", 1)
    first, second, third = exit_costs(DRAFT, A100, "bf16", "graph", context_tokens=CONTEXT)
    head_s = 2 * DRAFT.model.head_params * law.weight_byte_s
    assert first.checks_s == pytest.approx(head_s, rel=0.01)
    assert (second.checks_s, third.checks_s) == (pytest.approx(2 * first.checks_s), pytest.approx(3 * first.checks_s))


def test_launches_are_most_of_an_eager_draft_and_little_of_a_captured_one() -> None:
    eager = exit_costs(DRAFT, A100, "bf16", "eager", context_tokens=CONTEXT)[0]
    graph = exit_costs(DRAFT, A100, "bf16", "graph", context_tokens=CONTEXT)[0]
    assert eager.overhead_frac > 0.5 > 0.25 > graph.overhead_frac > 0.1


def test_without_floors_bytes_and_flop_keep_their_price() -> None:
    law = roofline_law(A100, plain_format("bf16"), "eager", 1)
    bare = without_overhead(law)
    assert (bare.weight_byte_s, bare.flop_s, bare.kv_byte_s) == (law.weight_byte_s, law.flop_s, law.kv_byte_s)
    assert (bare.layer_s, bare.host_layer_s, bare.pass_s, bare.sync_s) == (0, 0, 0, 0)
