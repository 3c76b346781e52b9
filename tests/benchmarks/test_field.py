"""field.py: a wrong answer and a bad refusal count as wrong."""

import json
from pathlib import Path

import pytest
from field import BYTES_TOLERANCE, config_problems, count_verdicts, names_a_reason, refusal_outcome, stored_bytes, text_problems

from details.field_configs import ConfigCase, Storage
from details.field_oracle import Counted, count

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
CASE = ConfigCase(name="mine", files={"config.json": CONFIG})
OTHER_NAME = ConfigCase(name="mine", files={}, named="yours")
OTHER_BYTES = ConfigCase(name="mine", files={}, storage=Storage(linear_bits=16 * (1 + 3 * BYTES_TOLERANCE)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def test_the_oracle_counts_every_weight_of_a_llama() -> None:
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
    counted = count(CONFIG)
    assert counted.num_params == 2 * layer + 2 * 100 * 64 + 64
    assert counted.kv_values_per_token == 2 * 2 * 2 * 16


def test_bytes_are_summed_over_parameters() -> None:
    counted = Counted(
        params_by_name={
            "model.embed_tokens.weight": (100, False),
            "model.layers.0.mlp.up_proj.weight": (200, True),
            "model.layers.1.mlp.up_proj.weight": (200, True),
            "model.norm.weight": (10, False),
            "lm_head.weight": (100, True),
        },
        kv_values_per_token=1,
    )
    storage = Storage(linear_bits=4, head_bits=8, embedding_bits=2, own_bits={"layers.1.": 16.0})
    assert stored_bytes(counted, storage) == (100 * 2 + 200 * 4 + 200 * 16 + 10 * 16 + 100 * 8) / 8


@pytest.mark.parametrize(
    ("case", "config", "problem"),
    [
        (CASE, CONFIG, None),
        (CASE, CONFIG | {"intermediate_size": 129}, "weights, expected"),
        (CASE, CONFIG | {"num_key_value_heads": 4}, "KV values per token, expected"),
        (OTHER_NAME, CONFIG, "called 'mine', expected 'yours'"),
        (
            ConfigCase(name="mine", files={}, storage=Storage(linear_bits=16 * (1 + 3 * BYTES_TOLERANCE))),
            CONFIG,
            "bytes of weights",
        ),
    ],
)
def test_an_answer_that_differs_from_the_oracle_is_wrong(
    case: ConfigCase, config: dict[str, object], problem: str | None, folder: Path
) -> None:
    problems = config_problems(case, folder, count(config))
    assert bool(problems) == (problem is not None)
    assert problem is None or any(problem in found for found in problems)


QUANTISED = ConfigCase(name="mine", files={}, storage=Storage(linear_bits=4))
SHOWN = "target  mine, 2 layers, 0.86 billion weights, on 1 x H100\nplain   9 tokens/s\n"


@pytest.mark.parametrize(
    ("case", "text", "problem"),
    [
        (CASE, SHOWN, None),
        (QUANTISED, SHOWN + "weights AWQ int4\n", None),
        (QUANTISED, SHOWN, "quantised weights are not named"),
        (CASE, SHOWN + "weights AWQ int4\n", "plain weights are called quantised"),
        (CASE, SHOWN.replace("0.86", "0.88"), "expected 860000000"),
        (CASE, SHOWN.replace("mine", "yours"), "no line of the target's name"),
        (CASE, "", "no line of the target's name"),
    ],
)
def test_a_text_with_a_wrong_name_size_or_quantisation_is_wrong(case: ConfigCase, text: str, problem: str | None) -> None:
    problems = text_problems(case, text, Counted(params_by_name={"all": (860_000_000, True)}, kv_values_per_token=1))
    assert len(problems) == (problem is not None)
    assert problem is None or problem in problems[0]


@pytest.mark.parametrize(
    ("message", "is_named"),
    [
        ("a mixture of experts (num_experts = 8)", True),
        ("the latency law does not cover 'NewForCausalLM'", True),
        ("'mine' is an embedding model by its name", True),
        ("cannot be read", False),
    ],
)
def test_a_good_refusal_names_something_in_the_file(message: str, is_named: bool, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"architectures": ["NewForCausalLM"], "num_experts": 8}), encoding="utf-8")
    assert names_a_reason(message, path) == is_named


@pytest.mark.parametrize(
    ("code", "message", "verdict"),
    [
        (2, "this is an EAGLE-3 head", "refused well"),
        (0, "this is an EAGLE-3 head", "wrong"),
        (1, "this is an EAGLE-3 head", "wrong"),
        (2, "unknown architecture", "wrong"),
        (2, "EAGLE-3 " * 200, "wrong"),
    ],
)
def test_a_good_refusal_has_exit_code_2_and_a_short_message_with_the_reason(code: int, message: str, verdict: str) -> None:
    outcome = refusal_outcome("configs", "mine", code, message, ("eagle-3",))
    assert outcome.verdict == verdict
    assert count_verdicts([outcome], [])["num_wrong"] == (verdict == "wrong")
