"""What a trace holds, on tiny real models; that the runtime does what it says is tests/s2d/test_replay_equals_runtime.py."""

from dataclasses import replace
from itertools import count

import pytest

from perfmodel.errors import Mismatch, OutOfSpace
from perfmodel.sampling import GREEDY, Sampling
from perfmodel.trace import AcceptanceTrace
from profiler.job import Job
from profiler.record_acceptance import check_resumable, empty_trace, record_acceptance
from s2d.pair import encode_prompts, load_pair
from s2d.prompts import read_prompts
from tests.profiler.conftest import EXITS, Folders

SAMPLED = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=None, seed=3)
RATIO = Sampling(rule="ratio", temperature=0.9, top_k=8, top_p=0.95, seed=3)


def job_of(folders: Folders, sampling: Sampling) -> Job:
    pair = load_pair(str(folders.target), str(folders.draft), "fp32", "cpu")
    prompts = encode_prompts(pair, read_prompts(folders.prompts)[:3], max_new_tokens=40)
    return Job(pair=pair, prompts=prompts, sampling=sampling, confidence="max-prob", max_new_tokens=40, draft_cap=4, seed=0)


def trace_of(job: Job) -> AcceptanceTrace:
    asker = job.asker(job.session())
    return record_acceptance(
        lambda number: asker.trace(job.prompts[number]), len(job.prompts), empty_trace(asker.header), save=lambda trace: None
    )


def test_a_trace_holds_the_text_of_the_plain_target(folders: Folders) -> None:
    job = job_of(folders, SAMPLED)
    trace, session = trace_of(job), job.session()
    written = [session.generate(prompt.token_ids, job.settings(None, 40)).tokens for prompt in job.prompts]
    assert [tuple(trace.subset([i]).target_token) for i in range(3)] == written
    assert trace.header.draft.exit_layers == EXITS
    assert [prompt.prompt_tokens for prompt in trace.header.prompts] == [len(prompt.token_ids) for prompt in job.prompts]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, RATIO], ids=lambda one: one.rule)
def test_a_shortened_trace_is_the_one_of_shorter_texts(folders: Folders, sampling: Sampling) -> None:
    job = job_of(folders, sampling)
    short, expected = trace_of(job).shortened(9), trace_of(replace(job, max_new_tokens=9))
    assert short.header == expected.header
    assert (short.target_token == expected.target_token).all()
    assert (short.draft_token == expected.draft_token).all()
    assert short.confidence == pytest.approx(expected.confidence, rel=1e-5)
    assert short.accept_prob == pytest.approx(expected.accept_prob, rel=1e-5)


def test_under_the_ratio_rule_acceptance_is_a_probability_and_sure_for_a_draft_that_is_the_target(folders: Folders) -> None:
    trace = trace_of(job_of(folders, RATIO))
    assert 0 <= trace.accept_prob.min() < trace.accept_prob.max() <= 1
    assert ((trace.accept_prob != 0) & (trace.accept_prob != 1)).any()
    job = job_of(folders, RATIO)
    twin = replace(job.pair.target, exit_layers=(job.pair.target.geometry.num_layers,))
    geometry = replace(job.pair.geometry, model=twin.geometry, exit_layers=twin.exit_layers)
    same = trace_of(replace(job, pair=replace(job.pair, draft=twin, geometry=geometry)))
    assert same.accept_prob == pytest.approx(1.0, abs=1e-5)


def test_an_interrupted_trace_goes_on_where_it_was_and_ends_the_same(folders: Folders) -> None:
    job = job_of(folders, GREEDY)
    asker, kept = job.asker(job.session()), []

    def interrupted(number: int):
        if number == 2:
            raise KeyboardInterrupt
        return asker.trace(job.prompts[number])

    with pytest.raises(KeyboardInterrupt):
        record_acceptance(interrupted, 3, empty_trace(asker.header), save=kept.append)
    (partial,) = kept
    assert len(partial.header.prompts) == 2
    asked: list[int] = []

    def rest(number: int):
        asked.append(number)
        return asker.trace(job.prompts[number])

    whole, expected = record_acceptance(rest, 3, partial, save=lambda trace: None), trace_of(job)
    assert asked == [2]
    assert whole.header == expected.header
    assert (whole.confidence == expected.confidence).all()


def test_a_trace_of_other_settings_or_prompts_is_not_gone_on_with(folders: Folders) -> None:
    job = job_of(folders, GREEDY)
    header, prompts = trace_of(job).header, job.prompts
    check_resumable("kept", replace(header, prompts=header.prompts[:2]), replace(header, prompts=()), prompts)
    for changes, said in (
        ({"sampling": SAMPLED}, "made for sampling greedy, not for sampling shared-noise T=0.9 seed 3"),
        ({"max_new_tokens": 41}, "made for max_new_tokens 40, not for max_new_tokens 41"),
        (
            {"confidence": "margin", "draft_sha256": "0" * 64},
            r"draft_sha256 \w{12}, confidence max-prob, not for",
        ),
        (
            {"draft": replace(header.draft, exit_layers=(1, 4))},
            "draft with exits 1/2/4, not for draft draft with exits 1/4",
        ),
    ):
        with pytest.raises(Mismatch, match=f"unfinished trace 'kept' was .*{said}"):
            check_resumable("kept", header, replace(header, **changes), prompts)
    with pytest.raises(Mismatch, match="made for 3 other prompts, not for the 3 of this run"):
        check_resumable("kept", header, header, prompts[::-1])
    in_a_chat = [replace(prompt, token_ids=(1, *prompt.token_ids)) for prompt in prompts]
    with pytest.raises(Mismatch, match="made for 3 other prompts, not for the 3 of this run"):
        check_resumable("kept", header, header, in_a_chat)


def test_a_disk_that_is_full_for_a_while_loses_no_prompt(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(folders, GREEDY)
    asker = job.asker(job.session())

    def full(trace: AcceptanceTrace) -> None:
        raise OutOfSpace("kept")

    whole = record_acceptance(
        lambda number: asker.trace(job.prompts[number]), 3, empty_trace(asker.header), save=full, clock=count(step=60).__next__
    )
    assert len(whole.header.prompts) == 3
    assert capsys.readouterr().err.count("warning: no space left to write 'kept'") == 3
