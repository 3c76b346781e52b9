"""The loop, plain and speculative: rounds of drafting and verifying until the text ends.

Plain decoding is the same loop with nothing drafted. Tokens known so far are x[0..t); the lead is x[t-1]; the target's
cache holds x[0..t-1) when a round begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.core.errors import BadPolicy, UserInputError
from perfmodel.core.units import Seconds
from perfmodel.passes.passes import PREFILL_KINDS, PassSamples
from perfmodel.passes.pauses import replace_pauses
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.round_stats import RoundStats
from s2d.decoding.clock import Clock
from s2d.decoding.count_rounds import count_rounds
from s2d.decoding.draft import Drafter, Ladder, check_exits
from s2d.decoding.policy_selector import FixedPolicy, PolicySelector
from s2d.decoding.scripted_acceptance import ScriptedAcceptance, overruled
from s2d.decoding.verify import Verifier, make_verifier
from s2d.loading.compatible import check_pair, context_tokens
from s2d.loading.load_model import LoadedModel
from s2d.model.cache import Cache
from s2d.model.choose_tokens import ExitPredictor, NoiseTable, new_noise_table
from s2d.model.decoder import SegmentRun
from s2d.model.finite import check_logits, check_states
from s2d.prompts.text import Stop

OnTokens = Callable[[list[int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to decode, whatever the prompt."""

    policy: Policy | None
    """None: plain decoding."""
    sampling: Sampling
    max_new_tokens: int
    eos_token_id: int | None
    stop: Stop | None = None
    script: ScriptedAcceptance | None = None
    """What exits and target are made to say; None leaves it to the models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What was written, and every pass it took."""

    tokens: tuple[int, ...]
    """The new tokens, without the prompt."""
    rounds: RoundStats
    blocks: tuple[tuple[int, int], ...]
    """Drafted and accepted tokens of every round."""
    policies: tuple[Policy | None, ...]
    """What every round followed."""
    prefill_s: Seconds
    """Of the passes over the prompt: the target's, and those of the draft's segments that were ever needed."""
    decode_s: Seconds
    """Of the rounds. Neither what the caller does with the tokens nor a pause of the process is counted."""
    samples: PassSamples


def generate(
    target: LoadedModel,
    draft: LoadedModel | None,
    prompt_ids: list[int],
    *,
    policy: Policy | None,
    sampling: Sampling,
    max_new_tokens: int,
    eos_token_id: int | None,
    stop: Stop | None = None,
    clock: Clock | None = None,
    on_tokens: OnTokens | None = None,
) -> Generation:
    """Write after one prompt; for several, keep a `Session`.

    Without a draft and with a policy the target drafts for itself, from its own early exits.

    Raises:
        UserInputError: a prompt that is empty or does not fit, exits that the draft does not have, other vocabularies.
    """
    settings = Settings(policy=policy, sampling=sampling, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id, stop=stop)
    session = Session(target, draft, len(prompt_ids) + max_new_tokens)
    return session.generate(prompt_ids, settings, clock=clock, on_tokens=on_tokens)


