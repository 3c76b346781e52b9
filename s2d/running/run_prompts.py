"""Decode prompts under a policy and, on request, plainly; report the measurements."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from perfmodel.acceptance.trace import distinct_ngram_frac
from perfmodel.core.errors import UserInputError
from perfmodel.core.units import Seconds, Tokens
from perfmodel.passes.passes import PREFILL_KINDS, PassSamples
from perfmodel.passes.pauses import Pause, find_pauses, kind_seconds, replace_pauses
from perfmodel.policies.frontier import FrontierPoint
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import Sampling
from perfmodel.replay.estimate import Decoded, Speedup, mean_round_cost, measured_speedup
from perfmodel.replay.round_stats import sum_rounds
from perfmodel.results.report import Adaptation, Arm, PolicyShare, PromptRun, RunReport
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Generation, OnTokens, Session, Settings
from s2d.decoding.pair import ModelPair, Pair
from s2d.decoding.policy_selector import AdaptivePolicy, PolicySelector
from s2d.loading.memory import TextLimits
from s2d.model.finite import naming_prompt
from s2d.prompts.text import Stop
from s2d.running.compare_outputs import compare_outputs

WARM_UP_TOKENS = 16

OnPrompt = Callable[[EncodedPrompt], OnTokens]
"""Called before each prompt; what it returns receives the prompt's new tokens."""
OnText = Callable[[EncodedPrompt, Generation], EncodedPrompt | None]
"""Called with each finished text; returns the next turn of its conversation, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run decodes its prompts."""

    policy: Policy | None
    sampling: Sampling
    max_new_tokens: Tokens
    stop: Stop | None = None
    check: bool = False
    """Also decode plainly, compare token by token, and measure the speedup."""
    frontier: tuple[FrontierPoint, ...] = ()
    """The policies to adapt among while running; empty runs `policy` throughout."""

    def text_limits(self, prompts: Sequence[EncodedPrompt]) -> TextLimits:
        """The limits of the longest text. A check runs the target over whole texts and needs their noise a second time."""
        prompt_tokens, num_tables = max(len(prompt.token_ids) for prompt in prompts), 2 if self.check else 1
        return TextLimits(
            max_tokens=prompt_tokens + self.max_new_tokens,
            prompt_tokens=prompt_tokens,
            num_noise_tables=num_tables if self.sampling.rule == "shared-noise" else 0,
            teacher_forced=("target",) if self.check else (),
        )

    def decoding(self, policy: Policy | None, eos_token_id: int | None) -> Settings:
        """The settings of one arm."""
        return Settings(
            policy=policy,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=eos_token_id,
            stop=self.stop,
        )


def run_prompts(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    settings: RunSettings,
    *,
    on_prompt: OnPrompt | None = None,
    on_text: OnText = lambda prompt, generation: None,
) -> RunReport:
    """Run a policy over prompts.

    Args:
        pair: the models.
        prompts: at least one.
        settings: the policy, and how to decode.
        on_prompt: called before the policy's arm decodes each prompt.
        on_text: called with each text of the policy's arm.

    Raises:
        UserInputError: a check under the ratio test: its output depends on more than the seed and the target.
    """
    if settings.check and settings.sampling.rule == "ratio":
        raise UserInputError(
            "--check compares token by token, but under the ratio test the same seed gives other tokens of the same "
            "distribution: expected a plan with greedy or shared-noise sampling. Leave --check out."
        )
    policies = (settings.policy, None) if settings.check else (settings.policy,)
    arms = [settings.decoding(policy, pair.eos_token_id) for policy in policies]
    selector = AdaptivePolicy(settings.frontier) if settings.frontier else None
    decoded, generations = run_arms(pair, prompts, arms, selector=selector, on_prompt=on_prompt, on_text=on_text)
    plan_arm, *plain_arms = (_arm(arm.policy, decoded, texts) for arm, texts in zip(arms, generations, strict=True))
    plain_arm = plain_arms[0] if plain_arms else None
    return RunReport(
        plan_sha256=None,
        target=pair.target.geometry,
        target_sha256=pair.target.sha256,
        draft=pair.geometry,
        draft_sha256=pair.draft.sha256,
        device=pair.device_key,
        sampling=settings.sampling,
        max_new_tokens=settings.max_new_tokens,
        plan_arm=plan_arm,
        plain_arm=plain_arm,
        measured=arm_speedup(plan_arm, plain_arm) if plain_arm else None,
        check=compare_outputs(pair, decoded, settings.sampling, *generations) if settings.check else None,
        adaptation=summarise_adaptation(selector.policies, generations[0]) if selector else None,
    )


