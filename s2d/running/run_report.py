"""Prompts and a plan to a run report: arms interleaved over the prompts, and the proof that the text is the target's."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

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
from perfmodel.results.report import Adaptation, Arm, Check, Divergence, PolicyShare, PromptRun, RunReport
from s2d.decoding.generate import Generation, OnTokens, Session, Settings
from s2d.decoding.pair import EncodedPrompt, ModelPair, Pair
from s2d.decoding.policy_selector import Controller, PolicySelector
from s2d.decoding.process_logits import Processing
from s2d.loading.memory import TextLimits
from s2d.model.choose_tokens import NoiseTable, new_noise_table
from s2d.model.finite import check_logits, naming_prompt
from s2d.prompts.special_tokens import SpecialTokens
from s2d.prompts.text import Stop

WARM_UP_TOKENS = 16

OnText = Callable[[EncodedPrompt, Generation], EncodedPrompt | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run, besides the models and the prompts."""

    plan_sha256: str | None
    policy: Policy | None
    sampling: Sampling
    max_new_tokens: Tokens
    stop: Stop | None
    check: bool
    """Also decode plainly, compare token by token, and measure the speedup."""
    frontier: tuple[FrontierPoint, ...]
    """What to move along while running; empty where `policy` is to run throughout."""
    special_tokens: SpecialTokens = "parse"
    """How a conversation's later turns are read."""

    def text_limits(self, prompts: Sequence[EncodedPrompt]) -> TextLimits:
        """The longest text that goes on from these prompts. A check asks the target about whole texts, with their noise."""
        longest, num_tables = max(len(prompt.token_ids) for prompt in prompts), 2 if self.check else 1
        return TextLimits(
            max_tokens=longest + self.max_new_tokens,
            prompt_tokens=longest,
            num_noise_tables=num_tables if self.sampling.rule == "shared-noise" else 0,
            teacher_forced=("target",) if self.check else (),
        )

    def settings(self, policy: Policy | None, eos_token_id: int | None) -> Settings:
        """How one arm decodes."""
        return Settings(
            policy=policy,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=eos_token_id,
            stop=self.stop,
        )


def run_report(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    request: RunRequest,
    *,
    on_prompt: Callable[[EncodedPrompt], OnTokens] | None = None,
    on_text: OnText = lambda prompt, generation: None,
) -> RunReport:
    """Run a plan's policy over prompts.

    Args:
        pair: the models.
        prompts: at least one.
        request: the policy and how to decode.
        on_prompt: told of each prompt before the plan's arm decodes it; what it returns gets the tokens.
        on_text: told of each text that the plan's arm has finished; returns the turn of its conversation that is next, if any.

    Raises:
        UserInputError: a check is asked for where output depends on more than seed and target.
    """
    if request.check and request.sampling.rule == "ratio":
        raise UserInputError(
            "--check compares token by token, and under the ratio test the same seed gives other tokens of the same "
            "distribution: expected a plan with greedy or shared-noise sampling. Leave --check out."
        )
    policies = (request.policy, None) if request.check else (request.policy,)
    arms = [request.settings(policy, pair.eos_token_id) for policy in policies]
    controller = Controller(request.frontier) if request.frontier else None
    decoded, found = run_arms(pair, prompts, arms, pilot=controller, on_prompt=on_prompt, on_text=on_text)
    recorded = [_arm(arm.policy, decoded, runs) for arm, runs in zip(arms, found, strict=True)]
    plan_arm, plain_arm = recorded[0], recorded[1] if request.check else None
    return RunReport(
        plan_sha256=request.plan_sha256,
        target=pair.target.geometry,
        target_sha256=pair.target.sha256,
        draft=pair.geometry,
        draft_sha256=pair.draft.sha256,
        device=pair.device_key,
        sampling=request.sampling,
        max_new_tokens=request.max_new_tokens,
        plan_arm=plan_arm,
        plain_arm=plain_arm,
        measured=speedup_of(plan_arm, plain_arm) if plain_arm else None,
        check=check_equal(pair, decoded, request.sampling, found[0], found[1]) if request.check else None,
        adaptation=adaptation_of(controller.policies, found[0]) if controller else None,
    )


