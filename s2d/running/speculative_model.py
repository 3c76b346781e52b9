"""The Python API of the runtime: load a target and its draft, generate text, run plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from perfmodel.core.disk import PathLike
from perfmodel.core.errors import BadPolicy, BadValue, UserInputError, quoted, with_python_errors
from perfmodel.core.units import Frac, Tokens
from perfmodel.models.dtypes import Dtype
from perfmodel.models.geometry import SELF_DRAFT
from perfmodel.passes.device_key import LaunchMode
from perfmodel.policies.policy import Policy
from perfmodel.policies.sampling import GREEDY, Sampling
from perfmodel.replay.round_stats import RoundStats
from perfmodel.results.plan import Plan
from perfmodel.results.report import RunReport
from s2d.decoding.encode_prompts import EncodedPrompt, encode_prompts
from s2d.decoding.generate import Generation, Session, Settings
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.decoding.policy_selector import AdaptivePolicy, FixedPolicy
from s2d.loading.exits import requested_exits
from s2d.loading.memory import TextLimits
from s2d.model.torch_device import default_device, mode_for, use_device
from s2d.model.torch_dtypes import TORCH_DTYPES
from s2d.prompts.conversation import Prompt
from s2d.prompts.text import ContinuationText, Stop, continuation_text
from s2d.running.run import run_loaded
from s2d.running.run_inputs import RunRequest, load_plan, lock_outputs, read_run_inputs

DEFAULT_NEW_TOKENS: Tokens = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The text that continues a prompt. `str()` is the text."""

    prompt: EncodedPrompt
    text: str
    generation: Generation

    def __str__(self) -> str:
        return self.text

    @property
    def tokens(self) -> tuple[int, ...]:
        """The new token ids."""
        return self.generation.tokens

    @property
    def rounds(self) -> RoundStats:
        """Counts over all rounds."""
        return self.generation.rounds

    @property
    def num_rounds(self) -> int:
        """The number of rounds: forward passes of the target after the prompt."""
        return self.rounds.num_rounds

    @property
    def tokens_per_round(self) -> float:
        """Emitted tokens per round (*acceptance length*)."""
        return self.rounds.tokens_per_round

    @property
    def acceptance(self) -> Frac | None:
        """The share of drafted tokens that was accepted; None if nothing was drafted."""
        return self.rounds.accepted_frac

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of decoding. Excludes the prompt."""
        return len(self.tokens) / self.generation.decode_s


def load(
    target: str,
    *,
    draft: str | None = None,
    exits: Sequence[int] | None = None,
    device: str | None = None,
    dtype: Dtype = "fp32",
    mode: LaunchMode | None = None,
) -> SpeculativeModel:
    """Load a target and its draft.

    Args:
        target: a model folder, a name of the reference family (`ref-target-16`), or `org/name` on the Hugging Face hub.
        draft: as for `target`. None: the target drafts for itself with its first layers.
        exits: the layers after which the draft may answer, rising. None takes those of its `s2d.json`, or its full depth.
        device: `cpu`, `cuda` or `cuda:1`. None takes the GPU if there is one.
        dtype: the number type of weights and caches: `fp32`, `bf16` or `fp16`.
        mode: how passes are launched: `eager`, or as a captured CUDA `graph`. None takes `graph` on a GPU.

    Raises:
        UserInputError: a model does not exist, cannot be read, or does not fit in memory; or a self-draft has no exits.
        Mismatch: the tokenizers differ.
        BadPolicy: the draft has no such exits.

    Example:
        >>> model = s2d.load("ref-target-16", draft="ref-draft", device="cpu")
        >>> model
        ref-target-16 with ref-draft, exits 1/2/4/6 (s2d.json)
        >>> policy = s2d.Policy(exits=(2, 6), thresholds=(0.5,), tokens=6)
        >>> completion = model.generate("def read_lines(path):", policy=policy, max_new_tokens=32)
        >>> len(completion.tokens), completion.tokens_per_round > 1
        (32, True)
    """
    if dtype not in TORCH_DTYPES:
        raise BadValue(f"dtype {dtype!r}: expected one of {', '.join(map(repr, TORCH_DTYPES))}.")
    if isinstance(exits, int):
        raise BadPolicy(f"exits {exits!r}", f"a sequence, such as exits=({exits},)")
    name = device or default_device()
    use_device(name)
    request = PairRequest(
        target=target,
        draft=SELF_DRAFT if draft is None else draft,
        dtype=dtype,
        device=name,
        exits=requested_exits(None if exits is None else tuple(exits)),
        mode=mode_for(mode, name, 1),
    )
    return SpeculativeModel(load_pair(request))


class SpeculativeModel:
    """A target and its draft, ready to generate text and to run plans. `load` creates it.

    Args:
        pair: the loaded models.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._session: Session | None = None

    def __repr__(self) -> str:
        return self.pair.label

    @with_python_errors
    def generate(
        self,
        prompt: str | Prompt,
        *,
        plan: PathLike | Plan | None = None,
        policy: Policy | None = None,
        adapt: bool = False,
        max_new_tokens: Tokens = DEFAULT_NEW_TOKENS,
        sampling: Sampling | None = None,
        stop: str | Sequence[str] = (),
        chat: bool = False,
        stream: Callable[[str], object] | None = None,
    ) -> Completion:
        """Continue a prompt. The text is the target's own; a policy only makes it faster.

        The first call allocates caches, and on a GPU captures graphs. Later calls reuse them.

        Args:
            prompt: the text to continue.
            plan: a plan or its file, whose policy and sampling apply.
            policy: how to draft. None without a plan decodes plainly.
            adapt: change the policy while running, along the plan's frontier.
            max_new_tokens: the maximum length of the new text.
            sampling: how tokens are chosen. None takes the plan's, or greedy decoding.
            stop: a string, or several, that end the text.
            chat: put the prompt into the tokenizer's chat template as a user turn, and answer it.
            stream: receives the text in pieces while it is generated: `sys.stdout.write`, for example.

        Raises:
            UserInputError: the prompt is empty or too long, memory is too small, or both a plan and a policy are given.
            BadPolicy: the draft lacks an exit of the policy.

        Example:
            >>> model = s2d.load("ref-target-16", draft="ref-draft", device="cpu")
            >>> fast = model.generate("import os", plan="plan.json", max_new_tokens=16)
            >>> fast.text == model.generate("import os", max_new_tokens=16).text
            True
        """
        if plan is not None and policy is not None:
            raise UserInputError("plan and policy are both given: expected one of them. Leave one out.")
        if adapt and plan is None:
            raise UserInputError(
                "adapt is given without a plan: expected a plan with a frontier. Give one, or leave adapt out."
            )
        selector: FixedPolicy | AdaptivePolicy = FixedPolicy(policy)
        if plan is not None:
            named = load_plan(plan)
            sampling = sampling or named.record.workload.sampling
            selector = AdaptivePolicy(named.frontier) if adapt else FixedPolicy(named.record.chosen.policy)
        if not isinstance(prompt, str | Prompt):
            raise BadValue(f"prompt is {quoted(prompt)}: expected one text. Call generate for each, or run for several.")
        if policy is not None and not isinstance(policy, Policy):
            raise BadPolicy(f"a {type(policy).__name__}", "a Policy, such as plan.policy, or None for plain decoding")
        if isinstance(prompt, str):
            prompt = Prompt(name="prompt", category="given", text=prompt)
        [encoded] = encode_prompts(self.pair, [prompt.first_turn], max_new_tokens=max_new_tokens, is_chat=chat)
        settings = Settings(
            policy=None,
            sampling=sampling or GREEDY,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.pair.eos_token_id,
            stop=Stop((stop,) if isinstance(stop, str) else stop, self.pair.tokenizer) if stop else None,
        )
        session = self._session_for(len(encoded.token_ids) + max_new_tokens, settings.sampling)
        streamed = _Stream(stream, ContinuationText(self.pair.tokenizer, encoded.token_ids)) if stream else None
        generation = session.generate(
            encoded.token_ids, settings, selector=selector, on_tokens=streamed.add if streamed else None
        )
        if streamed:
            streamed.end()
        text = continuation_text(self.pair.tokenizer, encoded.token_ids, generation.tokens)
        return Completion(prompt=encoded, text=text, generation=generation)

    @with_python_errors
    def run(self, plan: PathLike | Plan, **options: Any) -> RunReport | None:
        """Run a plan over prompts, as `s2d-run` does, and compare speed and acceptance with the prediction.

        Args:
            plan: a plan or its file. It must be for these models and this device.
            options: fields of `RunRequest`: `prompts`, `check`, `num_prompts`, `max_new_tokens`, `outputs` and others.

        Returns:
            the report; None if the outputs file already contains an output for every selected prompt.

        Raises:
            UserInputError: an input is missing, cannot be read, or does not fit the others.
            Mismatch: the plan is for other models or another device.

        Example:
            >>> model = s2d.load("ref-target-16", draft="ref-draft", device="cpu")
            >>> report = model.run("plan.json", prompts=["import os", "def main("], max_new_tokens=16, check=True)
            >>> report.check.num_equal
            2
        """
        if loaded := options.keys() & {"target", "draft"}:
            raise UserInputError(f"{', '.join(sorted(loaded))} given: expected none, as these models are loaded. Leave it out.")
        request = RunRequest(plan=plan, **options)
        inputs = read_run_inputs(request)
        self._session = None  # frees its caches for those of the run
        with lock_outputs(request.outputs):
            return run_loaded(request, inputs, self.pair)

    def _session_for(self, num_tokens: Tokens, sampling: Sampling) -> Session:
        """The session of earlier calls, or a larger one."""
        if self._session is None or self._session.max_tokens < num_tokens:
            self._session = None  # frees its caches before the larger ones are allocated
            max_tokens = 1 << (num_tokens - 1).bit_length()  # a power of 2: few longer prompts allocate again
            num_tables = int(sampling.rule == "shared-noise")
            limits = TextLimits(max_tokens=max_tokens, prompt_tokens=num_tokens, num_noise_tables=num_tables)
            self.pair.check_memory(limits)
            self._session = self.pair.session(max_tokens)
        return self._session


class _Stream:
    """Passes the certain text of new tokens on to a function."""

    def __init__(self, write: Callable[[str], object], text: ContinuationText) -> None:
        self._write = write
        self._text = text

    def add(self, tokens: list[int]) -> None:
        """Write the text that has become certain."""
        if piece := self._text.add(tokens):
            self._write(piece)

    def end(self) -> None:
        """Write the rest."""
        if self._text.rest:
            self._write(self._text.rest)
