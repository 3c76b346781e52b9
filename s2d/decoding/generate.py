"""The decoding loop, plain and speculative: rounds of draft, verify and roll back.

Plain decoding is the same loop without drafting. The known tokens are x[0..t). At the start of a round the target's cache holds
x[0..t-1): the last known token x[t-1] is the first row of the verification.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.core.errors import BadPolicy, UserInputError
from perfmodel.core.units import Seconds
from perfmodel.passes.passes import PREFILL_KINDS, PassName, PassSamples, is_cold, places, weights_key
from perfmodel.passes.pauses import replace_pauses
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.round_stats import RoundStats, cold_counts, pass_counts
from s2d.decoding.clock import Clock, LapTag
from s2d.decoding.draft import Drafter, Ladder, check_exits
from s2d.decoding.policy_selector import FixedPolicy, PolicySelector
from s2d.decoding.scripted_acceptance import ScriptedAcceptance, scripted_verifier
from s2d.decoding.verify import Verifier, make_verifier
from s2d.loading.load_model import LoadedModel, check_pair, context_tokens
from s2d.model.cache import Cache
from s2d.model.choose_tokens import NoiseTable, new_noise_table
from s2d.model.decoder import SegmentRun
from s2d.model.finite import check_logits, check_states
from s2d.prompts.text import Stop

OnTokens = Callable[[list[int]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to decode any prompt."""

    policy: Policy | None
    """None: plain decoding."""
    sampling: Sampling
    max_new_tokens: int
    eos_token_id: int | None
    stop: Stop | None = None
    script: ScriptedAcceptance | None = None
    """Predictions and target tokens that replace those of the models; None uses the models'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The new tokens of one text, and all passes that produced them."""

    tokens: tuple[int, ...]
    """The new tokens, without the prompt."""
    rounds: RoundStats
    blocks: tuple[tuple[int, int], ...]
    """Drafted and accepted tokens of each round."""
    policies: tuple[Policy | None, ...]
    """The policy of each round."""
    prefill_s: Seconds
    """Time of passes over the prompt: through the target, and through the draft segments that were needed."""
    decode_s: Seconds
    """Time of the rounds. Excludes pauses of the process and the time that the caller spends on the tokens."""
    samples: PassSamples


class Session:
    """The caches of a target and its draft, reused from prompt to prompt.

    Args:
        target: the model whose output is reproduced.
        draft: proposes tokens. None allows plain decoding and, if the target has early exits, self-drafting.
        max_tokens: the maximum length of a text, prompt included.
    """

    def __init__(self, target: LoadedModel, draft: LoadedModel | None, max_tokens: int) -> None:
        check_pair(target, draft)
        self.target = target
        self.draft = draft
        self.exit_layers = draft.exit_layers if draft else target.exit_layers
        self.max_tokens = min(max_tokens, context_tokens(target, draft))
        self._caches: dict[tuple[str, tuple[int, ...]], Cache] = {}
        self._clock = Clock(target.decoder.device)
        self._noise: NoiseTable | None = None
        self._verifiers: dict[tuple[Sampling, str], Verifier] = {}

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        settings: Settings,
        *,
        selector: PolicySelector | None = None,
        clock: Clock | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Generation:
        """Continue one prompt.

        Args:
            prompt_ids: at least one token.
            settings: how to decode.
            selector: chooses the policy of each round; None uses that of the settings throughout.
            clock: times the passes; None uses the session's own.
            on_tokens: receives the tokens of each round once they are final.

        Raises:
            UserInputError: the prompt is empty or too long, or the draft lacks an exit of the policy.
            NotFinite: logits of a model are not finite. The target's are checked at the end of the text.
        """
        selector = selector or FixedPolicy(settings.policy)
        self._check(len(prompt_ids), settings, selector.policies)
        verifier = self._verifier(settings.sampling, selector.policies)
        if settings.script is not None:
            verifier = scripted_verifier(
                verifier,
                settings.script,
                prompt_tokens=len(prompt_ids),
                max_new_tokens=settings.max_new_tokens,
                eos_token_id=settings.eos_token_id,
                exit_layers=self.exit_layers,
            )
        verifier.start(len(prompt_ids), self.max_tokens)
        selector.start_text()
        return _Run(self, list(prompt_ids), settings, selector, verifier).generate(clock or self._clock, on_tokens)

    def cache(self, role: str, segment_ends: tuple[int, ...]) -> Cache:
        """An empty cache for the target or the draft; reuses the one of an earlier call."""
        cache = self._caches.get((role, segment_ends))
        if cache is None:
            model = self.draft if role == "draft" and self.draft else self.target
            cache = self._caches[role, segment_ends] = model.decoder.new_cache(segment_ends, self.max_tokens)
        cache.reset()
        return cache

    def noise(self, sampling: Sampling) -> NoiseTable | None:
        """The noise table shared by target and draft; None unless the rule is shared noise."""
        if self._noise is None or self._noise.seed != sampling.seed:
            decoder = self.target.decoder
            self._noise = new_noise_table(sampling, decoder.vocab_size, decoder.device)
        return self._noise if sampling.rule == "shared-noise" else None

    def _verifier(self, sampling: Sampling, policies: Sequence[Policy | None]) -> Verifier:
        [confidence] = {policy.confidence for policy in policies if policy} or {"max-prob"}
        key = (sampling, confidence)
        if key not in self._verifiers:
            # Keep the verifiers of one sampling only: another seed's noise table would waste memory.
            self._verifiers = {other: verifier for other, verifier in self._verifiers.items() if other[0] == sampling}
            self._verifiers[key] = make_verifier(sampling, confidence, self.target.decoder.device, self.noise(sampling))
        return self._verifiers[key]

    def _check(self, prompt_tokens: int, settings: Settings, policies: Sequence[Policy | None]) -> None:
        for policy in filter(None, policies):
            if not self.exit_layers:
                raise BadPolicy(f"a policy for {self.target.geometry.name}, which has no early exits", "a draft, or no policy")
            check_exits(self.exit_layers, policy)
        if prompt_tokens < 1:
            raise UserInputError("the prompt is empty: expected at least one token. Give some text, or an end-of-text token.")
        if settings.max_new_tokens < 1:
            raise UserInputError(f"max_new_tokens {settings.max_new_tokens}: expected at least 1.")
        if prompt_tokens + settings.max_new_tokens > self.max_tokens:
            raise UserInputError(
                f"a prompt of {prompt_tokens} tokens and {settings.max_new_tokens} new ones do not fit a context of "
                f"{self.max_tokens} tokens: expected at most {self.max_tokens} together. Shorten the prompt, or ask for fewer "
                "new tokens."
            )


