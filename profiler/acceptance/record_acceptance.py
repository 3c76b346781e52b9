"""Walk the target's own text and ask every exit of the draft what it would have said: prompts in, Trace out.

The plain target writes; one teacher-forced pass of the draft over prompt and text answers for every position at once.
Position t of the sequence is said by the logits after token t - 1, with the noise of position t. Behind some of its own
mistakes the draft is asked once more: `profiler.acceptance.record_off_path`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perfmodel.acceptance.off_path_trace import OffPath
from perfmodel.acceptance.trace import Trace, TracedPrompt, TraceHeader, distinct_ngram_frac
from perfmodel.core.console import save_or_warn
from perfmodel.core.disk import PathLike
from perfmodel.core.errors import Mismatch
from perfmodel.core.units import Seconds, Tokens
from perfmodel.models.geometry import ModelGeometry
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling
from profiler.acceptance.record_off_path import Mistake, draw_mistakes, prompt_seed, record_off_path
from s2d.decoding.encode_prompts import EncodedPrompt
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import Pair
from s2d.decoding.teacher_forced import TeacherForcedText, processed_along, teacher_forced_text
from s2d.decoding.verify import make_verifier
from s2d.model.choose_tokens import probabilities, sample_indices
from s2d.model.finite import check_logits, naming_prompt

_Refused = Callable[[Sequence[tuple[int, int]]], list[int]]
"""Steps and exits to the tokens that are refused there."""
_COLUMNS = ("accept_prob", "confidence", "draft_token", "target_token")
SAVE_EVERY_S: Seconds = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptTrace:
    """One prompt's positions: N emitted tokens, E exits."""

    prompt: TracedPrompt
    confidence: NDArray[np.float32]  # [N, E]
    draft_token: NDArray[np.int32]  # [N, E]
    target_token: NDArray[np.int32]  # [N]
    accept_prob: NDArray[np.float32]  # [N, E]
    off_path: OffPath
    """Its positions are those of this prompt."""


