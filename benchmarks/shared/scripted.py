"""Decode with random weights while acceptance follows a trace: texts, pass times and interleaved arms."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from calibrate.search.neighbourhood import MAX_DRAFT_TOKENS
from perfmodel.acceptance.splits import Half, prompt_half
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.passes import PassSamples
from perfmodel.passes.pauses import kind_seconds
from perfmodel.policies.policy import Policy
from perfmodel.replay.estimate import Decoded, Speedup, estimate, mean_round_cost, measured_speedup
from perfmodel.replay.replay import block_lengths, replay_prompts
from perfmodel.replay.round_stats import sum_rounds
from profiler.latency.measure_latency import Coverage, Text, take_runs
from profiler.latency.pass_grid import needed_passes, run_grid
from profiler.latency.pass_log import PassLog
from s2d.decoding.generate import Generation, Session, Settings
from s2d.decoding.scripted_acceptance import ScriptedAcceptance, scripts_from_trace
from shared import common  # noqa: F401 makes the checkout importable
from shared.interleaved import Models

PLAIN = "plain"


@dataclass(frozen=True, kw_only=True, eq=False)
class Texts:
    """The traced prompts of one half: the trace, and random tokens of the same prompt lengths."""

    trace: Trace
    prompts: tuple[tuple[int, ...], ...]

    @cached_property
    def scripts(self) -> tuple[ScriptedAcceptance, ...]:
        """The scripted acceptance after each prompt."""
        return scripts_from_trace(self.trace)

    @cached_property
    def whole(self) -> tuple[Text, ...]:
        """Each prompt with the text that follows it."""
        return tuple(
            Text(token_ids=(*prompt, *script.target_tokens), prompt_tokens=len(prompt))
            for prompt, script in zip(self.prompts, self.scripts, strict=True)
        )

    def script_after(self, token_ids: Sequence[int]) -> ScriptedAcceptance:
        """The script of the text that starts with these tokens. The random prompts identify the texts."""
        known = tuple(token_ids)
        return next(
            script
            for text, script in zip(self.whole, self.scripts, strict=True)
            if text.token_ids[: len(known)] == known and len(known) >= text.prompt_tokens
        )

    def settings(self, policy: Policy | None, script: ScriptedAcceptance, new_tokens: Tokens) -> Settings:
        """Settings to decode one of the texts."""
        return Settings(
            policy=policy,
            sampling=self.trace.header.sampling,
            max_new_tokens=new_tokens,
            eos_token_id=self.trace.header.eos_token_id,
            script=script,
        )


def shortened(trace: Trace, *, prompt_tokens: Tokens | None, new_tokens: Tokens | None) -> Trace:
    """A trace of the same texts, cut short and with prompts of another length. None keeps the traced length.

    Raises:
        UserInputError: texts longer than traced, or without tokens.
    """
    header = trace.header
    max_tokens = new_tokens or header.max_new_tokens
    if not 1 <= max_tokens <= header.max_new_tokens:
        raise UserInputError(f"--max-new-tokens {max_tokens}: expected 1 to {header.max_new_tokens}, the traced length.")
    if prompt_tokens is not None and prompt_tokens < 1:
        raise UserInputError(f"--prompt-tokens {prompt_tokens}: expected at least 1.")
    lengths = np.array([prompt.num_positions for prompt in header.prompts])
    starts = np.cumsum(lengths) - lengths
    kept = np.concatenate([start + np.arange(min(length, max_tokens)) for start, length in zip(starts, lengths, strict=True)])
    prompts = tuple(
        replace(
            prompt, num_positions=min(prompt.num_positions, max_tokens), prompt_tokens=prompt_tokens or prompt.prompt_tokens
        )
        for prompt in header.prompts
    )
    return Trace(
        header=replace(header, max_new_tokens=max_tokens, prompts=prompts),
        confidence=trace.confidence[kept],
        draft_token=trace.draft_token[kept],
        target_token=trace.target_token[kept],
        accept_prob=trace.accept_prob[kept],
        off_path=trace.off_path.select(kept, len(trace.target_token)),
    )


def texts_from_half(trace: Trace, half: Half, *, vocab_size: int, max_prompts: int | None, seed: int) -> Texts:
    """The prompts of one half of a trace, with random tokens.

    Args:
        trace: acceptance.
        half: calibration or evaluation.
        vocab_size: of the models.
        max_prompts: None takes all prompts.
        seed: for the tokens.

    Raises:
        UserInputError: the trace has no prompt in that half, or has tokens beyond the vocabulary.
    """
    numbers = [number for number, prompt in enumerate(trace.header.prompts) if prompt_half(prompt.name) == half][:max_prompts]
    if not numbers:
        raise UserInputError(
            f"--acceptance: none of the {len(trace.header.prompts)} prompts is in the {half} half. Trace more prompts."
        )
    largest = max(int(trace.draft_token.max()), int(trace.target_token.max()))
    if largest >= vocab_size:
        raise UserInputError(
            f"--acceptance: the trace contains token {largest}, beyond the {vocab_size} tokens of --target. Give a trace and "
            "a target with the same vocabulary."
        )
    part, rng = trace.subset(numbers), np.random.default_rng([seed, half == "calibration"])
    prompts = tuple(tuple(rng.integers(vocab_size, size=prompt.prompt_tokens).tolist()) for prompt in part.header.prompts)
    return Texts(trace=part, prompts=prompts)


def profiling_steps(session: Session, texts: Texts, log: PassLog, *, seed: int) -> Iterator[Coverage]:
    """Measure pass times inside the running loop over the profiler's grid, with scripted acceptance. Yields after each run."""
    header = texts.trace.header
    traces = [texts.trace.subset([number]) for number in range(len(header.prompts))]

    def decode(policy: Policy | None, token_ids: Sequence[int], new_tokens: Tokens) -> PassSamples:
        return session.generate(token_ids, texts.settings(policy, texts.script_after(token_ids), new_tokens)).samples

    return take_runs(
        decode,
        run_grid(traces, draft_cap=MAX_DRAFT_TOKENS, seed=seed, runs_ahead=True),
        texts.whole,
        needed=needed_passes(len(header.exit_layers), MAX_DRAFT_TOKENS, runs_ahead=True),
        log=log,
        rng=np.random.default_rng(seed),
    )


