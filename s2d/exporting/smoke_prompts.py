"""The prompts of a smoke test, and the acceptance that the plan expects on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerFast

from perfmodel.acceptance.trace import TRACE_FILE, Trace
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.files import FileFormat
from perfmodel.core.units import Frac, Tokens
from perfmodel.replay.replay import replay_prompts
from perfmodel.replay.round_stats import sum_rounds
from perfmodel.results.plan import Plan
from s2d.loading.model_folder import FAMILY_PROMPTS
from s2d.prompt_files.choose import choose_prompts
from s2d.prompt_files.load_prompts import PromptSource
from s2d.prompt_files.read_as import ReadAs
from s2d.prompts.conversation import Conversation, Prompt
from s2d.prompts.special_tokens import text_ids

NUM_PROMPTS = 10
MAX_NEW_TOKENS: Tokens = 96
MIN_OUTPUT_TOKENS: Tokens = 8
"""Shorter texts say little about acceptance."""
EXACT_TOLERANCE: Frac = 0.05
"""For weights in 32 bits. The engines' first token comes from the prompt's pass, which moves the blocks of a text by one."""
ROUNDED_TOLERANCE: Frac = 0.15
"""For other weights. A bf16 engine accepted 0 to 9 % fewer tokens per round than a trace in fp32."""
OTHER_PROMPTS_TOLERANCE: Frac = 0.35
"""Where the plan's acceptance is of other prompts: ten prompts scatter widely."""
EXACT_WEIGHTS = ("f32", "fp32", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokePrompt:
    """One prompt, and what the trace expects of it. None: there is no trace."""

    name: str
    text: str
    token_ids: tuple[int, ...]
    max_new_tokens: Tokens
    """Tokens to generate, an end-of-text token ignored."""
    expected_tokens: tuple[int, ...] | None
    """The target's text in the trace."""
    num_rounds: int | None
    num_accepted: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeTest:
    """All that `smoke_test.py` needs to run an engine and to judge it."""

    engine: str
    weights: str
    target: str
    draft: str
    draft_tokens: Tokens
    floor: float | None
    num_threads: int | None
    context_tokens: Tokens
    acceptance_length: float
    """Expected tokens per round: the accepted ones, and the bonus."""
    tolerance_frac: Frac
    """A measured length lower by more than this fails the test."""
    expected_from: str
    """`the replay of these prompts`, or `the plan, over other prompts`."""
    has_exact_text: bool
    """Whether speculative text must equal plain text: true for weights in 32 bits. Otherwise near-ties may differ."""
    prompts: tuple[SmokePrompt, ...]


SMOKE_TEST_FILE = FileFormat(record=SmokeTest, schema="s2d/smoke-test", made_with="s2d-plan export")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptRequest:
    """Where the prompts of a smoke test come from."""

    prompts: PathLike | Sequence[str | Prompt] | None = None
    """A prompt file, or the prompts themselves; None takes those of the reference family."""
    read_as: ReadAs = field(default_factory=lambda: ReadAs(use="prompt"))
    chat: bool = False
    """Put each prompt into the tokenizer's chat template, as `s2d-profile --chat` did."""
    trace: PathLike | Trace | None = None
    """The trace that the plan was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """Prompts with the acceptance expected on them."""

    prompts: tuple[SmokePrompt, ...]
    acceptance_length: float
    tolerance_frac: Frac
    source: str


def expectation(request: PromptRequest, plan: Plan, tokenizer: PreTrainedTokenizerFast, weights: str) -> Expectation:
    """Ten prompts, and the acceptance that the trace or else the plan expects on them.

    Args:
        request: prompts and trace.
        plan: the exported plan.
        tokenizer: of target and draft.
        weights: the engine's word, which decides how exact the acceptance is.

    Raises:
        UserInputError: no prompt is usable, or the trace has none of them.
        Mismatch: the trace is of other models.
    """
    if request.trace is None:
        return _from_plan(request, plan, tokenizer)
    trace = request.trace if isinstance(request.trace, Trace) else TRACE_FILE.read(request.trace).record
    return _from_trace(request, plan, trace, tokenizer, weights)


def _from_plan(request: PromptRequest, plan: Plan, tokenizer: PreTrainedTokenizerFast) -> Expectation:
    """Prompts of the evaluation half, with the plan's acceptance over all of its evidence."""
    source = PromptSource(
        prompts=request.prompts,
        default=FAMILY_PROMPTS,
        read_as=request.read_as,
        split="all",
        num_prompts=NUM_PROMPTS,
    )
    encoded = [(prompt, _token_ids(prompt, tokenizer, request)) for prompt in source.load(first_turns=True)]
    max_new_tokens = min(MAX_NEW_TOKENS, plan.workload.output_tokens)
    fitting = [(prompt, ids) for prompt, ids in encoded if ids and len(ids) + max_new_tokens <= _context_tokens(plan)]
    if not fitting:
        raise UserInputError(
            f"no prompt fits the context of {_context_tokens(plan)} tokens with {max_new_tokens} new ones: expected shorter "
            "prompts. Give others with --prompts."
        )
    return Expectation(
        prompts=tuple(
            SmokePrompt(
                name=prompt.name,
                text=prompt.text,
                token_ids=ids,
                max_new_tokens=max_new_tokens,
                expected_tokens=None,
                num_rounds=None,
                num_accepted=None,
            )
            for prompt, ids in fitting[:NUM_PROMPTS]
        ),
        acceptance_length=plan.chosen.rounds.tokens_per_round,
        tolerance_frac=OTHER_PROMPTS_TOLERANCE,
        source="the plan, over other prompts",
    )


def _from_trace(
    request: PromptRequest, plan: Plan, trace: Trace, tokenizer: PreTrainedTokenizerFast, weights: str
) -> Expectation:
    """Prompts of the trace, with the replay of the plan's policy on each."""
    _check_trace(plan, trace)
    texts = _traced_prompts(request, trace, tokenizer)
    numbers = [number for number, prompt in enumerate(trace.header.prompts) if prompt.name in texts]
    chosen = choose_prompts([texts[trace.header.prompts[number].name][0] for number in numbers], "all", NUM_PROMPTS)
    names = {prompt.name for prompt in chosen}
    numbers = [number for number in numbers if trace.header.prompts[number].name in names]
    short = trace.subset(numbers).shortened(min(MAX_NEW_TOKENS, trace.header.max_new_tokens))
    by_prompt = replay_prompts(short, plan.policy)
    ends = [sum(prompt.num_positions for prompt in short.header.prompts[: number + 1]) for number in range(len(numbers))]
    prompts = tuple(
        SmokePrompt(
            name=traced.name,
            text=texts[traced.name][0].text,
            token_ids=texts[traced.name][1],
            max_new_tokens=traced.num_positions,
            expected_tokens=tuple(short.target_token[end - traced.num_positions : end].tolist()),
            num_rounds=rounds.num_rounds,
            num_accepted=rounds.num_accepted,
        )
        for traced, rounds, end in zip(short.header.prompts, by_prompt, ends, strict=True)
    )
    return Expectation(
        prompts=prompts,
        acceptance_length=sum_rounds(by_prompt).tokens_per_round,
        tolerance_frac=EXACT_TOLERANCE if weights in EXACT_WEIGHTS else ROUNDED_TOLERANCE,
        source="the replay of these prompts",
    )


def _check_trace(plan: Plan, trace: Trace) -> None:
    """Refuse a trace of other weights or another tokenizer.

    Raises:
        Mismatch: with the part that differs.
    """
    header = trace.header
    for role, planned, traced in (
        ("target", plan.target_sha256, header.target_sha256),
        ("draft", plan.draft_sha256, header.draft_sha256),
        ("tokenizer", plan.tokenizer_sha256, header.tokenizer_sha256),
    ):
        if planned is not None and traced is not None and planned != traced:
            fix = "Give the trace that the plan was made from"
            raise Mismatch("the trace", made_for=f"{role} {traced[:12]}", given=f"the plan's {role} {planned[:12]}", fix=fix)


def _traced_prompts(
    request: PromptRequest, trace: Trace, tokenizer: PreTrainedTokenizerFast
) -> dict[str, tuple[Prompt, tuple[int, ...]]]:
    """The prompts that the trace holds, by name, with their token ids.

    Raises:
        UserInputError: the prompts are not those of the trace.
    """
    source = PromptSource(
        prompts=request.prompts, default=FAMILY_PROMPTS, read_as=request.read_as, split="all", num_prompts=2**31
    )
    traced = {prompt.name: prompt.prompt_tokens for prompt in trace.header.prompts if prompt.num_positions >= MIN_OUTPUT_TOKENS}
    texts: dict[str, tuple[Prompt, tuple[int, ...]]] = {}
    for prompt in source.load(first_turns=True):
        if prompt.name in traced:
            ids = _token_ids(prompt, tokenizer, request)
            if len(ids) == traced[prompt.name]:
                texts[prompt.name] = (prompt, ids)
    if not texts:
        given = "the prompts of the reference family" if request.prompts is None else "these prompts"
        raise UserInputError(
            f"--trace: it has none of {given} with as many tokens: expected the prompts that it was recorded with. Give their "
            "file with --prompts, and --chat if they were chats; or leave --trace out."
        )
    return texts


def _token_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerFast, request: PromptRequest) -> tuple[int, ...]:
    """Token ids of a prompt; in a chat, up to the start of the answer to its first turn.

    Raises:
        UserInputError: a conversation without `chat`.
    """
    if not request.chat:
        if prompt.earlier_messages is not None:
            raise UserInputError(f"prompt {prompt.name!r} is a conversation: expected a text to continue. Give --chat.")
        return tuple(text_ids(tokenizer, prompt.text, "parse", adds_special_tokens=True))
    if not tokenizer.chat_template:
        raise UserInputError("--chat: the tokenizer has no chat template, expected one. Leave --chat out.")
    messages = [{"role": message.role, "content": message.content} for message in Conversation(prompt=prompt).messages]
    text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    return tuple(text_ids(tokenizer, text, "parse", adds_special_tokens=False))


def _context_tokens(plan: Plan) -> Tokens:
    return min(plan.target.full_attention_tokens, plan.draft.model.full_attention_tokens)
