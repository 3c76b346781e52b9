"""Plans and draft shapes for targets whose files are quantised."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.commands.plan_cli import main_plan
from calibrate.planning.compare import load_pricing
from perfmodel.acceptance.trace import TRACE_FILE
from perfmodel.core.provenance import Provenance
from perfmodel.models.find_model import find_model
from perfmodel.passes.latency_law import FIT_FILE
from perfmodel.quantisation.dtype_format import dtype_format
from perfmodel.quantisation.weight_format import model_weight_bytes, plain_format
from perfmodel.results.plan import PLAN_FILE, Plan
from tests.calibrate.factories import make_trace, provenance, unfolded
from tests.calibrate.inputs.test_target import MODELOPT, REFERENCE, write_config
from tests.perfmodel.latency.test_latency_model import FIT

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = main_plan(list(argv))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def design(capsys: pytest.CaptureFixture[str], target: Path, *argv: str) -> tuple[int, str, str]:
    code, out, err = run(capsys, "design", "--target", str(target), "--params", "300e6", "--device", "a100", *argv)
    return code, unfolded(out), err


def planned(tmp_path: Path, block: dict[str, Any] | None, *argv: str) -> Plan:
    """A plan for the reference target as some files store it."""
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    config = write_config(tmp_path / "mine", REFERENCE | ({} if block is None else {"quantization_config": block}))
    path = tmp_path / "plan.json"
    trace = str(tmp_path / "trace.npz")
    assert main_plan(["--target", str(config), "--trace", trace, "--device", "a100", "-o", str(path), *argv]) == 0
    return PLAN_FILE.read(path).record


def test_draft_shapes_name_the_weight_format_of_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "mine", LLAMA_8B | {"quantization_config": AWQ})
    _, out, err = design(capsys, config)
    assert "weights AWQ int4, groups of 128, 4.16 bits; head 16 bits" in out
    assert "--dtype" not in err
    _, in_bf16, _ = design(capsys, config, "--dtype", "bf16")
    assert "AWQ" not in in_bf16
    assert "device 1 x A100-80GB-SXM, bf16, graph" in in_bf16


def test_the_quantisation_file_beside_a_plain_config_halves_the_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A 405B model at 8 bits: 412 GB, eight A100s of 80 GB; in bf16 no node holds it."""
    large = LLAMA_8B | {"num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248, "num_attention_heads": 128}
    config = write_config(tmp_path / "mine", large)
    code, _, err = design(capsys, config)
    assert code == 2
    assert "memory on A100-80GB-SXM = 8" in err
    (config.parent / "hf_quant_config.json").write_text(json.dumps(MODELOPT), encoding="utf-8")
    code, out, _ = design(capsys, config)
    assert code == 0
    assert "device 8 x A100-80GB-SXM" in out


def test_an_unknown_method_is_refused_unless_a_dtype_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "mine", LLAMA_8B | {"quantization_config": {"quant_method": "qwq"}})
    code, out, err = design(capsys, config)
    assert (code, out) == (2, "")
    assert err.startswith("s2d-plan: model 'mine' is stored quantised by 'qwq', a method with unknown bits per weight")
    code, out, err = design(capsys, config, "--dtype", "q4_k_m")
    assert (code, err) == (0, "")
    assert "weights llama.cpp Q4_K_M, 4.8 bits; head 6.56 bits; embedding 4.5 bits" in out


def test_acceptance_of_a_quantised_target_is_recorded_with_its_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """s2d-profile would refuse the quantised folder."""
    config = write_config(tmp_path / "mine", LLAMA_8B | {"quantization_config": AWQ})
    assert main_plan(["--target", str(config)]) == 2
    err = capsys.readouterr().err
    assert "Record it with the model it was quantised from, as s2d-profile runs plain weights only: s2d-profile " in err
    assert "acceptance --target path/to/its-original --draft" in err


def test_a_plan_prices_and_keeps_the_targets_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, plain = planned(tmp_path, AWQ), planned(tmp_path, None)
    text = " ".join(capsys.readouterr().out.split())
    assert "; weights AWQ int4, groups of 128, 4.16 bits; head 16 bits" in text
    assert "s2d-profile and s2d-run load plain weights only: give them the model that ref-target-16 was quantised from" in text
    assert text.count("load plain weights only") == 1
    assert stored.target_weights.label == "AWQ int4, groups of 128"
    assert stored.draft_weights == plain.draft_weights == plain.target_weights == plain_format("bf16")
    assert stored.memory.target_weight_bytes == model_weight_bytes(stored.target, stored.target_weights)
    assert stored.memory.target_weight_bytes < plain.memory.target_weight_bytes
    assert stored.memory.draft_weight_bytes == plain.memory.draft_weight_bytes
    assert stored.device == plain.device


def test_a_requested_dtype_applies_to_both_models_whatever_the_files_store(tmp_path: Path) -> None:
    plan = planned(tmp_path, AWQ, "--dtype", "q8_0")
    assert plan.device.dtype == "q8_0"
    assert plan.target_weights == dtype_format("q8_0", plan.target)
    assert plan.draft_weights == dtype_format("q8_0", plan.draft.model)


def test_a_plan_of_a_quantised_target_is_priced_again_from_its_file_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, AWQ)
    pricing = load_pricing(plan, [], None)
    assert pricing is not None
    assert (pricing.weights.target, pricing.weights.draft) == (plan.target_weights, plan.draft_weights)
    assert pricing.memory == plan.memory
    assert pricing.target.line("verify", 0, 1).base_s > 0


def test_profiles_price_a_quantised_target_with_plain_weights_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FIT_FILE.write(tmp_path / "fit.json", FIT, provenance())
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    config = write_config(tmp_path / "mine", REFERENCE | {"quantization_config": AWQ})
    argv = ["--target", str(config), "--trace", str(tmp_path / "trace.npz"), "--fit", str(tmp_path / "fit.json")]
    assert main_plan(argv) == 0
    assert (
        "is stored as AWQ int4, groups of 128, 4.16 bits; head 16 bits; profiles and fits price it with plain weights"
        in capsys.readouterr().err
    )


def test_a_plan_is_saved_and_read_back_byte_by_byte(tmp_path: Path) -> None:
    plan = planned(tmp_path, AWQ)
    made: Provenance = provenance()
    PLAN_FILE.write(tmp_path / "one.json", plan, made)
    again = PLAN_FILE.read(tmp_path / "one.json")
    PLAN_FILE.write(tmp_path / "two.json", again.record, again.provenance)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_the_head_of_a_large_vocabulary_stays_in_16_bits() -> None:
    """Llama-3-8B in int4: 5.73 GB and not the 4.02 GB of 4 bits everywhere."""
    model = find_model("llama-3-8b")
    assert model_weight_bytes(model, dtype_format("int4", model)) == pytest.approx(5.73e9, rel=2e-3)


def test_a_refused_block_names_its_file_and_files_that_disagree_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path / "mine", LLAMA_8B | {"quantization_config": AWQ | {"bits": "4"}})
    code, _, err = design(capsys, config)
    assert code == 2
    assert "bits is '4', expected a number of bits" in err
    assert err.endswith(f"Read from '{config}'.\n")
    write_config(tmp_path / "mine", LLAMA_8B | {"quantization_config": AWQ})
    (config.parent / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}), encoding="utf-8")
    code, _, err = design(capsys, config)
    assert code == 2
    assert "its config.json declares AWQ int4, groups of 128, 5.73 GB, but hf_quant_config.json next to it ModelOpt fp8" in err
    assert design(capsys, config, "--dtype", "bf16")[0] == 0