class _Run:
    """The state of one text: its tokens, its caches, and the counts of its rounds."""

    def __init__(
        self, session: Session, prompt_ids: list[int], settings: Settings, selector: PolicySelector, verifier: Verifier
    ) -> None:
        self._tokens = prompt_ids
        self._prompt_tokens = len(prompt_ids)
        self._settings = settings
        self._selector = selector
        self._num_exits = len(session.exit_layers)
        self._verifier = verifier
        self._target = session.target.decoder
        is_drafting = any(selector.policies)
        self._is_self_draft = is_drafting and session.draft is None
        depth = session.target.geometry.num_layers
        self._cache = session.cache("target", (*session.exit_layers, depth) if self._is_self_draft else (depth,))
        prompt_rows = self._prompt_tokens - 1
        self._ladder = Ladder(self._target, self._cache, prompt_rows)
        if is_drafting and session.draft:
            self._ladder = Ladder(session.draft.decoder, session.cache("draft", session.exit_layers), prompt_rows)
        self._max_tokens = self._prompt_tokens + settings.max_new_tokens
        eos = settings.eos_token_id
        self._drafters = [
            Drafter(self._ladder, session.exit_layers, policy, verifier, eos) if policy else None
            for policy in selector.policies
        ]
        self._prepare()
        self._blocks: list[tuple[int, int]] = []
        self._policies: list[Policy | None] = []
        self._stop = settings.stop.after(prompt_ids) if settings.stop else None

    def _prepare(self) -> None:
        """Prepare the passes that the rounds may launch: buffers, and CUDA graphs where the decoder uses them."""
        predictor, limits = self._verifier.predictor, (self._prompt_tokens, self._max_tokens)
        runs = set[SegmentRun]().union(*(drafter.runs for drafter in self._drafters if drafter))
        if self._is_self_draft:
            # Verification continues from the draft's states, one segment at a time.
            runs |= {(segment,) for segment in self._cache.segments}
            self._target.prepare(self._cache, *limits, list(runs), predictor)
            return
        self._target.prepare(self._cache, *limits)
        if runs:
            self._ladder.decoder.prepare(self._ladder.cache, *limits, list(runs), predictor)

    def generate(self, clock: Clock, on_tokens: OnTokens | None) -> Generation:
        clock.start()
        self._prefill(clock)
        while not self._round(clock, on_tokens):
            pass
        samples = clock.samples()
        steady = replace_pauses(samples)
        prefill_s = sum(sample.seconds for sample in steady if sample.kind in PREFILL_KINDS)
        new_tokens = self._tokens[self._prompt_tokens :]
        return Generation(
            tokens=tuple(new_tokens),
            rounds=count_rounds(self._blocks, clock.tags, num_tokens=len(new_tokens), exits_taken=self._exits_taken()),
            blocks=tuple(self._blocks),
            policies=tuple(self._policies),
            prefill_s=prefill_s,
            decode_s=sum(steady.seconds) - prefill_s,
            samples=samples,
        )

    def _prefill(self, clock: Clock) -> None:
        """Run the prompt through the target, except its last token, which belongs to the first round."""
        rows = self._prompt_tokens - 1
        if not rows:
            return
        states = self._target.embed(self._tokens[:-1])
        for segment in self._cache.segments:
            states = self._target.forward_segment(states, segment, self._cache)
        clock.lap("target_prefill", 0, rows, 0)

    def _round(self, clock: Clock, on_tokens: OnTokens | None) -> bool:
        """Draft, verify and roll back. Returns whether the text has ended."""
        tokens = self._tokens
        num_known, index = len(tokens), self._selector.index
        drafter = self._drafters[index]
        drafted: list[int] = []
        if drafter is not None:
            drafted = drafter.draft(tokens, min(drafter.cap, self._max_tokens - num_known - 1), clock)
        logits = self._verify(tokens, num_known, clock)
        verification = self._verifier.verify(logits, tokens, num_known)
        clock.lap("verify", 0, len(drafted) + 1, num_known - 1)
        emitted, has_ended = self._cut_at_end([*drafted[: verification.num_accepted], verification.bonus])
        accepted = min(verification.num_accepted, len(emitted))
        tokens[num_known:] = emitted
        self._cache.crop(num_known + accepted)
        if drafter is not None:
            self._ladder.cache.crop(num_known + accepted)
            drafter.observe(len(drafted), accepted)
        self._blocks.append((len(drafted), accepted))
        self._policies.append(self._selector.policies[index])
        self._selector.observe(len(drafted), accepted)
        clock.lap("round", 0, len(drafted), 0)
        if on_tokens is not None:
            on_tokens(emitted)
            clock.skip()
        is_last = has_ended or len(tokens) >= self._max_tokens
        if is_last:
            self._check_finite(logits[: accepted + 1])
        return is_last

    def _verify(self, tokens: list[int], num_known: int, clock: Clock) -> Tensor:
        """The target's logits after the last known token and each drafted token: [G + 1, V].

        With a self-draft, the target starts from the draft's deepest states and runs only the layers after its last exit.
        """
        cache, last = self._cache, self._cache.segments[-1]
        if self._is_self_draft:
            for segment in cache.segments[:-1]:
                if cache.lengths[segment.index] < len(tokens):  # not if it predicted a token that was dropped
                    self._ladder.run((segment,), tokens, clock)
            states = cache.backlog(last.index, len(tokens))
        else:
            states = self._target.embed(tokens[num_known - 1 :])
        return self._target.exit_logits(self._target.forward_segment(states, last, cache))

    def _cut_at_end(self, tokens: list[int]) -> tuple[list[int], bool]:
        """A round's tokens up to the end of the text, and whether the text ends in them."""
        eos, has_ended = self._settings.eos_token_id, False
        if eos is not None and eos in tokens:
            tokens, has_ended = tokens[: tokens.index(eos) + 1], True
        num_kept = self._stop.kept(tokens) if self._stop is not None else None
        return (tokens, has_ended) if num_kept is None else (tokens[:num_kept], True)

    def _check_finite(self, logits: Tensor) -> None:
        """Check once, after everything that is timed, that the target's states and logits were finite over the whole text.

        Args:
            logits: the logits of the last round's kept tokens: [kept, V].

        Raises:
            NotFinite: the states behind a token are not finite, or these logits are not.
        """
        cache = self._cache
        check_states(cache.states[-1][: cache.lengths[-1]], "target", self._target)
        check_logits(logits, "target", self._target)

    def _exits_taken(self) -> tuple[int, ...]:
        """Drafted tokens by exit, over all policies."""
        by_policy = [drafter.exits_taken for drafter in self._drafters if drafter]
        return tuple(map(sum, zip(*by_policy, strict=True))) if by_policy else (0,) * self._num_exits