class Session:
    """Caches of a target and its draft, reused from prompt to prompt.

    Args:
        target: decides.
        draft: proposes; None leaves plain decoding and, where the target has early exits, self-drafting.
        max_tokens: the longest text, prompt included.
    """

    def __init__(self, target: LoadedModel, draft: LoadedModel | None, max_tokens: int) -> None:
        check_pair(target, draft)
        self.target = target
        self.draft = draft
        self.exit_layers = draft.exit_layers if draft else target.exit_layers
        self._max_tokens = min(max_tokens, context_tokens(target, draft))
        self._caches: dict[tuple[str, tuple[int, ...]], Cache] = {}
        self._clock = Clock(target.decoder.device)
        self._noise: NoiseTable | None = None
        self._judges: dict[tuple[Sampling, str], Verifier] = {}

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        settings: Settings,
        *,
        pilot: PolicySelector | None = None,
        clock: Clock | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Write after one prompt.

        Args:
            prompt_ids: at least one token.
            settings: how.
            pilot: says round by round which policy to follow; the settings' throughout when None.
            clock: measures the passes; the session's own when None.
            on_tokens: gets the tokens of every round as soon as they are certain.

        Raises:
            UserInputError: the prompt is empty or does not fit, or the policy asks for exits that are not there.
            NotFinite: logits of a model are not finite; the target's are looked at when the text has ended.
        """
        pilot = pilot or FixedPolicy(settings.policy)
        self._check(len(prompt_ids), settings, pilot.policies)
        clock = clock or self._clock
        verifier = self._judge(settings.sampling, pilot.policies)
        if settings.script:
            known, new, eos = len(prompt_ids), settings.max_new_tokens, settings.eos_token_id
            verifier = overruled(verifier, settings.script, known, new, eos, self.exit_layers)
        verifier.start(len(prompt_ids), self._max_tokens)
        pilot.begin()
        return _Run(self, list(prompt_ids), settings, pilot, verifier, clock, on_tokens).generate()

    def cache(self, role: str, segment_ends: tuple[int, ...]) -> Cache:
        """An empty cache for the target or the draft, kept from earlier calls where there is one."""
        found = self._caches.get((role, segment_ends))
        if found is None:
            model = self.draft if role == "draft" and self.draft else self.target
            found = self._caches[role, segment_ends] = model.decoder.new_cache(segment_ends, self._max_tokens)
        found.reset()
        return found

    def _judge(self, sampling: Sampling, policies: Sequence[Policy | None]) -> Verifier:
        [confidence] = {policy.confidence for policy in policies if policy} or {"max-prob"}
        key = (sampling, confidence)
        if key not in self._judges:
            # One run's noise at a time: another seed's table would only fill the memory.
            self._judges = {known: verifier for known, verifier in self._judges.items() if known[0] == sampling}
            self._judges[key] = make_verifier(sampling, confidence, self.target.decoder.device, self.noise(sampling))
        return self._judges[key]

    def noise(self, sampling: Sampling) -> NoiseTable | None:
        """The table that target and draft share where tokens are sampled so; None under other rules."""
        if self._noise is None or self._noise.seed != sampling.seed:
            decoder = self.target.decoder
            self._noise = new_noise_table(sampling, decoder.vocab_size, decoder.device)
        return self._noise if sampling.rule == "shared-noise" else None

    def _check(self, prompt_tokens: int, settings: Settings, policies: Sequence[Policy | None]) -> None:
        for policy in filter(None, policies):
            if not self.exit_layers:
                raise BadPolicy(f"a policy for {self.target.geometry.name}, which has no early exits", "a draft, or no policy")
            check_exits(self.exit_layers, policy)
        if prompt_tokens < 1:
            raise UserInputError("the prompt is empty: expected at least one token. Give some text, or an end-of-text token.")
        if settings.max_new_tokens < 1:
            raise UserInputError(f"max_new_tokens {settings.max_new_tokens}: expected at least 1.")
        if prompt_tokens + settings.max_new_tokens > self._max_tokens:
            raise UserInputError(
                f"a prompt of {prompt_tokens} tokens and {settings.max_new_tokens} new ones do not fit a context of "
                f"{self._max_tokens} tokens: expected at most {self._max_tokens} together. Shorten the prompt, or ask for "
                f"fewer new tokens."
            )


class _Run:
    """One text: its tokens, the caches it fills, and what its rounds counted."""

    def __init__(
        self,
        session: Session,
        prompt_ids: list[int],
        settings: Settings,
        pilot: PolicySelector,
        verifier: Verifier,
        clock: Clock,
        on_tokens: OnTokens | None,
    ) -> None:
        self._tokens = prompt_ids
        self._prompt_tokens = len(prompt_ids)
        self._settings = settings
        self._pilot = pilot
        self._num_exits = len(session.exit_layers)
        self._judge = verifier
        self._clock = clock
        self._on_tokens = on_tokens
        self._target = session.target.decoder
        is_drafting = any(pilot.policies)
        self._is_self_draft = is_drafting and session.draft is None
        depth = session.target.geometry.num_layers
        self._cache = session.cache("target", (*session.exit_layers, depth) if self._is_self_draft else (depth,))
        prompt_rows = self._prompt_tokens - 1
        self._ladder = Ladder(self._target, self._cache, prompt_rows)
        if is_drafting and session.draft:
            self._ladder = Ladder(session.draft.decoder, session.cache("draft", session.exit_layers), prompt_rows)
        self._limit = self._prompt_tokens + settings.max_new_tokens
        eos = settings.eos_token_id
        self._drafters = [
            Drafter(self._ladder, session.exit_layers, policy, verifier, eos) if policy else None for policy in pilot.policies
        ]
        self._prepare(verifier.choice)
        self._blocks: list[tuple[int, int]] = []
        self._policies: list[Policy | None] = []
        self._stop = settings.stop.after(prompt_ids) if settings.stop else None

    def _prepare(self, choice: ExitPredictor | None) -> None:
        """Make ready what the rounds will launch."""
        runs = set[SegmentRun]().union(*(drafter.runs for drafter in self._drafters if drafter))
        if self._is_self_draft:  # verification goes on from the draft's states, segment by segment
            self._target.prepare(self._cache, self._prompt_tokens, self._limit, list(runs | _singly(self._cache)), choice)
            return
        self._target.prepare(self._cache, self._prompt_tokens, self._limit)
        if runs:
            self._ladder.decoder.prepare(self._ladder.cache, self._prompt_tokens, self._limit, list(runs), choice)

    def generate(self) -> Generation:
        self._clock.start()
        self._prefill()
        while not self._round():
            pass
        samples = self._clock.samples()
        steady = replace_pauses(samples)
        prefill_s = sum(sample.seconds for sample in steady if sample.kind in PREFILL_KINDS)
        written = self._tokens[self._prompt_tokens :]
        return Generation(
            tokens=tuple(written),
            rounds=count_rounds(self._blocks, self._clock.tags, num_tokens=len(written), exits_taken=self._exits_taken()),
            blocks=tuple(self._blocks),
            policies=tuple(self._policies),
            prefill_s=prefill_s,
            decode_s=sum(steady.seconds) - prefill_s,
            samples=samples,
        )

    def _prefill(self) -> None:
        """The target's pass over all of the prompt but its last token, which leads the first round."""
        rows = self._prompt_tokens - 1
        if not rows:
            return
        states = self._target.embed(self._tokens[:-1])
        for segment in self._cache.segments:
            states = self._target.forward_segment(states, segment, self._cache)
        self._clock.lap("target_prefill", 0, rows, 0)

    def _round(self) -> bool:
        """Draft, verify, roll back; returns whether the text has ended."""
        tokens = self._tokens
        known, at = len(tokens), self._pilot.at
        drafter = self._drafters[at]
        drafted: list[int] = []
        if drafter is not None:
            drafted = drafter.draft(tokens, min(drafter.cap, self._limit - known - 1), self._clock)
        logits = self._verify(tokens, known)
        verdict = self._judge.verdict(logits, tokens, known)
        self._clock.lap("verify", 0, len(drafted) + 1, known - 1)
        emitted, ended = self._emitted([*drafted[: verdict.num_accepted], verdict.bonus])
        accepted = min(verdict.num_accepted, len(emitted))
        tokens[known:] = emitted
        self._cache.crop(known + accepted)
        if drafter is not None:
            self._ladder.cache.crop(known + accepted)
            drafter.observe(len(drafted), accepted)
        self._blocks.append((len(drafted), accepted))
        self._policies.append(self._pilot.policies[at])
        self._pilot.observe(len(drafted), accepted)
        self._clock.lap("round", 0, len(drafted), 0)
        if self._on_tokens is not None:
            self._on_tokens(emitted)
            self._clock.skip()
        is_last = ended or len(tokens) >= self._limit
        if is_last:
            self._check_finite(logits[: accepted + 1])
        return is_last

    def _check_finite(self, logits: Tensor) -> None:
        """Refuse a text in which the target's numbers were not finite: once, behind everything that is timed.

        Args:
            logits: of the last round, for the tokens that it kept: [kept, V].

        Raises:
            NotFinite: the states behind some token, or these logits.
        """
        cache = self._cache
        check_states(cache.states[-1][: cache.lengths[-1]], "target", self._target)
        check_logits(logits, "target", self._target)

    def _verify(self, tokens: list[int], known: int) -> Tensor:
        """The target's logits after the lead and each drafted token: [G + 1, V].

        A self draft's deepest states are taken over: what is left to run are the layers after its last exit.
        """
        cache, last = self._cache, self._cache.segments[-1]
        if self._is_self_draft:
            for segment in cache.segments[:-1]:
                self._ladder.run((segment,), tokens, self._clock)
            states = cache.backlog(last.index, len(tokens))
        else:
            states = self._target.embed(tokens[known - 1 :])
        return self._target.exit_logits(self._target.forward_segment(states, last, cache))

    def _exits_taken(self) -> tuple[int, ...]:
        """Drafted tokens by exit, whatever the policy."""
        by_policy = [drafter.exits_taken for drafter in self._drafters if drafter]
        return tuple(map(sum, zip(*by_policy, strict=True))) if by_policy else (0,) * self._num_exits

    def _emitted(self, certain: list[int]) -> tuple[list[int], bool]:
        """The round's certain tokens, cut where the text ends, and whether it does."""
        emitted, ended = certain, False
        if self._settings.eos_token_id in emitted:
            emitted = emitted[: emitted.index(self._settings.eos_token_id) + 1]
            ended = True
        if self._stop is not None:
            kept = self._stop.kept(emitted)
            if kept is not None:
                return emitted[:kept], True
        return emitted, ended


def _singly(cache: Cache) -> set[SegmentRun]:
    """Every segment by itself."""
    return {(segment,) for segment in cache.segments}
