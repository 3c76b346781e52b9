"""Traces of tiny real models. tests/s2d/decoding/test_replay_equals_runtime.py compares traces with the runtime."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import Mismatch, OutOfSpace
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import GREEDY, Sampling
from profiler.acceptance.record_acceptance import ExitRecorder, check_resumable, empty_trace, record_acceptance
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import EncodedPrompt, encode_prompts
from s2d.decoding.pair import PairRequest, load_pair
from s2d.decoding.verify import make_verifier
from s2d.model.choose_tokens import NoiseTable, new_noise_table
from s2d.prompt_files.read import read_prompts
from s2d.running.compare_outputs import compare_outputs
from tests.profiler.conftest import EXITS, Folders

SAMPLED = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=None, seed=3)
RATIO = Sampling(rule="ratio", temperature=0.9, top_k=8, top_p=0.95, seed=3)


def make_job(folders: Folders, sampling: Sampling) -> ProfilingJob:
    pair = load_pair(PairRequest(target=str(folders.target), draft=str(folders.draft), dtype="fp32", device="cpu"))
    prompts = encode_prompts(pair, read_prompts(folders.prompts)[:3], max_new_tokens=40)
    return ProfilingJob(
        pair=pair, prompts=prompts, sampling=sampling, confidence="max-prob", max_new_tokens=40, draft_cap=4, seed=0
    )


def trace_of(job: ProfilingJob) -> Trace:
    recorder = job.exit_recorder(job.session())
    return record_acceptance(
        lambda number: recorder.trace(job.prompts[number]),
        len(job.prompts),
        empty_trace(recorder.header),
        save=lambda trace: None,
    )


def test_a_trace_holds_the_text_of_the_plain_target(folders: Folders) -> None:
    job = make_job(folders, SAMPLED)
    trace, session = trace_of(job), job.session()
    written = [session.generate(prompt.token_ids, job.settings(None, 40)).tokens for prompt in job.prompts]
    assert [tuple(trace.subset([i]).target_token) for i in range(3)] == written
    assert trace.header.exit_layers == EXITS
    assert [prompt.prompt_tokens for prompt in trace.header.prompts] == [len(prompt.token_ids) for prompt in job.prompts]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, RATIO], ids=lambda sampling: sampling.rule)
def test_a_shortened_trace_is_the_one_of_shorter_texts(folders: Folders, sampling: Sampling) -> None:
    job = make_job(folders, sampling)
    short, expected = trace_of(job).shortened(9), trace_of(replace(job, max_new_tokens=9))
    assert short.header == expected.header
    assert (short.target_token == expected.target_token).all()
    assert (short.draft_token == expected.draft_token).all()
    assert short.confidence == pytest.approx(expected.confidence, rel=1e-5)
    assert short.accept_prob == pytest.approx(expected.accept_prob, rel=1e-5)


def test_ratio_acceptance_is_a_probability_and_1_if_the_draft_is_the_target(folders: Folders) -> None:
    trace = trace_of(make_job(folders, RATIO))
    assert 0 <= trace.accept_prob.min() < trace.accept_prob.max() <= 1
    assert ((trace.accept_prob != 0) & (trace.accept_prob != 1)).any()
    job = make_job(folders, RATIO)
    twin = replace(job.pair.target, exit_layers=(job.pair.target.geometry.num_layers,))
    geometry = replace(job.pair.geometry, model=twin.geometry, exit_layers=twin.exit_layers)
    same = trace_of(replace(job, pair=replace(job.pair, draft=twin, geometry=geometry)))
    assert same.accept_prob == pytest.approx(1.0, abs=1e-5)


def test_an_interrupted_trace_continues_to_the_same_result(folders: Folders) -> None:
    job = make_job(folders, GREEDY)
    recorder, kept = job.exit_recorder(job.session()), []

    def interrupted(number: int):
        if number == 2:
            raise KeyboardInterrupt
        return recorder.trace(job.prompts[number])

    with pytest.raises(KeyboardInterrupt):
        record_acceptance(interrupted, 3, empty_trace(recorder.header), save=kept.append)
    (partial,) = kept
    assert len(partial.header.prompts) == 2
    traced: list[int] = []

    def rest(number: int):
        traced.append(number)
        return recorder.trace(job.prompts[number])

    whole, expected = record_acceptance(rest, 3, partial, save=lambda trace: None), trace_of(job)
    assert traced == [2]
    assert whole.header == expected.header
    assert (whole.confidence == expected.confidence).all()


def test_a_trace_of_other_settings_or_prompts_is_not_continued(folders: Folders) -> None:
    job = make_job(folders, GREEDY)
    header, prompts = trace_of(job).header, job.prompts
    check_resumable("kept", replace(header, prompts=header.prompts[:2]), replace(header, prompts=()), prompts)
    for changes, message in (
        ({"sampling": SAMPLED}, "made for sampling greedy, not for sampling shared-noise T=0.9 seed 3"),
        ({"max_new_tokens": 41}, "made for max_new_tokens 40, not for max_new_tokens 41"),
        (
            {"confidence": "margin", "draft_sha256": "0" * 64},
            r"draft_sha256 \w{12}, confidence max-prob, not for",
        ),
        (
            {"exit_layers": (1, 4)},
            "exit_layers 1/2/4, not for exit_layers 1/4",
        ),
    ):
        with pytest.raises(Mismatch, match=f"unfinished trace 'kept' was .*{message}"):
            check_resumable("kept", header, replace(header, **changes), prompts)
    with pytest.raises(Mismatch, match="made for 3 other prompts, not for the 3 of this run"):
        check_resumable("kept", header, header, prompts[::-1])
    in_a_chat = [replace(prompt, token_ids=(1, *prompt.token_ids)) for prompt in prompts]
    with pytest.raises(Mismatch, match="made for 3 other prompts, not for the 3 of this run"):
        check_resumable("kept", header, header, in_a_chat)


def test_a_temporarily_full_disk_loses_no_prompt(folders: Folders, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(folders, GREEDY)
    recorder = job.exit_recorder(job.session())

    def full(trace: Trace) -> None:
        raise OutOfSpace("kept")

    whole = record_acceptance(
        lambda number: recorder.trace(job.prompts[number]),
        3,
        empty_trace(recorder.header),
        save=full,
        clock=count(step=60).__next__,
    )
    assert len(whole.header.prompts) == 3
    assert capsys.readouterr().err.count("warning: no space left to write 'kept'") == 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenLogits:
    """A decoder whose exits return given logits [E, N, V], for the N positions after each token of a text."""

    logits: torch.Tensor

    @property
    def vocab_size(self) -> int:
        return self.logits.shape[-1]

    def all_exit_logits(self, token_ids: Sequence[int], exit_layers: Sequence[int]) -> list[torch.Tensor]:
        return [self.logits[layer][: len(token_ids)] for layer in exit_layers]

    def exit_logits(self, states: torch.Tensor) -> torch.Tensor:
        """States hold an exit and a position: [T, 2]."""
        return torch.stack([self.logits[layer, position] for layer, position in states.tolist()])

    def predict(self, states, choice, noise):
        return self.send_prediction(*choice(self.exit_logits(states), noise))

    def send_prediction(self, token: torch.Tensor, confidence: torch.Tensor):
        return lambda: (int(token), float(confidence))


def bf16_near_ties(num_exits: int, num_positions: int, vocab_size: int) -> torch.Tensor:
    """Logits whose best few lie 0 to 2 steps of bf16 apart."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(num_exits, num_positions, vocab_size, generator=generator)
    steps = torch.randint(0, 3, (num_exits, num_positions, 4), generator=generator)
    logits[..., 10:14] = 9 + 0.0625 * steps
    return logits.bfloat16()


