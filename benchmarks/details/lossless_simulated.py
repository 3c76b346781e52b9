"""The part of lossless.py with captured CUDA graphs, on the simulated GPU, against the plain text of the CPU.

Both sides have the same random weights. The CPU writes the target's text token by token, kernel by kernel. The simulated GPU
replays exactly the recorded operations of its captures, in memory that the simulator poisons: see tests/gpu_simulator.
"""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, product
from unittest import mock

from lossless import TINY_EXITS, TINY_SHAPES, penalised, random_noise, random_policy

import s2d.model.cuda_graphs
from perfmodel.passes.kernels import Kernels
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.loading.convert_weights import with_kernels, with_reduced_head
from s2d.loading.load_model import LoadedModel
from s2d.model.check_kernels import runnable_kernels
from s2d.model.cuda_graphs import GraphDecoder
from tests.gpu_simulator import simulated_gpu
from tests.stubs import EOS, VOCAB_SIZE, TinySpec, loaded, tiny_llama, tiny_model

KINDS = ("its own layers", "separate draft", "reduced head")
CASES_PER_SESSION = 17
"""Cases that share captured passes, because captures take most of the time."""
SHORTEST_CONTEXT = 16
"""Shortest context of captured passes. It is small so that short texts use several."""
MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 20, 40

Case = tuple[list[int], Settings]
"""A prompt, and how to decode it plainly."""


def simulated_cases(rng: random.Random, num_cases: int) -> tuple[Counter[str], Counter[str]]:
    """Cases by kind of draft, and mismatches including the problems listed by the simulator."""
    cases: Counter[str] = Counter()
    mismatches: Counter[str] = Counter()
    per_session = min(CASES_PER_SESSION, -(-num_cases // len(KINDS)))
    with mock.patch.object(s2d.model.cuda_graphs, "MIN_CONTEXT", SHORTEST_CONTEXT):
        for spec, kind in cycle(product(TINY_SHAPES, KINDS)):
            if cases.total() >= num_cases:
                break
            cases[kind] += per_session
            mismatches[kind] += num_mismatches(spec, kind, list(random_cases(rng, per_session)), rng)
    return cases, mismatches


def random_cases(rng: random.Random, number: int) -> Iterator[Case]:
    """Random prompts, lengths and sampling; greedy and shared noise alternate."""
    for case_number in range(number):
        sampling = penalised(random_noise(rng) if case_number % 2 else GREEDY, rng)
        prompt = rng.choices(range(VOCAB_SIZE), k=rng.randint(1, MAX_PROMPT_TOKENS))
        new_tokens = rng.randint(1, MAX_NEW_TOKENS)
        eos = rng.choice([None, EOS])
        yield prompt, Settings(policy=None, sampling=sampling, max_new_tokens=new_tokens, eos_token_id=eos)


def num_mismatches(spec: TinySpec, kind: str, cases: list[Case], rng: random.Random) -> int:
    """The number of texts that differ between the simulated GPU and the CPU, plus the problems listed by the simulator."""
    plain = Session(tiny_model(spec, TINY_EXITS), None, MAX_PROMPT_TOKENS + MAX_NEW_TOKENS)
    expected = [plain.generate(prompt, settings).tokens for prompt, settings in cases]
    with simulated_gpu() as simulator:
        session = graph_session(spec, kind, rng)
        policies = [random_policy(session.exit_layers, rng) for _ in cases]
        simulated = [
            session.generate(prompt, replace(settings, policy=policy)).tokens
            for (prompt, settings), policy in zip(cases, policies, strict=True)
        ]
    return sum(a != b for a, b in zip(simulated, expected, strict=True)) + len(simulator.problems)


def graph_session(spec: TinySpec, kind: str, rng: random.Random) -> Session:
    """A session on the simulated GPU with captured passes and random kernels that run in fp32."""
    kernels = rng.choice(runnable_kernels("cuda", "fp32", "graph"))
    target = graphed(loaded(tiny_llama(spec), TINY_EXITS, "fp32", "cuda"), kernels)
    draft = None
    if kind != "its own layers":
        draft = graphed(loaded(tiny_llama(replace(spec, num_layers=4)), TINY_EXITS, "fp32", "cuda"), kernels)
    if draft and kind == "reduced head":
        kept = sorted(rng.sample(range(VOCAB_SIZE), VOCAB_SIZE // 2))
        weights = with_reduced_head(draft.decoder.weights, kept)
        draft = replace(draft, decoder=GraphDecoder(draft.geometry, weights))
    return Session(target, draft, MAX_PROMPT_TOKENS + MAX_NEW_TOKENS)


def graphed(model: LoadedModel, kernels: Kernels) -> LoadedModel:
    """The model with captured passes and the given kernels."""
    return replace(model, decoder=GraphDecoder(model.geometry, with_kernels(model.decoder.weights, kernels)))