class ExitRecorder:
    """Asks every exit of a pair's draft about the target's own text.

    Args:
        pair: target and draft.
        session: of the pair, for the plain target's text.
        sampling: how the target picks its tokens, and the draft with it.
        confidence: the kind of confidence to record.
        max_new_tokens: to write after every prompt.
        num_mistakes: in every text, behind which the draft is asked once more.
    """

    def __init__(
        self,
        pair: Pair,
        session: Session,
        sampling: Sampling,
        confidence: Confidence,
        max_new_tokens: Tokens,
        num_mistakes: int,
    ) -> None:
        self._pair = pair
        self._session = session
        self._sampling = sampling
        self._confidence = confidence
        self._max_new_tokens = max_new_tokens
        self._num_mistakes = num_mistakes
        # One table for the target's text, for whole texts and for what is recorded behind mistakes.
        self._noise = session.noise(sampling)

    @property
    def header(self) -> TraceHeader:
        """What the trace is of, its prompts still missing."""
        pair = self._pair
        return TraceHeader(
            draft_kind=pair.geometry.kind,
            exit_layers=pair.geometry.exit_layers,
            draft_model=pair.geometry.model,
            draft_sha256=pair.draft.sha256,
            target_model=pair.target.geometry,
            target_sha256=pair.target.sha256,
            tokenizer_sha256=pair.tokenizer_sha256,
            sampling=self._sampling,
            confidence=self._confidence,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=pair.eos_token_id,
            prompts=(),
        )

    def trace(self, prompt: EncodedPrompt) -> PromptTrace:
        """Let the target write after one prompt, then ask.

        Raises:
            NotFinite: logits of the target or the draft are not finite; names the prompt.
        """
        with naming_prompt(prompt.name):
            return self._trace(prompt)

    @torch.inference_mode()
    def _trace(self, prompt: EncodedPrompt) -> PromptTrace:
        settings = Settings(
            policy=None,
            sampling=self._sampling,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=self._pair.eos_token_id,
        )
        forced = teacher_forced_text(self._pair, self._session, prompt.token_ids, settings, self._confidence, self._noise)
        tokens = forced.draft_tokens  # [N, E]
        target_token = torch.tensor(forced.written)
        accepted = (tokens.cpu() == target_token[:, None]).float()  # [N, E]
        refused = partial(_refused_choices, tokens)
        if self._sampling.rule == "ratio":
            target_probs = self._target_probs(forced)
            draft_probs = [probabilities(logits) for logits in forced.exit_logits]  # E of [N, V]
            accepted = torch.stack([_overlap(target_probs, q) for q in draft_probs], dim=1).float().cpu()
            refused = partial(_refused_samples, target_probs, draft_probs, prompt_seed(prompt.name))
        return PromptTrace(
            prompt=TracedPrompt(
                name=prompt.name,
                category=prompt.category,
                prompt_tokens=forced.prompt_tokens,
                num_positions=len(forced.written),
                distinct_6gram_frac=distinct_ngram_frac(forced.written),
            ),
            confidence=forced.confidence.clamp(0, 1).cpu().numpy(),
            draft_token=tokens.cpu().numpy().astype(np.int32),
            target_token=target_token.numpy().astype(np.int32),
            accept_prob=accepted.numpy(),
            off_path=self._off_path(prompt, list(forced.text), accepted.numpy(), refused),
        )

    def _off_path(self, prompt: EncodedPrompt, text: list[int], accept_prob: NDArray[np.float32], refused: _Refused) -> OffPath:
        """What is said behind some of the mistakes in a text.

        Args:
            prompt: that it begins with.
            text: prompt and what was written.
            accept_prob: [N, E].
            refused: the refused tokens at some steps and exits.
        """
        if not self._num_mistakes:
            return OffPath.empty(accept_prob.shape[1])
        verifier = make_verifier(self._sampling, self._confidence, self._pair.device, self._noise)
        places = draw_mistakes(accept_prob, prompt.name, self._num_mistakes)
        mistakes = [
            Mistake(step=step, exit=number, token=token)
            for (step, number), token in zip(places, refused(places) if places else [], strict=True)
        ]
        return record_off_path(self._pair, verifier, text, len(prompt.token_ids), mistakes)

    def _target_probs(self, forced: TeacherForcedText) -> Tensor:
        """The distributions that the target draws its tokens from: [N, V]."""
        target, first = self._pair.target, forced.prompt_tokens
        (logits,) = target.decoder.all_exit_logits(list(forced.text[:-1]), (target.geometry.num_layers,))
        check_logits(logits[first - 1 :], "target", target.decoder)
        return probabilities(processed_along(forced.text, first, logits, self._sampling))


