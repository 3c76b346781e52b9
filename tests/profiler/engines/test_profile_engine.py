"""A profile of an engine: calls are interleaved, saved after every prompt, resumed, and compared with plain decoding."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

import s2d
from perfmodel.core.errors import Interrupted, Mismatch, UserInputError
from perfmodel.core.lock import locked_folder
from perfmodel.core.units import GIB
from perfmodel.engines.engine_profile import ENGINE_PROFILE_FILE, EngineProfile
from profiler.commands.profile_cli import main_profile
from profiler.engines import engine_models, measure_engine, profile_engine
from profiler.engines.engine_request import PLAIN, Arm, EngineProfileRequest, read_engine_prompts
from profiler.engines.profile_engine import run_profile_engine, run_profiles_together
from s2d.engines.session_request import EngineFacts
from s2d.loading.model_folder import find_model
from s2d.loading.sidecar import Sidecar, write_sidecar
from s2d.prompts.conversation import Prompt
from tests.profiler.engines.fake_engine import FakeSession, no_conversion

PAIR = ("--target", "ref-target-16", "--draft", "ref-draft")
SMALL = ("--exits", "2,4", "--lengths", "2,5", "--num-prompts", "2", "--max-new-tokens", "13")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeSession]:
    class Session(FakeSession):
        opened: ClassVar[list[str]] = []
        calls: ClassVar[list[tuple[str, int]]] = []

    monkeypatch.setattr(measure_engine, "EngineSession", Session)
    monkeypatch.setattr(engine_models, "make_checkpoint", no_conversion)
    monkeypatch.setattr(profile_engine, "check_installed", lambda engine, interface: None)
    monkeypatch.setattr(profile_engine, "free_device_bytes", lambda device: 64 * GIB)
    monkeypatch.chdir(tmp_path)
    return Session


def small_request(**changes: object) -> EngineProfileRequest:
    fields = {"engine": "onnxruntime", "target": "ref-target-16", "draft": "ref-draft", "exits": (2, 4), "lengths": (2, 5)}
    fields |= {"num_prompts": 2, "max_new_tokens": 13, "warm_up_tokens": 0, "output": Path("ort.engine.json")}
    return EngineProfileRequest(**fields | changes)


def run(request: EngineProfileRequest) -> EngineProfile:
    return run_profile_engine(request, read_engine_prompts(request))


def test_every_configuration_decodes_every_prompt_in_every_repeat(fake: type[FakeSession]) -> None:
    profile = run(small_request(repeats=3))
    assert len(profile.runs) == 7
    assert {tuple(sorted(Counter(call.prompt for call in run.calls).values())) for run in profile.runs} == {(3, 3)}
    assert profile.plain.decode_tokens == 6 * 12
    assert (profile.setting.version, profile.setting.options) == ("1.0", ("cache=f16",))


def test_every_second_repeat_runs_backwards(fake: type[FakeSession]) -> None:
    run(small_request(repeats=2, num_prompts=1))
    first, second = fake.calls[:7], fake.calls[7:]
    assert second == first[::-1]
    assert len(set(first)) == 7


def test_lengths_of_one_exit_share_a_process(fake: type[FakeSession]) -> None:
    run(small_request(repeats=1))
    assert len(fake.opened) == 5
    fake.opened.clear()
    run(small_request(repeats=1, engine="vllm"))
    assert len(fake.opened) == 7


def test_requested_configurations_run_alone_with_their_floors_and_the_engines_own_estimate(fake: type[FakeSession]) -> None:
    floored = Arm(exit_layer=4, draft_tokens=5, is_draft_alone=False, floor=0.25)
    profile = run(small_request(repeats=1, configurations=(PLAIN, floored)))
    assert [Arm.of(part) for part in profile.runs] == [PLAIN, floored]
    assert {call.estimated_tokens_per_round for call in profile.runs[1].calls} == {2.5}
    assert len(fake.opened) == 2


def test_configurations_begin_with_plain_decoding() -> None:
    alone = Arm(exit_layer=4, draft_tokens=0, is_draft_alone=True)
    with pytest.raises(UserInputError, match="expected it as the first of the configurations"):
        small_request(configurations=(alone, PLAIN))


def test_processes_of_a_group_run_on_from_one_repeat_to_the_next(fake: type[FakeSession]) -> None:
    run(small_request(repeats=3))
    assert len(fake.opened) == 5


@pytest.mark.parametrize(
    ("engine", "restarts", "starts"),
    [("llama.cpp", None, 3), ("vllm", None, 1), ("onnxruntime", None, 1), ("onnxruntime", 1, 2), ("onnxruntime", 2, 3)],
)
def test_processes_start_anew_between_repeats(fake: type[FakeSession], engine: str, restarts: int | None, starts: int) -> None:
    """By default before every repeat where a process has one length and starts fast."""
    run(small_request(engine=engine, repeats=3, restarts=restarts, lengths=(2,)))
    assert set(Counter(fake.opened).values()) == {starts}


def test_restarts_are_fewer_than_repeats() -> None:
    with pytest.raises(UserInputError, match="--restarts 2: expected 0 to 1"):
        small_request(repeats=2, restarts=2)


def test_plain_decoding_runs_as_often_as_requested_in_every_visit(fake: type[FakeSession]) -> None:
    profile = run(small_request(repeats=2, plain_calls=3))
    assert {len(other.calls) for other in profile.runs} == {4, 12}
    assert len(profile.plain.calls) == 12
    assert sorted(Counter(call.visit for call in profile.plain.calls).items()) == [(visit, 3) for visit in range(4)]


def two_requests(**changes: object) -> list[tuple[EngineProfileRequest, Sequence[Prompt]]]:
    """Four calibration prompts, and two evaluation prompts with other configurations."""
    drafting = Arm(exit_layer=4, draft_tokens=3, is_draft_alone=False)
    calibration = small_request(output=Path("a.json"), num_prompts=4, exits=(2, 4), **changes)
    evaluation = small_request(
        output=Path("b.json"), split="evaluation", exits=(2, 4), configurations=(PLAIN, drafting), **changes
    )
    return [(request, read_engine_prompts(request)) for request in (calibration, evaluation)]


def test_profiles_measured_together_take_turns_and_share_processes(fake: type[FakeSession]) -> None:
    first, second = run_profiles_together(two_requests())
    assert (len(first.runs), len(second.runs)) == (7, 2)
    assert len(fake.opened) == 5  # exit 4 has three lengths in one process
    visits = [sorted({call.visit for call in profile.plain.calls}) for profile in (first, second)]
    assert visits == [[0, 2, 3, 5, 6, 8, 9, 11], [1, 4, 7, 10]]
    assert not {call.prompt for call in first.plain.calls} & {call.prompt for call in second.plain.calls}
    assert [ENGINE_PROFILE_FILE.read(name).record for name in ("a.json", "b.json")] == [first, second]


def test_profiles_measured_together_continue_after_an_interruption(fake: type[FakeSession]) -> None:
    requests = two_requests()
    whole = run_profiles_together([(replace(part, output=Path(f"whole-{part.file}")), prompts) for part, prompts in requests])
    fake.calls.clear()
    fake.fails_after = 20
    with pytest.raises(Interrupted, match=r"partial result is in '\.'"):
        run_profiles_together(requests)
    kept = [ENGINE_PROFILE_FILE.read(f"{name}.partial.json").record for name in ("a", "b")]
    assert [sum(len(run.calls) for run in profile.runs) for profile in kept] == [14, 2]
    fake.fails_after = None
    assert run_profiles_together(requests) == whole


def test_sessions_have_room_for_the_longest_prompt_of_all_profiles_measured_together(fake: type[FakeSession]) -> None:
    (first, _), (second, _) = two_requests(repeats=1)
    for numbers in ((8, 80), (80, 8)):
        texts = [Prompt(name=str(number), category="words", text="word " * number) for number in numbers]
        run_profiles_together([(first, texts[:1]), (second, texts[1:])])


def test_in_groups_no_profile_decodes_plainly_beside_nothing_of_its_own(
    fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_engine, "free_device_bytes", lambda device: 2 * GIB)
    _, second = run_profiles_together(two_requests(repeats=1, engine="vllm"))
    assert [len(run.calls) for run in second.runs] == [2, 2]


def test_requests_for_other_models_are_not_measured_together(fake: type[FakeSession]) -> None:
    (first, prompts), (second, others) = two_requests()
    with pytest.raises(ValueError, match="differ in threads"):
        run_profiles_together([(first, prompts), (replace(second, threads=2), others)])


def test_processes_that_do_not_fit_together_run_in_groups_each_with_plain_decoding(
    fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_engine, "free_device_bytes", lambda device: 2 * GIB)  # 3 processes of 0.5 GiB
    profile = run(small_request(repeats=2))
    assert "run in 2 groups" in capsys.readouterr().err
    assert len(profile.plain.calls) == 2 * 2 * 2
    assert {len(other.calls) for other in profile.runs if not other.is_plain} == {4}


def test_a_warm_up_comes_just_before_each_call_from_the_same_process(fake: type[FakeSession]) -> None:
    run(small_request(repeats=1, num_prompts=1, warm_up_tokens=4))
    assert len(fake.calls) == 14
    assert fake.calls[::2] == fake.calls[1::2]


def test_an_interrupted_profile_continues_and_gives_the_same_file(fake: type[FakeSession]) -> None:
    whole = run(small_request(output=Path("whole.engine.json")))
    fake.calls.clear()
    fake.fails_after = 10
    with pytest.raises(Interrupted, match=r"ort\.engine\.partial\.json"):
        run(small_request())
    kept = ENGINE_PROFILE_FILE.read("ort.engine.partial.json").record
    assert sum(len(run.calls) for run in kept.runs) == 7  # the calls of whole prompts
    assert not Path("ort.engine.json").exists()
    fake.fails_after = None
    fake.calls.clear()
    assert run(small_request()) == whole
    assert len(fake.calls) == 28 - 7
    assert not Path("ort.engine.partial.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 20}, "max new tokens 13, not for max new tokens 20"),
        ({"threads": 2}, "1 thread, cache=f16, not for onnxruntime 1.0, f32, .* 2 threads"),
        ({"target": "ref-target-32"}, "target ref-target-16"),
        ({"exits": (1, 4)}, "exit 2 alone"),
        ({"lengths": (2, 6)}, "exit 2, 5 tokens"),
    ],
)
def test_an_unfinished_profile_of_another_request_is_refused(
    fake: type[FakeSession], changes: dict[str, object], message: str
) -> None:
    fake.fails_after = 10
    with pytest.raises(Interrupted):
        run(small_request())
    fake.fails_after = None
    with pytest.raises(Mismatch, match=f"unfinished profile.*made for.*{message}"):
        run(small_request(**changes))


def test_an_unfinished_profile_of_another_version_of_the_engine_is_refused(
    fake: type[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.fails_after = 10
    with pytest.raises(Interrupted):
        run(small_request())
    fake.fails_after = None
    monkeypatch.setattr(fake, "facts", EngineFacts(version="2.0", options=("cache=f16",)))
    with pytest.raises(Mismatch, match=r"made for version 1\.0, cache=f16, not for version 2\.0, cache=f16\."):
        run(small_request())
    with pytest.raises(Mismatch, match=r"1 thread, cache=f16, not for .* 1 thread, interface=api, cache=f16\."):
        run(small_request(interface="api"))


def test_two_profiles_at_a_time_do_not_share_a_folder_of_models(fake: type[FakeSession], tmp_path: Path) -> None:
    (tmp_path / "engine-models").mkdir()
    with locked_folder(tmp_path / "engine-models"), pytest.raises(UserInputError, match="engine-models' is in use by another"):
        run(small_request())
    run(small_request(work_folder=tmp_path / "other"))


def test_a_context_is_as_long_as_the_longest_text_and_one_block(fake: type[FakeSession]) -> None:
    request = small_request()
    prompts = read_engine_prompts(request)
    request.models_folder.mkdir()
    models = engine_models.engine_models(request, prompts)
    longest = max(len(prompt.token_ids) for prompt in models.prompts)
    assert models.context_tokens == longest + 13 + 5 + 1
    assert models.cache_gib == 1


def test_a_text_that_differs_from_plain_decoding_is_a_warning_by_name(
    fake: type[FakeSession], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.wrong_exits = ("onnxruntime-exit-4-5-tokens", "onnxruntime-exit-4-alone")
    run(small_request())
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2  # both lengths of exit 4 share the process; an exit alone writes its own text
    assert "exit 4, 2 tokens: the text of 2 of 2 prompts differs from the engine's own plain decoding" in warnings[0]


def test_converted_files_are_reused_by_later_profiles(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    run(small_request())
    assert "converting target-16 for ONNX Runtime GenAI, f32" in capsys.readouterr().err
    run(small_request(lengths=(3,), output=Path("other.json")))
    assert "converting" not in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_is_refused_before_anything_starts(fake: type[FakeSession]) -> None:
    with pytest.raises(UserInputError, match=r"prompt '1' has .* expected 1 to"):
        run(small_request(prompts=["long " * 2000]))
    with pytest.raises(UserInputError, match="--max-new-tokens 512: expected less than the models' context of 512 tokens"):
        run(small_request(max_new_tokens=512))
    assert not fake.opened


def test_the_command_prints_a_table_and_the_next_command(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_profile(["engine", "--engine", "ort", *PAIR, *SMALL, "-o", "ort.engine.json"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime 1.0, f32, 1 x" in out
    lines = {line.partition("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["exit 2, 5 tokens"][-5:] == ["6.00x", "6.00x", "to", "6.00x", "6.00"]
    assert "s2d-plan --profile ort.engine.json --trace profile/trace.npz" in out.replace("\\\n    ", "")
    assert len(out.splitlines()) <= 20


def test_json_prints_the_file(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_profile(["engine", "--engine", "ort", *PAIR, *SMALL, "-o", "ort.engine.json", "--json"]) == 0
    assert capsys.readouterr().out == Path("ort.engine.json").read_text()


def test_more_about_the_counters_is_explained(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_profile(["engine", "--engine", "ort", *PAIR, *SMALL, "-o", "ort.engine.json", "--explain"]) == 0
    assert "as the engine reports, over all calls:" in capsys.readouterr().out


def test_wrong_input_is_one_message(fake: type[FakeSession], capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--engine", "vlm", *PAIR], "unknown engine 'vlm'"),
        (["--engine", "ort", *PAIR, "--lengths", "40"], "of 1 to 16 tokens, as ONNX Runtime GenAI takes"),
        (["--engine", "ort", *PAIR, "--exits", "9"], "exit 9"),
        (["--engine", "ort", *PAIR, "--weights", "q9"], "q9"),
    ):
        assert main_profile(["engine", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_draft_with_a_reduced_head_is_refused(fake: type[FakeSession], tmp_path: Path) -> None:
    shutil.copytree(find_model("ref-draft"), tmp_path / "reduced")
    write_sidecar(
        tmp_path / "reduced", Sidecar(exit_layers=(6,), norm="shared-final-norm", calibration=None, head_token_ids=(1, 2))
    )
    with pytest.raises(UserInputError, match="has a reduced head"):
        run(small_request(draft=str(tmp_path / "reduced")))


@pytest.mark.e2e
def test_the_bundled_runtime_is_profiled_as_any_other_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = s2d.profile_engine(
        "ref-target-16", draft="ref-draft", engine="s2d", exits=(4,), lengths=(2, 5), num_prompts=2, max_new_tokens=24
    )
    assert profile == ENGINE_PROFILE_FILE.read("s2d.engine.json").record
    drafting = [run for run in profile.runs if run.draft_tokens]
    assert {call.output_sha256 for run in drafting for call in run.calls} == {
        call.output_sha256 for call in profile.plain.calls
    }
    assert all(call.num_rounds and call.draft_s and call.verify_s for run in drafting for call in run.calls)
    body = json.loads(Path("s2d.engine.json").read_text())["body"]
    assert body["setting"]["weights"] == "fp32"
    assert replace(profile.setting, engine="s2d") == profile.setting
