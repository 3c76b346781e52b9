"""The Python API: load, generate, run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from perfmodel.core.errors import BadPolicy, Mismatch, UserInputError
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.results.plan import PLAN_FILE
from s2d.prompts.conversation import Message, Prompt
from s2d.prompts.text import continuation_text
from s2d.running.run import run
from s2d.running.run_inputs import RunRequest
from s2d.running.speculative_model import SpeculativeModel, load
from tests.s2d.commands.test_run_cli import frontier_point
from tests.s2d.conftest import POLICY
from tests.stubs import generate

pytestmark = pytest.mark.e2e

NOISE = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=0.9, seed=4)
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


@pytest.fixture
def model(folders: Path) -> SpeculativeModel:
    return load(str(folders / "target"), draft=str(folders / "draft"), device="cpu")


def plain_text(model: SpeculativeModel, prompt: str, sampling: Sampling = GREEDY, max_new_tokens: int = 12) -> str:
    pair = model.pair
    ids = pair.tokenizer(prompt)["input_ids"]
    settings = {"policy": None, "sampling": sampling, "max_new_tokens": max_new_tokens, "eos_token_id": pair.eos_token_id}
    return continuation_text(pair.tokenizer, ids, generate(pair.target, None, ids, **settings).tokens)


def test_a_completion_is_the_targets_own_text_with_its_figures(model: SpeculativeModel) -> None:
    expected = plain_text(model, "the cat")
    plain = model.generate("the cat", max_new_tokens=12)
    drafted = model.generate("the cat", policy=POLICY, max_new_tokens=12)
    assert str(plain) == plain.text == str(drafted) == expected
    assert (plain.num_rounds, plain.tokens_per_round, plain.acceptance) == (len(plain.tokens), 1.0, None)
    assert drafted.num_rounds == drafted.rounds.num_rounds < len(drafted.tokens)
    assert drafted.acceptance == drafted.rounds.accepted_frac
    assert drafted.tokens_per_s == pytest.approx(len(drafted.tokens) / drafted.generation.decode_s)


def test_the_policy_and_the_sampling_of_a_plan_apply(model: SpeculativeModel, plan_file: Callable[..., Path]) -> None:
    path = plan_file(sampling=NOISE)
    completions = [
        model.generate("the cat", plan=plan, max_new_tokens=12) for plan in (path, str(path), PLAN_FILE.read(path).record)
    ]
    assert {completion.text for completion in completions} == {plain_text(model, "the cat", NOISE)}
    assert {completion.generation.policies[0] for completion in completions} == {POLICY}
    greedy = model.generate("the cat", plan=path, sampling=GREEDY, max_new_tokens=12)
    assert greedy.text == plain_text(model, "the cat")


def test_generation_may_adapt_along_the_frontier_of_a_plan(model: SpeculativeModel, plan_file: Callable[..., Path]) -> None:
    path = plan_file(frontier=tuple(map(frontier_point, (None, POLICY))))
    adapted = model.generate("the cat", plan=path, adapt=True, max_new_tokens=12)
    assert adapted.text == plain_text(model, "the cat")
    assert set(adapted.generation.policies) <= {None, POLICY}
    with pytest.raises(UserInputError, match="has no frontier"):
        model.generate("the cat", plan=plan_file(), adapt=True)


def test_streamed_pieces_add_up_to_the_text(model: SpeculativeModel) -> None:
    pieces: list[str] = []
    completion = model.generate("the cat", policy=POLICY, max_new_tokens=24, stream=pieces.append)
    assert "".join(pieces) == completion.text
    assert len(pieces) > 1


def test_a_stop_string_ends_a_text(model: SpeculativeModel) -> None:
    whole = model.generate("the cat", max_new_tokens=24).text
    stopped = model.generate("the cat", max_new_tokens=24, stop=[whole[3:5]]).text
    assert whole.startswith(stopped)
    assert whole[3:5] in stopped
    assert len(stopped) < len(whole)


def test_a_chat_answers_the_prompt_in_the_template(model: SpeculativeModel) -> None:
    model.pair.tokenizer.chat_template = TEMPLATE
    answer = model.generate("the cat", chat=True, max_new_tokens=12)
    assert answer.text == plain_text(model, "<user>the cat<assistant>")
    before = (Message(role="system", content="then"),)
    conversation = Prompt(name="p", category="c", text="the cat", earlier_messages=before)
    assert model.generate(conversation, chat=True, max_new_tokens=12).text == plain_text(
        model, "<system>then<user>the cat<assistant>"
    )


def test_caches_are_reused_until_a_text_outgrows_them(model: SpeculativeModel) -> None:
    sessions = []
    for prompt in ("the cat", "the dog", "the cat " * 12, "the dog"):
        assert model.generate(prompt, policy=POLICY, max_new_tokens=12).text == plain_text(model, prompt)
        sessions.append(model._session)
    assert sessions[0] is sessions[1] is not sessions[2] is sessions[3]


def test_contradicting_arguments_are_refused(model: SpeculativeModel, plan_file: Callable[..., Path]) -> None:
    with pytest.raises(UserInputError, match="plan and policy are both given: expected one of them"):
        model.generate("the cat", plan=plan_file(), policy=POLICY)
    with pytest.raises(UserInputError, match="adapt is given without a plan"):
        model.generate("the cat", adapt=True)
    with pytest.raises(BadPolicy, match="exit 3 is not an exit of the draft"):
        model.generate("the cat", policy=Policy(exits=(3,), tokens=2))
    with pytest.raises(UserInputError, match="draft given: expected none, as these models are loaded"):
        model.run(plan_file(), draft="other")
    with pytest.raises(UserInputError, match="the list of prompts is empty"):
        model.run(plan_file(), prompts=[])


def test_a_target_without_a_draft_drafts_for_itself(folders: Path) -> None:
    model = load(str(folders / "target"), exits=(2, 4), device="cpu")
    assert repr(model) == "target with its own layers, exits 2/4 (--exits)"
    assert model.generate("the cat", policy=POLICY, max_new_tokens=12).text == plain_text(model, "the cat")


def test_a_plan_runs_over_given_prompts(model: SpeculativeModel, plan_file: Callable[..., Path]) -> None:
    path = plan_file()
    report = model.run(path, prompts=["the cat", Prompt(name="mine", category="c", text="dog")], max_new_tokens=8, check=True)
    assert report is not None
    assert [prompt.name for prompt in report.plan_arm.runs] == ["1", "mine"]
    assert report.check is not None
    assert report.check.num_equal == 2
    assert report.measured is not None
    assert report.plan_sha256 == PLAN_FILE.read(path).sha256
    assert report.predicted == PLAN_FILE.read(path).record.chosen
    assert "tokens per round" in str(report)


def test_a_plan_in_memory_runs_as_its_file_does(model: SpeculativeModel, plan_file: Callable[..., Path]) -> None:
    path = plan_file()
    plan = PLAN_FILE.read(path).record
    report = model.run(plan, prompts=["the cat"], max_new_tokens=8)
    assert report is not None
    assert (report.plan_sha256, report.plain_arm) == (PLAN_FILE.read(path).sha256, None)
    with pytest.raises(Mismatch, match="the plan was made for target weights 000000000000"):
        model.run(replace(plan, target_sha256="0" * 64), prompts=["the cat"])


def test_a_repeated_run_continues_its_outputs_file(
    model: SpeculativeModel, folders: Path, plan_file: Callable[..., Path], capsys
) -> None:
    plan, outputs = plan_file(), folders / "texts.jsonl"
    first = model.run(plan, prompts=["the cat"], max_new_tokens=8, outputs=outputs)
    assert first is not None
    assert [json.loads(line)["name"] for line in outputs.read_text("utf-8").splitlines()] == ["1"]
    assert model.run(plan, prompts=["the cat"], max_new_tokens=8, outputs=outputs) is None
    assert "already contains an output for every selected prompt; nothing to do\n" in capsys.readouterr().err


def test_a_request_loads_its_models_and_runs(folders: Path, plan_file: Callable[..., Path]) -> None:
    models = {"target": str(folders / "target"), "draft": str(folders / "draft")}
    report = run(RunRequest(plan=plan_file(), **models, prompts=["the cat"], max_new_tokens=8, check=True))
    assert report is not None
    assert report.check is not None
    assert report.check.num_equal == 1
