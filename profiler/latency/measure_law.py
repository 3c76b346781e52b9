"""Time small models with random weights in many shapes, to fit the latency law.

The models are timed interleaved: drift of the machine affects all of them alike. One repeat of a model, with some rows
after some cached tokens, is a verification of the rows through all layers, then the rows through the first half, an exit check,
and the rows through the second half. The first repeat of each visit is dropped, because another model left the caches cold. The
bookkeeping of a round does not depend on the model. It is measured in the decoding loop of the two smallest models.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from perfmodel.core.units import Seconds, Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import ModelGeometry
from perfmodel.passes.device_key import LaunchMode
from perfmodel.passes.kernels import STANDARD_KERNELS, Kernels, KernelTrial
from perfmodel.passes.latency_profile import LatencyProfile
from perfmodel.passes.passes import PassSamples
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY
from profiler.latency.pass_log import PassLog
from s2d.decoding.clock import Clock
from s2d.decoding.generate import Session, Settings
from s2d.decoding.verify import make_verifier
from s2d.loading.load_model import LoadedModel, random_model
from s2d.model.torch_device import device_key

REPEATS_PER_VISIT = 4
"""Repeats per visit to a model. The first is dropped."""
SWEEPS_PER_LOOP = 4
"""Sweeps over all models per measurement of the decoding loop."""
LOOPED_MODELS = 2
"""The number of models with a decoding loop. With two, the rounds of one can be predicted from the other."""
LOOP_TOKENS: Tokens = 32

OnSweep = Callable[[Seconds], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LawGrid:
    """The models to time, and the rows and cached tokens of their passes."""

    shapes: tuple[tuple[int, int], ...]
    """The number of layers and the hidden size of each model."""
    rows: tuple[int, ...]
    cached_tokens: tuple[Tokens, ...]
    vocab_size: int

    def __post_init__(self) -> None:
        sizes = {"shapes": sum(self.shapes, ()), "rows": self.rows, "cached_tokens": self.cached_tokens}
        for name, values in sizes.items():
            if not values or min(values) < 1:
                raise ValueError(f"{name}: got {values!r}, expected numbers of at least 1")
        for _, hidden_size in self.shapes:
            if hidden_size % HEAD_DIM:
                raise ValueError(f"hidden size {hidden_size}: expected a multiple of {HEAD_DIM}, the head dimension")
        if self.vocab_size < 2:
            raise ValueError(f"vocab_size is {self.vocab_size}, expected at least 2")

    @property
    def geometries(self) -> tuple[ModelGeometry, ...]:
        """The models, smallest first."""
        by_size = sorted(set(self.shapes), key=lambda shape: shape[0] * shape[1] ** 2)
        return tuple(small_geometry(*shape, self.vocab_size, self.max_tokens) for shape in by_size)

    @property
    def max_tokens(self) -> Tokens:
        """The length of the longest text."""
        return max(*self.cached_tokens, LOOP_TOKENS) + max(self.rows) + 1


HEAD_DIM = 64


def small_geometry(num_layers: int, hidden_size: int, vocab_size: int, max_context_tokens: Tokens) -> ModelGeometry:
    """A Llama of a given depth and width; its MLP is 2.5 times as wide."""
    return ModelGeometry(
        name=f"law-{num_layers}x{hidden_size}",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=5 * hidden_size // 2,
        num_heads=hidden_size // HEAD_DIM,
        num_kv_heads=hidden_size // HEAD_DIM,
        head_dim=HEAD_DIM,
        vocab_size=vocab_size,
        tied_embeddings=True,
        max_context_tokens=max_context_tokens,
        source="random weights, to time its shape",
    )


def law_models(
    grid: LawGrid,
    dtype: Dtype,
    device: str,
    *,
    mode: LaunchMode = "eager",
    kernels: Kernels = STANDARD_KERNELS,
    seed: int,
) -> tuple[LoadedModel, ...]:
    """The models of the grid, each with an exit in the middle and at the end."""
    return tuple(
        random_model(geometry, half_exits(geometry), dtype, device, mode=mode, kernels=kernels, seed=seed)
        for geometry in grid.geometries
    )


def half_exits(geometry: ModelGeometry) -> tuple[int, ...]:
    """Exits in the middle and at the end; a single layer has only the end."""
    return tuple(sorted({max(1, geometry.num_layers // 2), geometry.num_layers}))


def measure_law(
    models: Sequence[LoadedModel],
    grid: LawGrid,
    logs: Sequence[PassLog],
    budget_s: Seconds,
    *,
    rng: np.random.Generator,
    on_sweep: OnSweep = lambda spent_s: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> None:
    """Time passes of all models until the budget is spent, in at least one sweep over all of them.

    Args:
        models: from `law_models`, smallest first.
        grid: rows and cached tokens.
        logs: one per model; may hold earlier passes, and are complete after each sweep.
        budget_s: the duration without the warm-up, which runs each model once with each number of rows.
        rng: draws the order and the shapes.
        on_sweep: called after each sweep with the time spent.
        clock: a monotonic clock in seconds.
    """
    timed = [_TimedModel(model, grid, rng) for model in models]
    for timed_model in timed:
        timed_model.warm_up()
    loops = [_DecodingLoop(model, grid) for model in models[:LOOPED_MODELS]]
    start_s = clock()
    for sweep in itertools.count():
        samples: list[list[PassSamples]] = [[] for _ in models]
        for index in rng.permutation(len(models)):
            samples[index].extend(timed[index].visit())
        if sweep % SWEEPS_PER_LOOP == 0:
            for samples_of_model, loop in zip(samples, loops, strict=False):
                samples_of_model.extend(loop.rounds())
        for log, samples_of_model in zip(logs, samples, strict=True):
            for repeat in samples_of_model:
                log.add(repeat)
        on_sweep(clock() - start_s)
        if clock() - start_s >= budget_s:
            return


class _TimedModel:
    """One model with its caches and clock."""

    def __init__(self, model: LoadedModel, grid: LawGrid, rng: np.random.Generator) -> None:
        self._decoder = model.decoder
        self._vocab_size = model.geometry.vocab_size
        self._grid = grid
        self._rng = rng
        self._whole = model.decoder.new_cache((model.geometry.num_layers,), grid.max_tokens)
        self._halves = model.decoder.new_cache(model.exit_layers, grid.max_tokens)
        for cache in (self._whole, self._halves):
            model.decoder.prepare(cache, 0, grid.max_tokens)
        self._verifier = make_verifier(GREEDY, "max-prob", model.decoder.device)
        self._verifier.start(1, grid.max_tokens)
        self._clock = Clock(model.decoder.device)

    def warm_up(self) -> None:
        """Run each number of rows once."""
        for rows in self._grid.rows:
            self._repeat(rows, self._grid.cached_tokens[0])

    def visit(self) -> Iterator[PassSamples]:
        """The passes of a few repeats, each with random rows and cached tokens."""
        for repeat in range(REPEATS_PER_VISIT):
            samples = self._repeat(int(self._rng.choice(self._grid.rows)), int(self._rng.choice(self._grid.cached_tokens)))
            if repeat:
                yield samples

    @torch.inference_mode()
    def _repeat(self, rows: int, cached: Tokens) -> PassSamples:
        decoder, verifier, clock = self._decoder, self._verifier, self._clock
        self._whole.lengths = [cached]
        self._halves.lengths = [cached] * len(self._halves.segments)
        token_ids = self._rng.integers(self._vocab_size, size=rows).tolist()
        clock.start()
        states = decoder.forward_segment(decoder.embed(token_ids), self._whole.segments[0], self._whole)
        verifier.verify(decoder.exit_logits(states), token_ids, 1)
        clock.lap("verify", 0, rows, cached)
        states = decoder.embed(token_ids)
        for segment in self._halves.segments:
            states = decoder.forward_segment(states, segment, self._halves)
            clock.lap("segment", segment.index, rows, cached)
            if not segment.index:
                verifier.check_exit(decoder, states[-1:], token_ids, 1, segment.index)()
                clock.lap("exit", 0, 1, 0)
        return clock.samples()


class _DecodingLoop:
    """The decoding loop of one model, which is both target and draft."""

    def __init__(self, model: LoadedModel, grid: LawGrid) -> None:
        self._session = Session(replace(model, exit_layers=()), model, grid.max_tokens)
        self._policies = [Policy(exits=(model.exit_layers[-1],), tokens=rows) for rows in grid.rows]

    def rounds(self) -> Iterator[PassSamples]:
        """The `round` passes (bookkeeping on the host) of plain and of drafting rounds."""
        for policy in (None, *self._policies):
            settings = Settings(policy=policy, sampling=GREEDY, max_new_tokens=LOOP_TOKENS, eos_token_id=None)
            yield self._session.generate([0], settings).samples.where(lambda sample: sample.kind == "round")


def law_profiles(log: PassLog, model: LoadedModel, kernel_trials: tuple[KernelTrial, ...] = ()) -> dict[str, LatencyProfile]:
    """The passes of one model as the profile of a draft and of a target, by file name."""
    profile = LatencyProfile(
        model=model.geometry,
        model_sha256=model.sha256,
        exit_layers=model.exit_layers,
        beside=None,
        device=device_key(model.decoder.device, model.dtype, model.decoder.mode, kernels=model.decoder.kernels),
        rule=GREEDY.rule,
        processing=GREEDY.processing,
        samples=log.samples("draft"),
        kernel_trials=kernel_trials,
    )
    target = replace(profile, exit_layers=(), samples=log.samples("target"))
    return {f"{model.geometry.name}.draft": profile, f"{model.geometry.name}.target": target}
