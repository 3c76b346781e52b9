"""A simulated engine: profiles with known seconds of verification, draft and overhead, and the truth to compare fits with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from perfmodel.acceptance.trace import Trace
from perfmodel.engines.engine import Engine, RoundShape
from perfmodel.engines.engine_profile import EngineCall, EngineProfile, EngineRun, EngineSetting
from perfmodel.engines.known_engines import S2D
from perfmodel.engines.round_shape import with_round_shape
from perfmodel.policies.policy import Policy
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import RoundStats

SETTING = EngineSetting(
    engine="llama.cpp", version="b1", weights="f32", device="a CPU", num_devices=1, num_threads=1, options=()
)


def bent(rows: int) -> float:
    """Plain steps of a verification: flat to 2 rows, then steep, as q8_0 kernels are."""
    return float(np.interp(rows, (1, 2, 4, 9, 13), (1.0, 1.1, 2.4, 3.5, 5.0)))


@dataclass(frozen=True, kw_only=True)
class SimulatedEngine:
    """Seconds of an engine's passes."""

    shape: RoundShape = field(default_factory=RoundShape)
    verify_steps: Callable[[int], float] = bent
    plain_s: float = 2e-3
    overhead_s: float = 5e-5
    draft_pass_s: float = 8e-5
    draft_layer_s: float = 6e-5
    cold_layer_s: float = 3e-5
    noise_frac: float = 0.0
    counts: bool = True
    timers: bool = False

    @property
    def engine(self) -> Engine:
        """A row of the table of engines with this shape."""
        return replace(S2D, name="llama.cpp", round_shape=self.shape)

    def draft_s(self, exit_layer: int, rounds: RoundStats) -> float:
        """Seconds of all draft passes. A block that is read again costs as much more as it does in the target.

        Args:
            exit_layer: the exit.
            rounds: with the passes of the engine.
        """
        heads, layers = self._passes("exit", rounds), self._passes("segment", rounds)
        drafting = rounds.drafted_by_position[0] if rounds.drafted_by_position else 0
        return heads * self.draft_pass_s + (layers * self.draft_layer_s + drafting * self.cold_layer_s) * exit_layer

    def _passes(self, kind: str, rounds: RoundStats) -> float:
        """Passes through an exit, or through the first segment, in passes of one row."""
        is_wide = self.shape.rereads_block or self.shape.starts_with_block
        return sum(
            part.num_passes * (self.verify_steps(part.rows) if is_wide else 1.0)
            for part in rounds.passes
            if part.kind == kind and (kind == "exit" or part.stage == 0)
        )

    def verify_s(self, rounds: RoundStats) -> float:
        """Seconds of all verifications."""
        return self.plain_s * sum(
            part.num_passes * self.verify_steps(part.rows) for part in rounds.passes if part.kind == "verify"
        )

    def decode_s(self, exit_layer: int | None, rounds: RoundStats) -> float:
        """Seconds of all rounds."""
        if exit_layer is None:
            return self.plain_s * rounds.num_rounds
        overhead_s = self.overhead_s * rounds.drafted_by_position[0]
        return self.verify_s(rounds) + self.draft_s(exit_layer, rounds) + overhead_s

    def rounds(self, trace: Trace, policy: Policy | None) -> list[RoundStats]:
        """The rounds of each prompt, with the passes of the engine."""
        return [with_round_shape(stats, self.shape, policy) for stats in replay_prompts(trace, policy)]

    def speedup(self, trace: Trace, exit_layer: int, tokens: int) -> float:
        """The true speedup of a configuration on a trace."""
        rounds, plain = (self.rounds(trace, policy) for policy in (Policy(exits=(exit_layer,), tokens=tokens), None))
        spent = sum(self.decode_s(exit_layer, stats) for stats in rounds)
        return sum(self.decode_s(None, stats) for stats in plain) / spent

    def profile(
        self,
        trace: Trace,
        exits: Sequence[int],
        lengths: Sequence[int],
        *,
        repeats: int = 2,
        alone: Sequence[int] = (),
        seed: int = 0,
    ) -> EngineProfile:
        """A profile of the engine on the prompts of a trace; the first token of each comes from the prompt's pass."""
        rng, header = np.random.default_rng(seed), trace.header
        after_first = trace.without_first(1)

        def run(exit_layer: int | None, tokens: int) -> EngineRun:
            policy = None if exit_layer is None else Policy(exits=(exit_layer,), tokens=tokens)
            by_prompt = zip(header.prompts, self.rounds(after_first, policy), strict=True)
            calls = [
                self._call(prompt.name, prompt.prompt_tokens, exit_layer, stats, rng)
                for prompt, stats in by_prompt
                for _ in range(repeats)
            ]
            return EngineRun(exit_layer=exit_layer, draft_tokens=tokens, floor=None, is_draft_alone=False, calls=tuple(calls))

        def alone_run(exit_layer: int) -> EngineRun:
            single_s = self.draft_pass_s + self.draft_layer_s * exit_layer
            calls = tuple(
                replace(call, decode_s=single_s * (call.num_tokens - 1) * self._noise(rng)) for call in run(None, 0).calls
            )
            return EngineRun(exit_layer=exit_layer, draft_tokens=0, floor=None, is_draft_alone=True, calls=calls)

        drafted = [run(layer, tokens) for layer in exits for tokens in lengths]
        return EngineProfile(
            setting=SETTING,
            target=header.target,
            target_sha256=header.target_sha256 or "a" * 64,
            draft=header.draft,
            draft_sha256=header.draft_sha256 or "b" * 64,
            tokenizer_sha256=None,
            max_new_tokens=header.max_new_tokens,
            runs=(run(None, 0), *drafted, *(alone_run(layer) for layer in alone or exits)),
        )

    def _noise(self, rng: np.random.Generator) -> float:
        return float(np.exp(self.noise_frac * rng.standard_normal()))

    def _call(
        self, name: str, prompt_tokens: int, exit_layer: int | None, rounds: RoundStats, rng: np.random.Generator
    ) -> EngineCall:
        is_counted, is_timed = self.counts and exit_layer is not None, self.timers and exit_layer is not None
        noise = self._noise(rng)
        return EngineCall(
            prompt=name,
            prompt_tokens=prompt_tokens,
            num_tokens=rounds.num_tokens + 1,
            decode_s=self.decode_s(exit_layer, rounds) * noise,
            output_sha256="0" * 64,
            num_rounds=rounds.num_rounds if is_counted else None,
            num_drafted=rounds.num_drafted if is_counted else None,
            num_accepted=int(rounds.num_accepted) if is_counted else None,
            draft_s=self.draft_s(exit_layer or 0, rounds) * noise if is_timed else None,
            verify_s=self.verify_s(rounds) * noise if is_timed else None,
        )
