"""After a mistake every exit predicts what a pass over the mistaken text predicts."""

from dataclasses import replace

import numpy as np
import pytest

from perfmodel.acceptance.trace import Trace
from perfmodel.models.geometry import SELF_DRAFT
from perfmodel.policies.sampling import GREEDY, Sampling
from profiler.acceptance.record_acceptance import empty_trace, extended
from profiler.acceptance.record_off_path import TOKENS_PER_MISTAKE, draw_mistakes
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import PairRequest, load_pair
from s2d.decoding.process_logits import LogitsProcessor
from s2d.model.choose_tokens import NoiseTable, choose, confidence_values
from s2d.model.finite import NotFinite
from s2d.prompt_files.read import read_prompts
from tests.profiler.conftest import Folders

SAMPLED = Sampling(rule="shared-noise", temperature=0.9, top_k=None, top_p=None, seed=3)
PENALISED = replace(SAMPLED, repetition_penalty=1.3, frequency_penalty=0.2)
RATIO = Sampling(rule="ratio", temperature=0.9, top_k=8, top_p=0.95, seed=3)
NEW_TOKENS, NUM_MISTAKES = 30, 3


def make_job(folders: Folders, sampling: Sampling, draft: str | None = None) -> ProfilingJob:
    pair = replace(
        load_pair(PairRequest(target=str(folders.target), draft=draft or str(folders.draft), dtype="fp32", device="cpu")),
        eos_token_id=None,
    )
    return ProfilingJob(
        pair=pair,
        prompts=encode_prompts(pair, read_prompts(folders.prompts)[:3], max_new_tokens=NEW_TOKENS),
        sampling=sampling,
        confidence="max-prob",
        max_new_tokens=NEW_TOKENS,
        draft_cap=4,
        seed=0,
        num_mistakes=NUM_MISTAKES,
    )


def trace_of(job: ProfilingJob, *numbers: int) -> Trace:
    recorder = job.exit_recorder(job.session())
    return extended(empty_trace(recorder.header), [recorder.trace(job.prompts[number]) for number in numbers])


def confidences_of_whole_passes(job: ProfilingJob, trace: Trace) -> dict[int, list[list[float]]]:
    """Confidences after the mistakes of the first prompt, by step, from a pass over the whole text for each token."""
    first = job.prompts[0].token_ids
    text, exits = [*first, *trace.target_token.tolist()], job.pair.geometry.exit_layers
    table = NoiseTable(job.sampling.seed, job.pair.draft.decoder.vocab_size, job.pair.device) if job.sampling.seed else None
    noise = table.rows(0, len(text)) if table is not None else None
    confidences: dict[int, list[list[float]]] = {}
    for step, number in draw_mistakes(trace.accept_prob, job.prompts[0].name, NUM_MISTAKES):
        tokens = [*text[: len(first) + step], int(trace.draft_token[step, number])]
        for _ in range(min(TOKENS_PER_MISTAKE, NEW_TOKENS - 1 - step)):
            all_logits = job.pair.draft.decoder.all_exit_logits(tokens, exits)
            logits = [
                LogitsProcessor(job.sampling, len(first))(exit_logits[-1:], tokens, len(first)) for exit_logits in all_logits
            ]
            values = [float(confidence_values(exit_logits.softmax(-1), "max-prob")) for exit_logits in logits]
            confidences.setdefault(len(tokens) - len(first), []).append(values)
            tokens.append(int(choose(logits[number], None if noise is None else noise[len(tokens)])))
    return confidences


@pytest.mark.parametrize("draft", [None, SELF_DRAFT])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED, PENALISED], ids=["greedy", "sampled", "penalised"])
def test_recorded_confidences_equal_those_of_passes_over_the_mistaken_text(
    folders: Folders, sampling: Sampling, draft: str | None
) -> None:
    job = make_job(folders, sampling, draft)
    trace = trace_of(job, 0)
    expected = confidences_of_whole_passes(job, trace)
    assert len(trace.off_path) == sum(map(len, expected.values())) > 0
    for step, recorded in zip(trace.off_path.position.tolist(), trace.off_path.confidence.tolist(), strict=True):
        assert any(recorded == pytest.approx(values, abs=1e-4) for values in expected[step])


def test_under_the_ratio_rule_the_draft_continues_from_a_refused_sample(folders: Folders) -> None:
    job = make_job(folders, RATIO)
    trace = trace_of(job, 0)
    assert 0 < len(trace.off_path) <= NUM_MISTAKES * TOKENS_PER_MISTAKE
    assert not np.isclose(trace.off_path.confidence, trace.confidence[trace.off_path.position]).all()


def test_positions_are_of_the_whole_trace_and_do_not_depend_on_other_prompts(folders: Folders) -> None:
    job = make_job(folders, SAMPLED)
    both, alone = trace_of(job, 0, 1), trace_of(job, 1)
    of_second = both.subset([1]).off_path
    assert len(of_second) == len(alone.off_path) > 0
    np.testing.assert_array_equal(of_second.position, alone.off_path.position)
    np.testing.assert_array_equal(of_second.confidence, alone.off_path.confidence)


def test_an_end_of_text_ends_the_continuation(folders: Folders) -> None:
    job = make_job(folders, SAMPLED)
    trace = trace_of(job, 0)
    [(step, number), *_] = draw_mistakes(trace.accept_prob, job.prompts[0].name, NUM_MISTAKES)
    mistaken = int(trace.draft_token[step, number])
    ended = replace(job, pair=replace(job.pair, eos_token_id=mistaken))
    assert mistaken not in trace.target_token  # otherwise the text itself would end
    assert len(trace_of(ended, 0).off_path) < len(trace.off_path)


def test_at_most_all_mistakes_are_drawn() -> None:
    never = np.ones((20, 3), np.float32)
    once = never.copy()
    once[4, 1] = 0
    last = never.copy()
    last[19] = 0  # nothing was written behind it
    assert draw_mistakes(never, "a", 4) == draw_mistakes(last, "a", 4) == []
    assert draw_mistakes(once, "a", 4) == [(4, 1)]
    assert len({step for step, _ in draw_mistakes(1 - never, "a", 4)}) == 4


def test_logits_that_are_not_finite_only_after_a_mistake_are_refused(folders: Folders) -> None:
    job = make_job(folders, GREEDY)
    trace = trace_of(job, 0)
    mistakes = draw_mistakes(trace.accept_prob, job.prompts[0].name, NUM_MISTAKES)
    text = {*job.prompts[0].token_ids, *trace.target_token.tolist()}
    wrong = {int(trace.draft_token[step, number]) for step, number in mistakes} - text
    assert wrong
    job.pair.draft.decoder.weights.embedding[list(wrong)] = np.inf
    with pytest.raises(NotFinite, match=r"the logits of draft 'draft' are NaN or infinite in fp32 on prompt 'p0.txt:1'"):
        trace_of(job, 0)