@dataclass(slots=True, kw_only=True)
class ScriptedArm:
    """One configuration and its runs by prompt, in the order of measurement."""

    name: str
    policy: Policy | None
    runs: list[list[Generation]]

    @property
    def all_runs(self) -> list[Generation]:
        """The runs of all prompts."""
        return [run for runs in self.runs for run in runs]

    @property
    def decode_s(self) -> Seconds:
        """Total time of all rounds."""
        return sum(run.decode_s for run in self.all_runs)

    def decoded(self) -> list[Decoded]:
        """Tokens and seconds by prompt."""
        return [
            Decoded(num_tokens=sum(run.rounds.num_tokens for run in runs), decode_s=sum(run.decode_s for run in runs))
            for runs in self.runs
        ]

    def measured(self, plain: "ScriptedArm") -> Speedup:
        """Speedup over plain decoding of the same prompts. The bootstrap draws prompts, with both arms of each together."""
        seconds = kind_seconds(PassSamples.concat(run.samples for run in self.all_runs))
        cost = mean_round_cost(seconds, num_rounds=sum_rounds(run.rounds for run in self.all_runs).num_rounds)
        return measured_speedup(self.decoded(), plain.decoded(), cost)


def predict(policy: Policy | None, texts: Texts, models: Models) -> Speedup:
    """Predict a configuration from replay and pass times.

    Raises:
        OutOfDomain: it needs a pass that was not profiled.
    """
    return estimate(*models, replay_prompts(texts.trace, policy), replay_prompts(texts.trace, None))


def measure(
    session: Session,
    texts: Texts,
    policies: Mapping[str, Policy | None],
    *,
    num_repeats: int,
    rng: np.random.Generator,
    between: Callable[[], object],
) -> list[ScriptedArm]:
    """Run every arm on every prompt, in a random order and then in reverse. Each arm warms up once without measurement.

    Args:
        session: decodes the texts.
        texts: the texts to decode.
        policies: by arm name; None is plain decoding.
        num_repeats: the number of repeats of the whole measurement.
        rng: for the order.
        between: called before every prompt.

    Raises:
        RuntimeError: the rounds of a run differ from the replayed rounds.
    """
    arms = [ScriptedArm(name=name, policy=policy, runs=[[] for _ in texts.prompts]) for name, policy in policies.items()]
    expected = {arm.name: (replay_prompts(texts.trace, arm.policy), block_lengths(texts.trace, arm.policy)) for arm in arms}

    def run(arm: ScriptedArm, number: int) -> Generation:
        script = texts.scripts[number]
        generation = session.generate(texts.prompts[number], texts.settings(arm.policy, script, script.max_new_tokens))
        rounds, blocks = expected[arm.name]
        if (generation.rounds, generation.blocks) != (rounds[number], blocks[number]):
            raise RuntimeError(f"{arm.name}, prompt {number}: its rounds differ from the replayed rounds")
        return generation

    for arm in arms:
        run(arm, 0)
    for _ in range(num_repeats):
        for number in range(len(texts.prompts)):
            between()
            order = [arms[index] for index in rng.permutation(len(arms))]
            for arm in (*order, *reversed(order)):
                arm.runs[number].append(run(arm, number))
    return arms