def run_arms(
    pair: ModelPair,
    prompts: Sequence[EncodedPrompt],
    arms: Sequence[Settings],
    *,
    pilot: PolicySelector | None = None,
    on_prompt: Callable[[EncodedPrompt], OnTokens] | None = None,
    on_text: OnText = lambda prompt, generation: None,
) -> tuple[list[EncodedPrompt], list[list[Generation]]]:
    """Decode every prompt under every arm; the arms' order turns round from text to text (A B, B A, …).

    A conversation's turns follow one another, and every arm decodes each after the first arm's answers. The arms warm up on
    the first prompt, unmeasured, and again where a conversation outgrows the caches.

    Args:
        pair: the models.
        prompts: at least one.
        arms: how to decode.
        pilot: flies the first arm, from text to text; its settings' policy throughout when None.
        on_prompt: as in `run_report`, for the first arm.
        on_text: likewise.

    Returns:
        what was decoded, later turns included, and by arm one generation of each.
    """
    new_tokens = max(arm.max_new_tokens for arm in arms)
    room = max(len(prompt.token_ids) for prompt in prompts) + new_tokens
    session = _warm_session(pair, room, prompts[0], arms)
    decoded: list[EncodedPrompt] = []
    found: list[list[Generation]] = [[] for _ in arms]
    waiting = deque(prompts)
    while waiting:
        prompt = waiting.popleft()
        needed = len(prompt.token_ids) + new_tokens
        if needed > room:
            room = needed + needed // 2
            del session  # before the larger caches are made
            num_tables = int(any(arm.sampling.rule == "shared-noise" for arm in arms))
            pair.check_memory(TextLimits(max_tokens=room, prompt_tokens=len(prompt.token_ids), num_noise_tables=num_tables))
            session = _warm_session(pair, room, prompt, arms)
        order = range(len(arms)) if len(decoded) % 2 == 0 else reversed(range(len(arms)))
        for place in order:
            is_first = place == 0
            on_tokens = on_prompt(prompt) if on_prompt is not None and is_first else None
            by = pilot if is_first else None
            with naming_prompt(prompt.name):
                found[place].append(session.generate(prompt.token_ids, arms[place], pilot=by, on_tokens=on_tokens))
            if is_first and (following := on_text(prompt, found[place][-1])) is not None:
                waiting.appendleft(following)
        decoded.append(prompt)
    return decoded, found


def _warm_session(pair: ModelPair, max_tokens: Tokens, prompt: EncodedPrompt, arms: Sequence[Settings]) -> Session:
    """Caches for texts of at most so many tokens, in which every arm has gone on from a prompt."""
    session = pair.session(max_tokens)
    for arm in arms:
        with naming_prompt(prompt.name):
            session.generate(prompt.token_ids, replace(arm, max_new_tokens=min(WARM_UP_TOKENS, arm.max_new_tokens)))
    return session


def speedup_of(arm: Arm, plain: Arm) -> Speedup:
    """The measured speedup of one arm over plain decoding of the same prompts."""
    cost = mean_round_cost(kind_seconds(arm.samples), num_rounds=sum_rounds(run.rounds for run in arm.runs).num_rounds)
    return measured_speedup(_decoded(arm), _decoded(plain), cost)


def adaptation_of(policies: Sequence[Policy | None], found: Sequence[Generation]) -> Adaptation:
    """How rounds, tokens and seconds were shared out among the policies of a frontier, over texts in order."""
    rounds = [one for generation in found for one in _policy_rounds(generation)]
    shares = []
    for policy in policies:
        mine = [(tokens, seconds) for followed, tokens, seconds in rounds if followed == policy]
        tokens, seconds = (sum(column) for column in zip((0, 0.0), *mine, strict=True))
        shares.append(PolicyShare(policy=policy, num_rounds=len(mine), num_tokens=int(tokens), decode_s=float(seconds)))
    switches = sum(one[0] != other[0] for one, other in pairwise(rounds))
    return Adaptation(num_switches=switches, shares=tuple(shares))


def _policy_rounds(generation: Generation) -> Iterator[tuple[Policy | None, Tokens, Seconds]]:
    """Policy, emitted tokens and seconds of every round."""
    left, policies = len(generation.tokens), iter(generation.policies)
    blocks, seconds = iter(generation.blocks), 0.0
    for sample in replace_pauses(generation.samples):
        if sample.kind in PREFILL_KINDS:
            continue
        seconds += sample.seconds
        if sample.kind == "round":
            tokens = min(next(blocks)[1] + 1, left)  # an accepted end of text has no bonus
            yield next(policies), tokens, seconds
            left, seconds = left - tokens, 0.0