def _overlap(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a sample of q is accepted, sum(min(p, q)): [N, V] each -> [N]."""
    return torch.minimum(p, q).sum(-1).clamp(0, 1)


def _refused_choices(tokens: Tensor, places: Sequence[tuple[int, int]]) -> list[int]:
    """Tokens that the exits choose at some steps and exits: of [N, E]."""
    return [int(tokens[step, number]) for step, number in places]


def _refused_samples(p: Tensor, qs: Sequence[Tensor], seed: int, places: Sequence[tuple[int, int]]) -> list[int]:
    """Samples of exits that the ratio test refuses, drawn from max(q - p, 0).

    Args:
        p: the target's distributions, [N, V].
        qs: those of the exits, E of [N, V].
        seed: of the draws.
        places: steps and exits, at least one.
    """
    excess = torch.stack([(qs[number][step] - p[step]).clamp_(min=0) for step, number in places])  # [places, V]
    uniform = torch.rand(len(places), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sample_indices(excess, uniform.to(excess.device)).tolist()


def empty_trace(header: TraceHeader) -> Trace:
    """A trace of no prompts."""
    exits = len(header.exit_layers)
    return Trace(
        header=replace(header, prompts=()),
        confidence=np.zeros((0, exits), np.float32),
        draft_token=np.zeros((0, exits), np.int32),
        target_token=np.zeros(0, np.int32),
        accept_prob=np.zeros((0, exits), np.float32),
        off_path=OffPath.empty(exits),
    )


def extended(trace: Trace, traced: Sequence[PromptTrace]) -> Trace:
    """A trace with more prompts at its end."""
    columns = {name: np.concatenate([getattr(trace, name), *(getattr(one, name) for one in traced)]) for name in _COLUMNS}
    prompts = (*trace.header.prompts, *(one.prompt for one in traced))
    starts = np.cumsum([len(trace.target_token), *(len(one.target_token) for one in traced)], dtype=np.int32)
    positions = [one.off_path.position + start for one, start in zip(traced, starts[:-1], strict=True)]
    off_path = OffPath(
        position=np.concatenate([trace.off_path.position, *positions]),
        exit=np.concatenate([trace.off_path.exit, *(one.off_path.exit for one in traced)]),
        confidence=np.concatenate([trace.off_path.confidence, *(one.off_path.confidence for one in traced)]),
    )
    return Trace(header=replace(trace.header, prompts=prompts), **columns, off_path=off_path)


def check_resumable(path: PathLike, kept: TraceHeader, wanted: TraceHeader, prompts: Sequence[EncodedPrompt]) -> None:
    """Refuse to go on with a trace of other models, settings or prompts.

    Args:
        path: where the kept trace is.
        kept: its header.
        wanted: the header of what is being recorded; its prompts do not matter.
        prompts: to record, in order; the kept ones must be the first of them, as long as they were (a chat is longer).
    """
    done = [(prompt.name, prompt.prompt_tokens) for prompt in kept.prompts]
    was, now = _differing(kept, wanted)
    if done != [(prompt.name, len(prompt.token_ids)) for prompt in prompts[: len(done)]]:
        was.append(f"{len(done)} other prompts")
        now.append(f"the {len(prompts)} of this run")
    if was:
        raise Mismatch(
            f"the unfinished trace {str(path)!r}",
            made_for=", ".join(was),
            given=", ".join(now),
            fix="Repeat the command that began it to go on, or delete it, or give another folder with -o",
        )


def _differing(kept: TraceHeader, wanted: TraceHeader) -> tuple[list[str], list[str]]:
    """What two headers differ in besides their prompts: as it is in the one, and as it is in the other."""
    different = [
        field.name
        for field in fields(TraceHeader)
        if field.name != "prompts" and getattr(kept, field.name) != getattr(wanted, field.name)
    ]
    return [_named(kept, name) for name in different], [_named(wanted, name) for name in different]


def _named(header: TraceHeader, name: str) -> str:
    """One field of a header in words."""
    value = getattr(header, name)
    match value:
        case tuple():
            value = "/".join(map(str, value))
        case ModelGeometry():
            value = value.name
        case Sampling():
            value = value.label if value.seed is None else f"{value.label} seed {value.seed}"
        case str() if name.endswith("sha256"):
            value = value[:12]
    return f"{name} {value}"


def record_acceptance(
    trace_one: Callable[[int], PromptTrace],
    num_prompts: int,
    trace: Trace,
    *,
    save: Callable[[Trace], None],
    on_prompt: Callable[[TracedPrompt], None] = lambda prompt: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> Trace:
    """Trace prompt after prompt, saving now and then, and before Ctrl-C goes on its way.

    Args:
        trace_one: traces the prompt of a zero-based number.
        num_prompts: how many there are.
        trace: what was traced before: its prompts are not traced again.
        save: keeps a trace that is not finished.
        on_prompt: told of every prompt when it is done.
        clock: a monotonic clock in seconds.
    """
    fresh: list[PromptTrace] = []
    first = len(trace.header.prompts)
    saved_s = clock()
    try:
        for number in range(first, num_prompts):
            fresh.append(trace_one(number))
            on_prompt(fresh[-1].prompt)
            if clock() - saved_s >= SAVE_EVERY_S:
                save_or_warn(partial(save, extended(trace, fresh)))
                saved_s = clock()
    except KeyboardInterrupt:
        if fresh:
            save(extended(trace, fresh))
        raise
    return extended(trace, fresh)