@pytest.mark.parametrize("confidence", ["max-prob", "margin", "entropy", "top10-prob"])
@pytest.mark.parametrize(
    "sampling", [GREEDY, SAMPLED, RATIO, replace(GREEDY, repetition_penalty=1.2)], ids=lambda sampling: sampling.label
)
def test_trace_and_run_compute_the_same_confidences_from_bf16_logits(sampling: Sampling, confidence: Confidence) -> None:
    prompt, written, exits, vocab_size = (1, 2, 3), (10, 12, 11, 9, 10, 13), (0, 1), 50
    logits = bf16_near_ties(len(exits), len(prompt) + len(written), vocab_size)
    decoder = GivenLogits(logits=logits)
    pair = SimpleNamespace(
        target=SimpleNamespace(decoder=decoder, geometry=SimpleNamespace(num_layers=1)),
        draft=SimpleNamespace(decoder=decoder),
        geometry=SimpleNamespace(exit_layers=exits),
        eos_token_id=None,
        device=torch.device("cpu"),
    )
    session = SimpleNamespace(
        generate=lambda token_ids, settings: SimpleNamespace(tokens=written),
        noise=lambda sampling: new_noise_table(sampling, vocab_size, pair.device),
    )
    recorder = ExitRecorder(pair, session, sampling, confidence, len(written), num_mistakes=0)
    traced = recorder.trace(EncodedPrompt(name="p", category="c", token_ids=prompt))
    verifier, text = make_verifier(sampling, confidence, pair.device), [*prompt, *written]
    verifier.start(len(prompt), len(text))
    for step, number in np.ndindex(traced.confidence.shape):
        known = len(prompt) + step
        token, value = verifier.check_exit(decoder, torch.tensor([[number, known - 1]]), text[:known], known, number)()
        assert value == traced.confidence[step, number]
        assert sampling.rule == "ratio" or token == traced.draft_token[step, number]
    if sampling is GREEDY and confidence == "max-prob":
        probs = logits[:, len(prompt) - 1 : -1].float().softmax(-1)
        expected = probs.amax(-1).T.numpy()
        assert traced.confidence == pytest.approx(expected, abs=1e-6)


def test_a_recording_reuses_the_noise_of_the_session_and_a_check_draws_it_once(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_rows: list[int] = []
    grow = NoiseTable.grow

    def counted(table: NoiseTable, num_positions: int) -> None:
        before = len(table)
        grow(table, num_positions)
        num_rows.append(len(table) - before)

    monkeypatch.setattr(NoiseTable, "grow", counted)
    job = replace(make_job(folders, SAMPLED), num_mistakes=2)
    session = job.session()
    plain = [session.generate(prompt.token_ids, job.settings(None, 40)) for prompt in job.prompts]
    longest = max(len(prompt.token_ids) + 40 for prompt in job.prompts)
    num_rows.clear()
    recorder = ExitRecorder(job.pair, session, SAMPLED, "max-prob", 40, num_mistakes=2)
    for prompt in job.prompts:
        recorder.trace(prompt)
    assert sum(num_rows) == 0  # the recording uses the table of the session
    num_rows.clear()
    check = compare_outputs(job.pair, job.prompts, SAMPLED, plain, plain)
    assert sum(num_rows) <= longest
    assert check.num_equal == len(job.prompts)
    assert check.worst_gap == pytest.approx(0, abs=1e-4)
