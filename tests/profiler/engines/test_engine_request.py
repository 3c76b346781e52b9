"""Requests to profile an engine, and the configurations and processes that follow from them."""

from pathlib import Path

import pytest

from perfmodel.core.errors import BadPolicy, UnknownName, UserInputError
from profiler.engines.engine_request import (
    PLAIN,
    Arm,
    EngineProfileRequest,
    arms_of,
    chosen_exits,
    next_command,
    processes_of,
    read_engine_prompts,
)
from s2d.prompt_files.read_as import ReadAs

OF_EXIT_4 = Arm(exit_layer=4, draft_tokens=3, is_draft_alone=False)


def request_with(**changes: object) -> EngineProfileRequest:
    return EngineProfileRequest(**{"engine": "onnxruntime", "target": "ref-target-16", "draft": "ref-draft"} | changes)


def test_a_profile_runs_plain_decoding_each_exit_alone_and_each_exit_with_each_length() -> None:
    labels = [arm.label for arm in arms_of((2, 4), (3, 8))]
    drafting = ["exit 2, 3 tokens", "exit 2, 8 tokens", "exit 4, 3 tokens", "exit 4, 8 tokens"]
    assert labels == ["plain", "exit 2 alone", "exit 4 alone", *drafting]


def test_lengths_share_a_process_only_where_the_engine_takes_them_with_every_call() -> None:
    arms = arms_of((2, 4), (3, 8))
    assert len(processes_of(arms, "onnxruntime", None)) == 5
    assert len(processes_of(arms, "vllm", None)) == 7
    assert processes_of(arms, "llama.cpp", None)[0] == arms[:1]


@pytest.mark.parametrize("lengths", [(), (0, 4), (4, 17), (4, 4)])
def test_lengths_that_the_engine_does_not_take_are_refused(lengths: tuple[int, ...]) -> None:
    with pytest.raises(UserInputError, match="expected different draft lengths of 1 to 16 tokens"):
        request_with(lengths=lengths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "openvino", "threads": None}, "--device cuda: OpenVINO GenAI runs on cpu"),
        ({"threads": None}, "--device cuda: models of ONNX Runtime GenAI are converted for CPUs here"),
        ({"engine": "tensorrt-llm"}, "--device cpu: TensorRT-LLM runs on cuda"),
        (
            {"engine": "vllm", "weights": "fp8"},
            "--weights fp8: vLLM would load the models as they are, expected one of f32",
        ),
        ({"exits": ()}, r"exit layers \(\)"),
        ({"exits": (4, 4)}, r"exit layers \(4, 4\)"),
        ({"configurations": (PLAIN, OF_EXIT_4)}, "expected all of them in `exits`"),
    ],
)
def test_what_the_engine_cannot_run_is_refused_at_once(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        request_with(**changes)


@pytest.mark.parametrize(
    ("field", "value"), [("num_prompts", 0), ("max_new_tokens", 1), ("repeats", 0), ("threads", 0), ("warm_up_tokens", -1)]
)
def test_counts_out_of_range_are_refused(field: str, value: int) -> None:
    with pytest.raises(UserInputError, match=f"--{field.replace('_', '-')} {value}: expected at least"):
        request_with(**{field: value})


def test_an_alias_of_the_engine_and_of_the_weights_is_its_own_word() -> None:
    request = request_with(engine="ort", weights="float32")
    assert (request.row.name, request.stored_weights) == ("onnxruntime", "f32")
    assert request.file == Path("onnxruntime.engine.json")
    assert request.partial_file == Path("onnxruntime.engine.partial.json")
    with pytest.raises(UnknownName, match="q9"):
        request_with(weights="q9")


def test_the_first_and_the_last_exit_are_run_unless_others_are_requested() -> None:
    assert chosen_exits(None, (1, 2, 4, 6)) == (1, 6)
    assert chosen_exits(None, (6,)) == (6,)
    assert chosen_exits((2,), (1, 2, 4)) == (2,)
    with pytest.raises(BadPolicy, match=r"exit 3.*exits of the draft: 1, 2, 4"):
        chosen_exits((2, 3), (1, 2, 4))


def test_prompts_come_from_the_calibration_half() -> None:
    calibration = {prompt.name for prompt in read_engine_prompts(request_with(num_prompts=60))}
    evaluation = {prompt.name for prompt in read_engine_prompts(request_with(num_prompts=60, split="evaluation"))}
    assert len(calibration) > 20
    assert not calibration & evaluation


def test_the_next_command_records_the_trace_and_plans_with_both_files() -> None:
    command = next_command(request_with(output=Path("my run.json")), (1, 2, 4, 6))
    assert command.startswith("s2d-profile acceptance --target ref-target-16 --draft ref-draft -o profile && s2d-plan ")
    assert "--profile 'my run.json' --trace profile/trace.npz" in command
    prompts = Path("my prompts.csv")
    command = next_command(
        request_with(prompts=prompts, read_as=ReadAs(use="prompt", column="text"), exits=(2, 4)), (1, 2, 4, 6)
    )
    assert "--draft ref-draft --prompts 'my prompts.csv' --prompt-column text --exits 1,2,4,6 -o profile" in command