def run_arms(
    pair: ModelPair,
    prompts: Sequence[EncodedPrompt],
    arms: Sequence[Settings],
    *,
    selector: PolicySelector | None = None,
    on_prompt: OnPrompt | None = None,
    on_text: OnText = lambda prompt, generation: None,
) -> tuple[list[EncodedPrompt], list[list[Generation]]]:
    """Decode each prompt under each arm. The order of the arms alternates from text to text (A B, B A, …).

    The turns of a conversation are decoded in order. In all arms a turn follows the answers of the first arm. The arms warm up,
    unmeasured, on the first prompt, and again when a conversation outgrows the caches.

    Args:
        pair: the models.
        prompts: at least one.
        arms: how each arm decodes.
        selector: chooses the policies of the first arm; None uses its settings throughout.
        on_prompt: called before the first arm decodes each prompt.
        on_text: called with each text of the first arm.

    Returns:
        the decoded prompts, later turns included, and for each arm one generation of each.
    """
    new_tokens = max(arm.max_new_tokens for arm in arms)
    max_tokens = max(len(prompt.token_ids) for prompt in prompts) + new_tokens
    session = _warm_session(pair, max_tokens, prompts[0], arms)
    decoded: list[EncodedPrompt] = []
    generations: list[list[Generation]] = [[] for _ in arms]
    queue = deque(prompts)
    while queue:
        prompt = queue.popleft()
        needed = len(prompt.token_ids) + new_tokens
        if needed > max_tokens:
            max_tokens = needed + needed // 2
            del session  # frees its caches before the larger ones are allocated
            num_tables = int(any(arm.sampling.rule == "shared-noise" for arm in arms))
            limits = TextLimits(max_tokens=max_tokens, prompt_tokens=len(prompt.token_ids), num_noise_tables=num_tables)
            pair.check_memory(limits)
            session = _warm_session(pair, max_tokens, prompt, arms)
        order = range(len(arms)) if len(decoded) % 2 == 0 else reversed(range(len(arms)))
        for index in order:
            is_first = index == 0
            on_tokens = on_prompt(prompt) if on_prompt is not None and is_first else None
            with naming_prompt(prompt.name):
                generation = session.generate(
                    prompt.token_ids, arms[index], selector=selector if is_first else None, on_tokens=on_tokens
                )
            generations[index].append(generation)
            if is_first and (next_turn := on_text(prompt, generation)) is not None:
                queue.appendleft(next_turn)
        decoded.append(prompt)
    return decoded, generations


def _warm_session(pair: ModelPair, max_tokens: Tokens, prompt: EncodedPrompt, arms: Sequence[Settings]) -> Session:
    """A session in which each arm has already decoded a few tokens."""
    session = pair.session(max_tokens)
    for arm in arms:
        with naming_prompt(prompt.name):
            session.generate(prompt.token_ids, replace(arm, max_new_tokens=min(WARM_UP_TOKENS, arm.max_new_tokens)))
    return session


def arm_speedup(arm: Arm, plain: Arm) -> Speedup:
    """The measured speedup of one arm over plain decoding of the same prompts."""
    decoded, decoded_plainly = (
        [Decoded(num_tokens=run.rounds.num_tokens, decode_s=run.decode_s) for run in measured.runs] for measured in (arm, plain)
    )
    num_rounds = sum_rounds(run.rounds for run in arm.runs).num_rounds
    return measured_speedup(decoded, decoded_plainly, mean_round_cost(kind_seconds(arm.samples), num_rounds=num_rounds))


def summarise_adaptation(policies: Sequence[Policy | None], generations: Sequence[Generation]) -> Adaptation:
    """Rounds, tokens and seconds of each policy of a frontier, over all texts in order."""
    rounds = [round_ for generation in generations for round_ in _policy_rounds(generation)]
    shares = []
    for policy in policies:
        own = [(tokens, seconds) for chosen, tokens, seconds in rounds if chosen == policy]
        tokens, seconds = (sum(column) for column in zip((0, 0.0), *own, strict=True))
        shares.append(PolicyShare(policy=policy, num_rounds=len(own), num_tokens=int(tokens), decode_s=float(seconds)))
    num_switches = sum(before[0] != after[0] for before, after in pairwise(rounds))
    return Adaptation(num_switches=num_switches, shares=tuple(shares))


def _policy_rounds(generation: Generation) -> Iterator[tuple[Policy | None, Tokens, Seconds]]:
    """The policy, the emitted tokens and the seconds of each round."""
    remaining, policies = len(generation.tokens), iter(generation.policies)
    blocks, seconds = iter(generation.blocks), 0.0
    for sample in replace_pauses(generation.samples):
        if sample.kind in PREFILL_KINDS:
            continue
        seconds += sample.seconds
        if sample.kind == "round":
            tokens = min(next(blocks)[1] + 1, remaining)  # an accepted end of text has no bonus
            yield next(policies), tokens, seconds
            remaining, seconds = remaining - tokens, 0.0


def paused_passes(report: RunReport) -> list[Pause]:
    """The pauses of the process in both arms, which their seconds exclude."""
    arms = [report.plan_arm, *([report.plain_arm] if report.plain_arm is not None else [])]
    return [pause for arm in arms for pause in find_pauses(arm.samples).values()]


def _arm(policy: Policy | None, prompts: Sequence[EncodedPrompt], generations: Sequence[Generation]) -> Arm:
    runs = tuple(
        PromptRun(
            name=prompt.name,
            category=prompt.category,
            prompt_tokens=len(prompt.token_ids),
            rounds=generation.rounds,
            prefill_s=generation.prefill_s,
            decode_s=generation.decode_s,
            distinct_6gram_frac=distinct_ngram_frac(generation.tokens),
        )
        for prompt, generation in zip(prompts, generations, strict=True)
    )
    return Arm(policy=policy, runs=runs, samples=PassSamples.concat(generation.samples for generation in generations))
