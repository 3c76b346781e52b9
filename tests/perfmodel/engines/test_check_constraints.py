"""A plan that an engine would refuse, ignore or run wrongly is refused before, by name."""

from dataclasses import replace

import pytest

from perfmodel.engines.check_constraints import (
    ModelFacts,
    PlanFacts,
    check_constraints,
    executable_policy_problems,
    known_bad_with,
)
from perfmodel.engines.find_engine import find_engine
from perfmodel.engines.known_engines import ENGINES
from perfmodel.policies.policy import ConfidenceFloor, HeuristicLength, Policy
from perfmodel.policies.sampling import Sampling

TARGET = ModelFacts(
    name="target", vocab_tokens=2048, tokenizer_sha256="a", context_tokens=1024, architecture="LlamaForCausalLM"
)
FACTS = PlanFacts(
    target=TARGET,
    draft=replace(TARGET, name="draft"),
    policy=Policy(exits=(4,), tokens=8),
    weights="float32",
    context_tokens=1024,
)
OTHER_DRAFT = replace(TARGET, name="draft", vocab_tokens=1000, tokenizer_sha256="b", context_tokens=512, num_devices=2)


def names(engine: str, facts: PlanFacts) -> list[str]:
    return [problem.name for problem in check_constraints(find_engine(engine), facts)]


def policy_names(engine: str, policy: Policy) -> list[str]:
    return [problem.name for problem in executable_policy_problems(find_engine(engine), policy)]


def test_a_fixed_length_of_one_exit_in_fp32_has_no_problem_in_any_engine_that_loads_it() -> None:
    wrong = {name: names(name, FACTS) for name in ENGINES if "f32" in ENGINES[name].weights or name == "s2d"}
    assert not {name: found for name, found in wrong.items() if found}
    assert len(wrong) == len(ENGINES) - 1
    assert names("tensorrt-llm", FACTS) == ["dtype"]


def test_unknown_facts_pass() -> None:
    unknown = ModelFacts(name="model")
    assert not [name for name in ENGINES if names(name, PlanFacts(target=unknown, draft=unknown, policy=None))]


def test_plain_decoding_is_checked_for_the_target_alone() -> None:
    facts = replace(FACTS, draft=None, policy=None, batch=8, sampling=Sampling(rule="ratio", temperature=1, seed=0))
    assert not names("openvino", facts)
    assert names("onnxruntime", replace(facts, context_tokens=2000)) == ["context"]


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("vllm", ["same-vocabulary", "same-tokenizer", "draft-parallelism", "context"]),
        ("llama.cpp", ["same-vocabulary", "same-tokenizer", "context"]),
        ("onnxruntime", ["same-vocabulary", "same-tokenizer", "draft-parallelism", "context"]),
        ("mlx-lm", ["same-tokenizer"]),
    ],
)
def test_a_draft_of_another_family_fails_every_check_that_the_engine_makes(engine: str, expected: list[str]) -> None:
    assert names(engine, replace(FACTS, draft=OTHER_DRAFT)) == expected


def test_vocabularies_may_differ_by_as_much_as_the_engine_allows() -> None:
    padded = replace(FACTS, draft=replace(TARGET, name="draft", vocab_tokens=2048 - 128))
    assert names("llama.cpp", padded) == []
    assert names("llama.cpp", replace(FACTS, draft=replace(TARGET, name="draft", vocab_tokens=2048 - 129))) == [
        "same-vocabulary"
    ]
    assert names("vllm", padded) == ["same-vocabulary"]


def test_sampling_batches_weights_and_architectures_are_checked() -> None:
    sampled = replace(FACTS, sampling=Sampling(rule="ratio", temperature=0.7, seed=0))
    assert [name for name in ENGINES if "greedy-only" in names(name, sampled)] == ["openvino"]
    batch = replace(FACTS, batch=2)
    assert [name for name in ENGINES if "single-sequence" in names(name, batch)] == [
        "s2d",
        "onnxruntime",
        "transformers",
        "mlx-lm",
    ]
    assert names("vllm", replace(FACTS, weights="q4_0")) == ["dtype"]
    strange = replace(FACTS, target=replace(TARGET, architecture="FrogForCausalLM"))
    assert [name for name in ENGINES if "architecture" in names(name, strange)] == ["s2d", "onnxruntime"]


def test_a_problem_says_what_is_wrong_what_is_expected_and_how_to_fix_it() -> None:
    [problem] = check_constraints(
        find_engine("vllm"),
        replace(FACTS, draft=replace(OTHER_DRAFT, vocab_tokens=2048, tokenizer_sha256="a", context_tokens=1024)),
    )
    assert str(problem) == (
        "draft-parallelism: draft on 2 devices and target on 1: expected the same number "
        "(vLLM: the draft's tensor parallel size equals the target's). Plan with the same degree for both models."
    )


def test_several_exits_and_long_blocks_are_for_engines_that_execute_them() -> None:
    nested = Policy(exits=(4, 6), thresholds=(0.5,), tokens=8)
    assert [name for name in ENGINES if "exits" not in policy_names(name, nested)] == ["s2d"]
    assert policy_names("ort", Policy(exits=(4,), tokens=16)) == []
    [problem] = executable_policy_problems(find_engine("ort"), Policy(exits=(4,), tokens=17))
    assert str(problem) == (
        "draft-tokens: 17 draft tokens in ONNX Runtime GenAI: expected 1 to 16 tokens. "
        "Plan for this engine: s2d-plan --engine onnxruntime."
    )


def test_stop_rules_run_only_where_the_engine_has_the_same_measure() -> None:
    floor = Policy(exits=(4,), tokens=8, stop=ConfidenceFloor(floor=0.3))
    assert [name for name in ENGINES if not policy_names(name, floor)] == ["s2d", "transformers"]
    heuristic = Policy(exits=(4,), tokens=8, stop=HeuristicLength(start=4))
    assert [name for name in ENGINES if not policy_names(name, heuristic)] == ["s2d"]
    reasons = {name: str(executable_policy_problems(ENGINES[name], floor)[0]) for name in ("vllm", "openvino", "llama.cpp")}
    assert "vLLM has no confidence floor: expected a fixed length." in reasons["vllm"]
    assert "the confidence floor of OpenVINO GenAI does not work as documented" in reasons["openvino"]
    expected = "compares top10-prob: expected a fixed length, or a floor of top10-prob that drops its token"
    assert expected in reasons["llama.cpp"]
    dropping = Policy(exits=(4,), tokens=8, stop=ConfidenceFloor(floor=0.3, keeps_token=False), confidence="top10-prob")
    assert [name for name in ENGINES if not policy_names(name, dropping)] == ["s2d", "llama.cpp"]
    keeping = replace(dropping, stop=ConfidenceFloor(floor=0.3))
    [problem] = executable_policy_problems(ENGINES["llama.cpp"], keeping)
    assert "the policy keeps the token below its floor, and llama.cpp drops it" in problem.wrong


def test_weights_that_run_badly_with_a_draft_are_warned_about() -> None:
    llama = find_engine("llama.cpp")
    [known] = known_bad_with(llama, replace(FACTS, weights="Q8_0"))
    assert "4 rows" in known.effect
    assert known_bad_with(llama, replace(FACTS, weights="bf16")) == ()
    assert known_bad_with(llama, replace(FACTS, weights="q8_0", draft=None)) == ()
