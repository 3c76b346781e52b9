"""From evidence to a plan: checks, choices and the messages of refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.inputs.acceptance import Acceptance, at_lengths, load_acceptance, shipped_path
from calibrate.inputs.requests import DeviceRequest, PlanRequest
from calibrate.inputs.target import resolve_target
from calibrate.planning.candidates import DERIVED_NAME, PAPER_NAME, PLAIN_NAME, rounds_by_document
from calibrate.planning.make_plan import make_plan
from calibrate.planning.make_plan import plan as public_plan
from perfmodel.acceptance.off_path_trace import MIN_RECORDED, OffPath
from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.errors import BadFile, Mismatch, OutOfDomain, UnknownName, UserInputError
from perfmodel.models.find_model import find_draft, find_model
from perfmodel.models.geometry import DraftGeometry
from perfmodel.results.plan import PLAN_FILE, Plan
from tests.calibrate.factories import (
    CPU,
    DRAFT,
    DRAFT_SHA256,
    TARGET,
    TARGET_SHA256,
    at_device,
    draft_profile,
    make_profile,
    make_trace,
    provenance,
    target_profile,
    write_profile,
)


@pytest.fixture(scope="module")
def llama_70b() -> Plan:
    return make_plan(PlanRequest(target="llama-70b"))


@pytest.fixture
def measured(tmp_path: Path) -> PlanRequest:
    """A request that names a trace and the profiles of both models."""
    TRACE_FILE.write(tmp_path / "trace.npz", make_trace(), provenance())
    target = write_profile(tmp_path / "target.latency.json", target_profile())
    draft = write_profile(tmp_path / "draft.latency.json", draft_profile())
    return PlanRequest(trace=tmp_path / "trace.npz", profiles=(target, draft))


def shipped() -> Acceptance:
    return load_acceptance(shipped_path("s2d-vicuna-12", "vicuna-7b"))


def test_llama_70b_is_planned_from_shipped_evidence_and_each_part_has_its_level(llama_70b: Plan) -> None:
    assert llama_70b.target == find_model("llama-2-70b")
    assert (llama_70b.device.device, llama_70b.device.num_devices) == ("A100-80GB-SXM", 2)
    assert [(part.role, part.level) for part in llama_70b.evidence] == [
        ("device", "assumed"),
        ("draft latency", "roofline"),
        ("target latency", "roofline"),
        ("acceptance", "published"),
    ]
    assert llama_70b.evidence[-1].sha256 is not None


def test_the_plan_is_no_slower_than_any_runner_up(llama_70b: Plan, measured: PlanRequest) -> None:
    for plan in (llama_70b, make_plan(measured)):
        assert all(plan.chosen.speedup.tokens_per_s >= other.speedup.tokens_per_s for other in plan.runners_up)


def test_the_runners_up_are_plain_decoding_every_single_exit_the_implied_policy_and_the_papers(llama_70b: Plan) -> None:
    assert {candidate.name for candidate in llama_70b.runners_up} == {
        PLAIN_NAME,
        "exit 6",
        "exit 9",
        "exit 12",
        DERIVED_NAME,
        PAPER_NAME,
    }
    rates = [candidate.speedup.tokens_per_s for candidate in llama_70b.runners_up]
    assert rates == sorted(rates, reverse=True)


def test_memory_counts_both_models_and_both_caches(llama_70b: Plan) -> None:
    memory, context_tokens = llama_70b.memory, 512 + 256
    assert memory.target_weight_bytes == 2 * llama_70b.target.num_params
    assert memory.draft_weight_bytes == 2 * llama_70b.draft.model.num_params
    assert memory.target_kv_bytes == context_tokens * 2 * llama_70b.target.kv_values_per_token
    assert memory.draft_kv_bytes == context_tokens * 2 * llama_70b.draft.model.kv_values_per_token
    assert memory.capacity_bytes == 160 * 10**9


def test_a_plan_is_read_back_as_it_was_written(llama_70b: Plan, tmp_path: Path) -> None:
    PLAN_FILE.write(tmp_path / "plan.json", llama_70b, provenance())
    stored = PLAN_FILE.read(tmp_path / "plan.json")
    assert stored.record == llama_70b
    assert PLAN_FILE.text(stored.record, stored.provenance) == (tmp_path / "plan.json").read_text(encoding="utf-8")


def test_profiles_make_every_level_measured_and_set_the_device(measured: PlanRequest) -> None:
    plan = make_plan(measured)
    assert [part.level for part in plan.evidence] == ["measured", "measured", "traced"]
    assert plan.device == CPU
    assert plan.draft_sha256 == DRAFT_SHA256
    assert plan.next_command.startswith("s2d-run")


def test_not_to_speculate_is_a_plan_when_nothing_is_faster(measured: PlanRequest, tmp_path: Path) -> None:
    slow = draft_profile()
    slow = replace(slow, samples=replace(slow.samples, seconds=tuple(1000 * seconds for seconds in slow.samples.seconds)))
    path = write_profile(tmp_path / "slow.latency.json", slow)
    plan = make_plan(replace(measured, profiles=(measured.profiles[0], path)))
    assert plan.chosen.policy is None
    assert plan.chosen.speedup.speedup.value == 1.0


def test_a_longer_prompt_costs_time_and_memory_and_keeps_the_acceptance() -> None:
    plans = [make_plan(PlanRequest(target="vicuna-7b", prompt_tokens=tokens)) for tokens in (512, 3000)]
    short, long = (plan.chosen.speedup.plain_tokens_per_s for plan in plans)
    assert long < short
    assert plans[0].memory.target_kv_bytes < plans[1].memory.target_kv_bytes
    paper = [
        alternative.rounds.tokens_per_round
        for plan in plans
        for alternative in plan.runners_up
        if alternative.name == PAPER_NAME
    ]
    assert paper[0] == paper[1]


def test_prompts_are_shifted_to_the_mean_context_of_the_requested_lengths() -> None:
    moved = at_lengths(shipped(), prompt_tokens=100, output_tokens=1000)
    [first, *_] = moved.trace.header.prompts
    assert first.prompt_tokens + first.num_positions / 2 == 100 + 1000 / 2
    assert (moved.prompt_tokens, moved.output_tokens) == (100, 1000)


def test_a_shorter_output_is_planned_from_the_first_positions_of_a_recorded_trace(measured: PlanRequest) -> None:
    assert measured.trace is not None
    whole = load_acceptance(measured.trace, "all")
    first = at_lengths(whole, prompt_tokens=None, output_tokens=16)
    expected = whole.trace.shortened(16)
    assert (first.trace.accept_prob == expected.accept_prob).all()
    assert first.trace.header.max_new_tokens == first.output_tokens == 16
    assert [prompt.prompt_tokens for prompt in first.trace.header.prompts] == [40] * len(expected.header.prompts)
    assert first.evidence.description == f"{whole.evidence.description}, the first 16 tokens of each"
    longer = at_lengths(whole, prompt_tokens=None, output_tokens=1000)
    assert len(longer.trace.accept_prob) == len(whole.trace.accept_prob)
    assert longer.evidence.description.endswith("greedy, of texts of at most 64 tokens; longer ones repeat themselves more")


def test_off_path_positions_are_named_if_there_are_enough_to_be_used(tmp_path: Path) -> None:
    path, trace = tmp_path / "trace.npz", make_trace()
    for number, text in (
        (MIN_RECORDED, "384 positions of 6 prompts and 100 off the path, greedy"),
        (MIN_RECORDED - 1, "384 positions of 6 prompts, greedy"),
    ):
        rows = np.arange(number, dtype=np.int32)
        deepest = np.full(number, trace.confidence.shape[1] - 1, np.int32)
        off_path = OffPath(position=rows, exit=deepest, confidence=trace.confidence[rows])
        TRACE_FILE.write(path, replace(trace, off_path=off_path), provenance())
        assert load_acceptance(path, "all").evidence.description == text


def test_a_published_trace_keeps_all_its_positions_at_any_length() -> None:
    published = shipped()
    assert len(at_lengths(published, prompt_tokens=None, output_tokens=8).trace.accept_prob) == len(published.trace.accept_prob)


def test_the_halves_of_a_trace_share_no_prompt_and_miss_none(measured: PlanRequest) -> None:
    assert measured.trace is not None
    parts = [load_acceptance(measured.trace, split).trace.header.prompts for split in ("calibration", "evaluation")]
    names = [prompt.name for part in parts for prompt in part]
    assert sorted(names) == sorted(prompt.name for prompt in make_trace().header.prompts)


def test_a_config_gives_shapes_and_no_acceptance(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    by_folder, by_file = (resolve_target(str(path)).geometry for path in (tmp_path, tmp_path / "config.json"))
    assert by_folder == by_file
    assert by_folder.layer_params == find_model("vicuna-7b").layer_params
    hint = "If its weights are those of vicuna-7b, give --target vicuna-7b. Or record it: s2d-profile"
    with pytest.raises(UserInputError, match=f"a config gives shapes.* {hint}"):
        make_plan(PlanRequest(target=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 31}), encoding="utf-8")
    with_blank = (tmp_path / "config.json").rename(tmp_path / "my config.json")
    command = rf"s2d-plan --target '{with_blank}' --trace profile/trace\.npz"
    with pytest.raises(UserInputError, match=rf"depends on the weights\. Record it: s2d-profile .*, then {command}"):
        make_plan(PlanRequest(target=str(with_blank)))


_PROMPTS = "--prompts path/to/prompts.jsonl -o profile, then plan: s2d-plan --trace profile/trace.npz"
NO_EVIDENCE_FOR_THE_DRAFT = [
    ({"target": target, "draft": draft}, UserInputError, f"{re.escape(problem)}.* {re.escape(command)} {re.escape(_PROMPTS)}")
    for target, draft, problem, command in (
        (
            "vicuna-7b",
            "ref-draft",
            "draft 'ref-draft' with",
            "s2d-profile acceptance --target path/to/vicuna-7b --draft ref-draft",
        ),
        ("vicuna-7b", "./mine", "draft './mine' with", "--target path/to/vicuna-7b --draft ./mine"),
        ("llama-70b", "self", "draft 'self' with", "--target path/to/llama-2-70b --draft self"),
        ("qwen3-8b", "a/b", "evidence for target 'qwen3-8b'", "--target path/to/qwen3-8b --draft a/b"),
        (None, "a/b", "nothing to plan for", "--target path/to/your-target --draft a/b"),
    )
]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, UserInputError, "nothing to plan for: give --target NAME, or --trace FILE"),
        ({"target": "llama-7b0"}, UnknownName, r"unknown target 'llama-7b0': did you mean 'llama-2-7b'"),
        ({"target": "llama-3.1-8b"}, UserInputError, "no acceptance evidence .* --target path/to/llama-3.1-8b --draft "),
        ({"target": "vicuna-7b", "draft": "s2d-vicuna-13"}, UserInputError, "Did you mean 's2d-vicuna-12'"),
        *NO_EVIDENCE_FOR_THE_DRAFT,
        ({"target": "vicuna-7b", "batch": 4}, UserInputError, "--batch 4: only --batch 1 is predicted"),
        ({"target": "vicuna-7b", "prompt_tokens": 0}, UserInputError, "--prompt-tokens 0: expected at least 1"),
        ({"target": "vicuna-7b", "prompt_tokens": 4000}, OutOfDomain, "output tokens of vicuna-7b = 4256 is outside"),
        ({"target": "no/such/config.json"}, BadFile, "'no/such/config.json': there is no such file"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_with_a_reason(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make_plan(PlanRequest(**fields))


def test_an_unknown_device_gets_near_names() -> None:
    with pytest.raises(UnknownName, match=r"unknown device 'h1000': did you mean 'h100-sxm'"):
        make_plan(PlanRequest(target="vicuna-7b", device=DeviceRequest(device="h1000")))


def test_too_few_devices_are_refused_with_a_number_that_is_enough() -> None:
    with pytest.raises(UserInputError, match=r"take 144 GB in bf16, and 1 x A100-80GB-SXM hold 80.0 GB. Give --num-devices 2"):
        make_plan(PlanRequest(target="llama-70b", device=DeviceRequest(num_devices=1)))


def test_a_trace_of_another_target_or_draft_is_refused_naming_both(measured: PlanRequest) -> None:
    with pytest.raises(Mismatch, match=r"target ref-target-16 \(16 layers .* not for target ref-target-32 \(32 layers"):
        make_plan(replace(measured, target="ref-target-32"))
    with pytest.raises(Mismatch, match="made for draft ref-draft, not for draft s2d"):
        make_plan(replace(measured, draft="s2d"))


def test_a_profile_of_another_model_is_refused_naming_both_and_offers_a_fit(measured: PlanRequest, tmp_path: Path) -> None:
    other = write_profile(tmp_path / "other.json", make_profile(find_model("ref-target-32"), (), "f" * 64, None))
    with pytest.raises(Mismatch, match=r"'other.json' was made for ref-target-32, not for target ref-target-16 .* --fit"):
        make_plan(replace(measured, profiles=(other, measured.profiles[1])))


def test_a_profile_of_other_weights_is_refused_naming_both(measured: PlanRequest, tmp_path: Path) -> None:
    other = write_profile(tmp_path / "other.json", replace(target_profile(), model_sha256="f" * 64))
    with pytest.raises(Mismatch, match=r"made for target weights ffffffffffff, not for the traced aaaaaaaaaaaa"):
        make_plan(replace(measured, profiles=(other, measured.profiles[1])))


def test_profiles_of_two_devices_are_refused_naming_both(measured: PlanRequest, tmp_path: Path) -> None:
    other = write_profile(tmp_path / "other.json", at_device(draft_profile(), dtype="bf16"))
    with pytest.raises(Mismatch, match=r"'other.json' was made for 1 x a CPU, 1 thread, bf16, eager, not for 1 x a CPU"):
        make_plan(replace(measured, profiles=(measured.profiles[0], other)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "bf16"}, "made for --dtype fp32, not for --dtype bf16. Leave --dtype out, or profile there"),
        ({"device": "h100"}, "made for --device a CPU, not for --device h100"),
        ({"num_devices": 2}, "made for --num-devices 1, not for --num-devices 2"),
    ],
)
def test_flags_that_contradict_the_profiles_are_refused(measured: PlanRequest, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        make_plan(replace(measured, device=DeviceRequest(**fields)))


def test_a_missing_profile_is_named(measured: PlanRequest) -> None:
    with pytest.raises(UserInputError, match="expected one latency profile of the draft ref-draft, none was given"):
        make_plan(replace(measured, profiles=measured.profiles[:1]))


def test_a_self_draft_needs_only_its_targets_profile_and_no_memory(tmp_path: Path) -> None:
    trace, exits = make_trace(), (2, 4, 6, 8)
    self_draft = DraftGeometry(kind="self", model=TARGET, exit_layers=exits)
    trace = replace(trace, header=trace.header.with_draft(self_draft, TARGET_SHA256))
    TRACE_FILE.write(tmp_path / "trace.npz", trace, provenance())
    profile = make_profile(TARGET, exits, TARGET_SHA256, None, is_self_draft=True)
    path = write_profile(tmp_path / "target.latency.json", profile)
    plan = make_plan(PlanRequest(trace=tmp_path / "trace.npz", profiles=(path,)))
    assert [part.level for part in plan.evidence] == ["measured", "measured", "traced"]
    assert (plan.memory.draft_weight_bytes, plan.memory.draft_kv_bytes) == (0, 0)


def test_the_draft_of_the_trace_is_the_draft_of_the_plan(measured: PlanRequest) -> None:
    assert make_plan(replace(measured, draft=DRAFT.model.name, target=TARGET.name)).draft == DRAFT


def test_prompts_of_one_document_are_one_sample() -> None:
    trace = make_trace()
    first, second, *others = trace.header.prompts
    renamed = (replace(first, name="a.py:10"), replace(second, name="a.py:99"), *others)
    rounds = rounds_by_document(replace(trace, header=replace(trace.header, prompts=renamed)), [None])[None]
    assert [document.num_prompts for document in rounds] == [2] + [1] * len(others)
    assert rounds[0].num_tokens == first.num_positions + second.num_positions


def test_the_public_function_is_the_request(measured: PlanRequest) -> None:
    assert public_plan("vicuna-7b", device="h100", prompt_tokens=100) == make_plan(
        PlanRequest(target="vicuna-7b", device=DeviceRequest(device="h100"), prompt_tokens=100)
    )
    assert measured.trace is not None
    paths = [str(path) for path in measured.profiles]
    assert public_plan(trace=str(measured.trace), profiles=paths) == make_plan(measured)


def test_a_trace_in_memory_gives_the_plan_of_its_file(measured: PlanRequest) -> None:
    from_memory, from_file = public_plan(trace=make_trace(), profiles=measured.profiles), make_plan(measured)
    assert from_memory.evidence[-1].sha256 is None
    assert replace(from_memory.evidence[-1], sha256=from_file.evidence[-1].sha256) == from_file.evidence[-1]
    assert from_memory.chosen == from_file.chosen
    anonymous = make_trace()
    unknown = replace(anonymous, header=replace(anonymous.header, target_sha256=None, draft_sha256=None))
    assert public_plan(trace=unknown, device="a100").evidence[-1].level == "traced"


def test_a_trace_from_arrays_is_planned_with_the_models_that_the_request_names() -> None:
    known, rows = make_trace(), slice(0, 64)
    confidence, agrees = known.confidence[rows, :3], known.accept_prob[rows, :3]
    arrays = Trace.from_arrays(confidence, agrees, exits=(6, 9, 12), prompt_tokens=40)
    made = public_plan("vicuna-7b", draft="s2d", trace=arrays, device="h100")
    assert (made.target, made.draft) == (find_model("vicuna-7b"), find_draft("s2d"))
    assert (made.evidence[-1].level, made.workload.prompt_tokens) == ("traced", 40)
    with pytest.raises(UserInputError, match="the trace has no geometry of its draft"):
        public_plan("vicuna-7b", trace=arrays, device="h100")
    own = Trace.from_arrays(confidence, agrees, exits=(6, 9, 12), draft_kind="self")
    assert public_plan("vicuna-7b", draft="self", trace=own, device="h100").draft.model == find_model("vicuna-7b")
