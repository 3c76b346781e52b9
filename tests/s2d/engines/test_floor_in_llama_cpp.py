"""llama.cpp with `p-min` drafts the tokens of a floor on `top10-prob` that drops its token.

The engine emits the first token with the prompt's pass, so this project's runtime begins after it. The engine's KV cache is
f16: floors lie in gaps between confidences.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from perfmodel.core.errors import UserInputError
from perfmodel.policies.policy import ConfidenceFloor, Policy
from perfmodel.policies.sampling import GREEDY
from profiler.acceptance.record_acceptance import empty_trace, extended
from profiler.latency.profiling_job import ProfilingJob
from s2d.decoding.encode_prompts import encode_prompts
from s2d.decoding.pair import PairRequest, load_pair
from s2d.engines.gguf_file import write_gguf
from s2d.engines.session import EngineSession, check_installed
from s2d.engines.session_request import CallResult, SessionRequest
from s2d.loading.load_model import export_exit
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.read import read_prompts

pytestmark = pytest.mark.e2e

EXIT, DRAFT_TOKENS, NUM_PROMPTS, NEW_TOKENS, CONTEXT_TOKENS = 4, 8, 5, 64, 512
NEAR_FLOORS = (0.3, 0.6)
HALF_WIDTH = 0.05
"""How far from these a floor may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The pair as a job of this project, and as files of llama.cpp."""

    job: ProfilingJob
    first_tokens: tuple[int, ...]
    """The first token that the target writes after each prompt."""
    floors: Mapping[float, float]
    """Floors in the widest gaps between confidences."""
    target: Path
    draft: Path
    log: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    try:
        check_installed("llama.cpp", None)
    except UserInputError as err:
        pytest.skip(str(err))
    pytest.importorskip("gguf")
    request = PairRequest(target="ref-target-16", draft="ref-draft", dtype="fp32", device="cpu")
    pair = replace(load_pair(request), eos_token_id=None)
    prompts = encode_prompts(pair, choose_prompts(read_prompts(FAMILY_PROMPTS), "all", NUM_PROMPTS), max_new_tokens=NEW_TOKENS)
    job = ProfilingJob(
        pair=pair,
        prompts=prompts,
        sampling=GREEDY,
        confidence="top10-prob",
        max_new_tokens=NEW_TOKENS,
        draft_cap=DRAFT_TOKENS,
        seed=0,
    )
    recorder, folder = job.exit_recorder(job.session()), tmp_path_factory.mktemp("llama_cpp")
    parts = [recorder.trace(prompt) for prompt in prompts]
    trace = extended(empty_trace(recorder.header), parts)
    confidence = trace.confidence[:, trace.header.exit_layers.index(EXIT)]
    starts = np.cumsum([0, *(prompt.num_positions for prompt in trace.header.prompts[:-1])])
    export_exit(pair.draft.folder, EXIT, folder / "exit")
    return Served(
        job=job,
        first_tokens=tuple(trace.target_token[starts].tolist()),
        floors={near: widest_gap(confidence, near) for near in NEAR_FLOORS},
        target=write_gguf(pair.target.folder, "f32", folder / "target.gguf"),
        draft=write_gguf(folder / "exit", "f32", folder / "draft.gguf"),
        log=folder / "engine.log",
    )


def widest_gap(confidence: np.ndarray, near: float) -> float:
    """The middle of the widest gap between neighbouring confidences near a number."""
    inside = confidence[np.abs(confidence - near) < HALF_WIDTH].astype(np.float64)
    points = np.unique([near - HALF_WIDTH, *inside, near + HALF_WIDTH])
    gap = int(np.argmax(np.diff(points)))
    return float(points[gap : gap + 2].mean())


def serve(served: Served, floor: float) -> list[CallResult]:
    request = SessionRequest(
        engine="llama.cpp",
        target=served.target,
        draft=served.draft,
        weights="f32",
        num_threads=1,
        context_tokens=CONTEXT_TOKENS,
        draft_tokens=DRAFT_TOKENS,
        floor=floor,
        log=served.log,
    )
    with EngineSession(request) as session:
        return [session.call(prompt.token_ids, NEW_TOKENS) for prompt in served.job.prompts]


def ran_here(served: Served, policy: Policy) -> list[tuple[tuple[int, ...], int, float, int]]:
    """Tokens, drafted tokens, accepted tokens and rounds of every prompt in this project's runtime, after the first token."""
    session, settings, found = served.job.session(), served.job.settings(policy, NEW_TOKENS - 1), []
    for prompt, first in zip(served.job.prompts, served.first_tokens, strict=True):
        ran = session.generate([*prompt.token_ids, first], settings)
        found.append(((first, *ran.tokens), ran.rounds.num_drafted, ran.rounds.num_accepted, ran.rounds.num_rounds))
    return found


@pytest.mark.parametrize("near", NEAR_FLOORS)
def test_p_min_drafts_and_accepts_the_tokens_of_a_dropping_floor_on_the_ten_most_probable(served: Served, near: float) -> None:
    floor = ConfidenceFloor(floor=served.floors[near], keeps_token=False)
    policy = Policy(exits=(EXIT,), tokens=DRAFT_TOKENS, stop=floor, confidence="top10-prob")
    results = serve(served, floor.floor)
    found = [(result.tokens, result.num_drafted, result.num_accepted, result.num_rounds) for result in results]
    assert found == ran_here(served, policy)
    # Neither keeping the token nor the probability over the whole vocabulary gives these counts.
    assert found != ran_here(served, replace(policy, stop=replace(floor, keeps_token=True)))
    assert found != ran_here(served, replace(policy, confidence="max-prob"))
