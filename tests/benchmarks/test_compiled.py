"""compiled.py: compiled layers compute the lean decoder's logits, and the summary follows from the times."""

import compiled
import pytest
import torch

from details.compiled_arms import LEAN, LEAN_AGAIN, STATIC, Arm
from details.compiled_layers import PlainDecoder
from details.compiled_result import CompiledResult, Timing, result_of
from perfmodel.core.console import run_command
from tests.stubs import VOCAB_SIZE, TinySpec, tiny_model

SPEC = TinySpec(num_kv_heads=2)
PIECES = (7, 1, 5, 1, 3, 1)


@torch.inference_mode()
def logits_in_pieces(decoder, text: list[int]) -> torch.Tensor:
    cache, logits, start = decoder.new_cache((SPEC.num_layers,), len(text)), [], 0
    for rows in PIECES:
        states = decoder.embed(text[start : start + rows])
        logits.append(decoder.exit_logits(decoder.forward_segment(states, cache.segments[0], cache)))
        start += rows
    return torch.cat(logits)


@pytest.mark.parametrize("by_sums", [False, True])
@pytest.mark.parametrize("is_static", [False, True])
def test_plain_operations_compute_the_lean_decoders_logits(by_sums: bool, is_static: bool) -> None:
    lean = tiny_model(SPEC).decoder
    text = torch.randint(0, VOCAB_SIZE, (sum(PIECES),), generator=torch.Generator().manual_seed(3)).tolist()
    plain = PlainDecoder(lean, len(text), by_sums=by_sums, compiled=lambda layers: layers, is_static=is_static)
    torch.testing.assert_close(logits_in_pieces(plain, text), logits_in_pieces(lean, text), atol=1e-5, rtol=1e-4)


def test_a_missing_compiler_is_an_error_before_any_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert run_command(compiled._parser(), ["--quick"], compiled.run) == 2
    out, err = capsys.readouterr()
    assert "no C++ compiler 'no-such-compiler': torch.compile needs one" in err
    assert "Install g++" in err
    assert not out


def timing(name: str, over_lean: float) -> Timing:
    """Two runs; the machine is slower in the second."""
    lean = [[1.0, 1.0, 9.0], [2.0, 2.0, 2.0]]
    turns = [[over_lean * seconds for seconds in turn] for turn in lean]
    return Timing(setting=name, turns_s=turns, lean_turns_s=lean)


def result_with(over_lean: float, in_the_loop: float) -> CompiledResult:
    names = {LEAN.name: 1.0, LEAN_AGAIN.name: 1.02, STATIC.name: over_lean}
    arms = [Arm(setting=setting, decoder=None) for setting in (LEAN, LEAN_AGAIN, STATIC)]
    return CompiledResult(
        target="target",
        arms=arms,
        passes={(1, 60): [timing(*row) for row in names.items()], (1, 120): [timing(LEAN_AGAIN.name, 0.97)]},
        loops=[timing(*row) for row in (names | {STATIC.name: in_the_loop}).items()],
        loop_tokens=8,
        num_late_graphs=0,
    )


def test_a_ratio_compares_times_of_the_same_run() -> None:
    assert timing("x", 0.8).over_lean == pytest.approx(0.8)
    assert timing("x", 0.8).quartiles_s == pytest.approx((1.0, 1.6, 1.6))


@pytest.mark.parametrize(
    ("over_lean", "in_the_loop", "faster"), [(0.85, 0.89, [STATIC.name]), (0.85, 0.95, []), (0.95, 0.85, [])]
)
def test_clearly_faster_means_a_tenth_faster_in_the_pass_and_in_the_loop(
    over_lean: float, in_the_loop: float, faster: list[str]
) -> None:
    result = result_of([result_with(over_lean, in_the_loop)])
    assert result["clearly_faster"] == faster
    assert result["noise_frac"] == pytest.approx(0.03)
    assert result["lean_tokens_per_s"] == {"target": pytest.approx(4.0)}
