"""A request round-trips through its command line, and reads the prompts it names."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from perfmodel.core.errors import UserInputError
from perfmodel.policies.sampling import Sampling
from profiler.commands.profile_cli import main_profile, profile_parser, profile_request
from profiler.profiling.profile_request import LawRequest, ProfileRequest, command_line, read_profile_prompts
from s2d.prompt_files.read_as import ReadAs

PLAIN = ProfileRequest(target="ref-target-16", draft="self")
FULL = ProfileRequest(
    target="ref-target-16",
    draft="acceptance",
    what="latency",
    output=Path("out put"),
    exits=(1, 2),
    confidence="margin",
    share_draft=True,
    sampling=Sampling(
        rule="ratio", temperature=0.8, top_k=9, top_p=0.9, seed=3, min_p=0.05, repetition_penalty=1.2, presence_penalty=-0.5
    ),
    seed=3,
    prompts=Path("prompts.csv"),
    read_as=ReadAs(use="prompt", column="question"),
    chat=True,
    special_tokens="text",
    split="all",
    num_prompts=5,
    max_new_tokens=64,
    num_mistakes=2,
    device="cuda:1",
    dtype="bf16",
    mode="eager",
    kernels="standard",
    threads=2,
    draft_cap=8,
    budget_s=12.5,
)


@pytest.mark.parametrize("request_", [PLAIN, FULL, replace(FULL, what="acceptance"), replace(PLAIN, seed=4)])
def test_a_command_line_parses_to_its_request(request_: ProfileRequest) -> None:
    program, *words = command_line(request_)
    assert program == "s2d-profile"
    assert profile_request(profile_parser().parse_args(shlex.split(shlex.join(words)))) == request_


def test_options_with_their_default_values_are_left_out() -> None:
    assert command_line(PLAIN) == ("s2d-profile", "--target", "ref-target-16", "--draft", "self", "-o", "profile")


def test_prompts_in_memory_are_numbered_and_become_a_placeholder_on_the_command_line() -> None:
    request = replace(PLAIN, prompts=["def f(", "class A"])
    assert [(prompt.name, prompt.text) for prompt in read_profile_prompts(request)] == [("1", "def f("), ("2", "class A")]
    assert "path/to/prompts.jsonl" in command_line(request)
    with pytest.raises(UserInputError, match="the list of prompts is empty"):
        read_profile_prompts(replace(PLAIN, prompts=[]))


def test_a_law_request_refuses_impossible_numbers() -> None:
    with pytest.raises(UserInputError, match="--budget -1: expected 0 seconds or more"):
        LawRequest(budget_s=-1)
    with pytest.raises(UserInputError, match="--threads 0: expected at least 1"):
        LawRequest(threads=0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--draft", "ref-draft"], "no model given with --target: expected a name or a folder. Give --target NAME."),
        (["--target", "ref-target-16"], "no model given with --draft: expected a name or a folder. Give --draft NAME."),
        (["-v", "latency", "--target", "a", "--draft", "b"], "options before the verb 'latency': expected them after it"),
        (["--seed", "1", "law"], "options before the verb 'law': expected them after it"),
        (["latency", "--draft", "ref-draft"], "the following arguments are required: --target"),
    ],
)
def test_incomplete_commands_are_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_profile(argv) == 2
    assert message in capsys.readouterr().err