def count_rounds(
    blocks: Sequence[tuple[int, int]], tags: Sequence[LapTag], *, num_tokens: int, exits_taken: Sequence[int]
) -> RoundStats:
    """Counts over the rounds of one prompt: the record that replay predicts.

    Args:
        blocks: drafted and accepted tokens of each round.
        tags: kind, stage, rows and cached tokens of each pass. Passes over the prompt belong to no round.
        num_tokens: the number of emitted tokens.
        exits_taken: drafted tokens by exit, over all exits of the draft.
    """
    counts: Counter[PassName] = Counter()
    cached: Counter[PassName] = Counter()
    cold: Counter[PassName] = Counter()
    for (kind, stage, rows, cached_tokens), place in zip(tags, places(tag[:2] for tag in tags), strict=True):
        if kind in PREFILL_KINDS:
            continue
        counts[kind, stage, rows] += 1
        cached[kind, stage, rows] += cached_tokens
        if is_cold(kind, place):
            cold[*weights_key(kind, stage), place] += 1
    positions = range(1, max(drafted for drafted, _ in blocks) + 1)
    return RoundStats(
        num_prompts=1,
        num_rounds=len(blocks),
        num_tokens=num_tokens,
        num_drafted=sum(drafted for drafted, _ in blocks),
        num_accepted=float(sum(accepted for _, accepted in blocks)),
        drafted_by_position=tuple(sum(drafted >= position for drafted, _ in blocks) for position in positions),
        accepted_by_position=tuple(float(sum(accepted >= position for _, accepted in blocks)) for position in positions),
        exits_taken=tuple(exits_taken),
        passes=pass_counts(counts, cached),
        cold_passes=cold_counts(cold),
    )