def paused_passes(report: RunReport) -> list[Pause]:
    """Passes of either arm that its seconds leave out."""
    arms = [report.plan_arm, *([report.plain_arm] if report.plain_arm is not None else [])]
    return [pause for arm in arms for pause in find_pauses(arm.samples).values()]


def check_equal(
    pair: Pair,
    prompts: Sequence[EncodedPrompt],
    sampling: Sampling,
    found: Sequence[Generation],
    plain: Sequence[Generation],
) -> Check:
    """Hold one arm's tokens against the plain target's, and every token against the teacher-forced target.

    A gap is the target's logit (with the position's noise, where noise is shared) of its own choice minus that of the
    emitted token: 0 when they are the same, near 0 for a near-tie that another kernel decides otherwise.
    """
    noise = new_noise_table(sampling, pair.target.decoder.vocab_size, pair.target.decoder.device)
    if noise is not None:
        noise.grow(max(len(prompt.token_ids) + len(mine.tokens) for prompt, mine in zip(prompts, found, strict=True)))
    divergences, worst, num_equal = [], 0.0, 0
    for prompt, mine, its_own in zip(prompts, found, plain, strict=True):
        with naming_prompt(prompt.name):
            gaps = token_gaps(pair, prompt.token_ids, mine.tokens, sampling, noise)
        worst = max(worst, *gaps)
        if mine.tokens == its_own.tokens:
            num_equal += 1
            continue
        place = first_difference(mine.tokens, its_own.tokens)
        gap = gaps[place] if place < len(gaps) else 0.0
        divergences.append(Divergence(prompt=prompt.name, position=place, gap=gap))
    return Check(num_prompts=len(prompts), num_equal=num_equal, worst_gap=worst, divergences=tuple(divergences))


@torch.inference_mode()
def token_gaps(
    pair: ModelPair, prompt_ids: Sequence[int], tokens: Sequence[int], sampling: Sampling, noise: NoiseTable | None = None
) -> list[float]:
    """The gap of every emitted token: see `check_equal`.

    Args:
        pair: whose target.
        prompt_ids: what the text begins with.
        tokens: what was emitted.
        sampling: how they were chosen.
        noise: of that sampling, to share among texts; where None, it is made for this text.

    Raises:
        NotFinite: the target's logits are not finite, so that no gap means anything.
    """
    text = [*prompt_ids, *tokens]
    depth = pair.target.geometry.num_layers
    logits = pair.target.decoder.all_exit_logits(text[:-1], (depth,))[0][len(prompt_ids) - 1 :]
    check_logits(logits, "target", pair.target.decoder)
    logits = Processing(sampling, len(prompt_ids))(logits, text[:-1], len(prompt_ids)).float()
    if noise is None:
        noise = new_noise_table(sampling, logits.shape[-1], logits.device)
    if noise is not None:
        logits = logits + noise.rows(len(prompt_ids), len(text))
    emitted = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    # A token that top-k or top-p forbids lies infinitely far off; files hold finite numbers.
    return (logits.amax(-1) - emitted).clamp(max=torch.finfo(torch.float32).max).tolist()


def first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    """The first place at which two different texts differ, one being longer included."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _arm(policy: Policy | None, prompts: Sequence[EncodedPrompt], found: Sequence[Generation]) -> Arm:
    runs = tuple(
        PromptRun(
            name=prompt.name,
            category=prompt.category,
            prompt_tokens=len(prompt.token_ids),
            rounds=one.rounds,
            prefill_s=one.prefill_s,
            decode_s=one.decode_s,
            distinct_6gram_frac=distinct_ngram_frac(one.tokens),
        )
        for prompt, one in zip(prompts, found, strict=True)
    )
    return Arm(policy=policy, runs=runs, samples=PassSamples.concat(generation.samples for generation in found))


def _decoded(arm: Arm) -> list[Decoded]:
    return [Decoded(num_tokens=run.rounds.num_tokens, decode_s=run.decode_s) for run in arm.runs]
