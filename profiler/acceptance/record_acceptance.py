"""Record a trace: the draft's prediction of each token of the target's text, at every exit.

One teacher-forced pass of the draft over prompt and text gives the predictions for all positions at once. The prediction for
position t uses the logits after token t - 1 and the noise of position t. After some of its own mistakes the draft continues off
the target's path: `profiler.acceptance.record_off_path`.
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

_RefusedTokens = Callable[[Sequence[tuple[int, int]]], list[int]]
"""Returns the refused token for each pair of step and exit."""
_COLUMNS = ("accept_prob", "confidence", "draft_token", "target_token")
SAVE_EVERY_S: Seconds = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptTrace:
    """The trace of one prompt: N emitted tokens, E exits."""

    prompt: TracedPrompt
    confidence: NDArray[np.float32]  # [N, E]
    draft_token: NDArray[np.int32]  # [N, E]
    target_token: NDArray[np.int32]  # [N]
    accept_prob: NDArray[np.float32]  # [N, E]
    off_path: OffPath
    """Its positions are relative to this prompt's first emitted token."""


class ExitRecorder:
    """Traces prompts: every exit of the draft predicts each token of the target's own text.

    Args:
        pair: target and draft.
        session: decodes the text of the plain target.
        sampling: how target and draft choose tokens.
        confidence: the kind of confidence to record.
        max_new_tokens: the maximum number of tokens after each prompt.
        num_mistakes: mistakes per text after which the draft continues off the target's path.
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
        # One table serves the target's text, the teacher-forced pass and the tokens off the path.
        self._noise = session.noise(sampling)

    @property
    def header(self) -> TraceHeader:
        """The header of the trace, without prompts."""
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
        """Let the target write after one prompt, then let every exit predict its text.

        Raises:
            NotFinite: logits of the target or the draft are not finite; the message names the prompt.
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

    def _off_path(
        self, prompt: EncodedPrompt, text: list[int], accept_prob: NDArray[np.float32], refused: _RefusedTokens
    ) -> OffPath:
        """Confidences of all exits after some of the mistakes in a text.

        Args:
            prompt: the start of the text.
            text: the prompt and the tokens after it.
            accept_prob: [N, E].
            refused: returns the refused token for each pair of step and exit.
        """
        if not self._num_mistakes:
            return OffPath.empty(accept_prob.shape[1])
        verifier = make_verifier(self._sampling, self._confidence, self._pair.device, self._noise)
        positions = draw_mistakes(accept_prob, prompt.name, self._num_mistakes)
        mistakes = [
            Mistake(step=step, exit=exit_id, token=token)
            for (step, exit_id), token in zip(positions, refused(positions) if positions else [], strict=True)
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


def _refused_choices(tokens: Tensor, positions: Sequence[tuple[int, int]]) -> list[int]:
    """The token that the exit chose, for each pair of step and exit."""
    return [int(tokens[step, exit_id]) for step, exit_id in positions]


def _refused_samples(p: Tensor, qs: Sequence[Tensor], seed: int, positions: Sequence[tuple[int, int]]) -> list[int]:
    """Samples of exits that the ratio test refuses, drawn from max(q - p, 0).

    Args:
        p: distributions of the target, [N, V].
        qs: distributions of the exits, E of [N, V].
        seed: the seed of the draws.
        positions: pairs of step and exit, at least one.
    """
    excess = torch.stack([(qs[exit_id][step] - p[step]).clamp_(min=0) for step, exit_id in positions])  # [positions, V]
    uniform = torch.rand(len(positions), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sample_indices(excess, uniform.to(excess.device)).tolist()


def empty_trace(header: TraceHeader) -> Trace:
    """A trace without prompts."""
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
    parts: list[Trace | PromptTrace] = [trace, *traced]
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    prompts = (*trace.header.prompts, *(part.prompt for part in traced))
    starts = np.cumsum([0, *(len(part.target_token) for part in parts)], dtype=np.int32)[1:-1]
    positions = [part.off_path.position + start for part, start in zip(traced, starts, strict=True)]
    off_path = OffPath(
        position=np.concatenate([trace.off_path.position, *positions]),
        exit=np.concatenate([part.off_path.exit for part in parts]),
        confidence=np.concatenate([part.off_path.confidence for part in parts]),
    )
    return Trace(header=replace(trace.header, prompts=prompts), **columns, off_path=off_path)


def check_resumable(path: PathLike, kept: TraceHeader, requested: TraceHeader, prompts: Sequence[EncodedPrompt]) -> None:
    """Refuse to continue a trace of other models, settings or prompts.

    Args:
        path: the unfinished trace.
        kept: its header.
        requested: the header of this recording; its prompts do not matter.
        prompts: the prompts to record, in order. Those of the unfinished trace must come first and have the same lengths: a
            chat template makes a prompt longer.

    Raises:
        Mismatch: the unfinished trace differs.
    """
    done = [(prompt.name, prompt.prompt_tokens) for prompt in kept.prompts]
    made_for, given = _differing(kept, requested)
    if done != [(prompt.name, len(prompt.token_ids)) for prompt in prompts[: len(done)]]:
        made_for.append(f"{len(done)} other prompts")
        given.append(f"the {len(prompts)} of this run")
    if made_for:
        raise Mismatch(
            f"the unfinished trace {str(path)!r}",
            made_for=", ".join(made_for),
            given=", ".join(given),
            fix="Repeat the original command to continue, or delete it, or give another folder with -o",
        )


def _differing(kept: TraceHeader, requested: TraceHeader) -> tuple[list[str], list[str]]:
    """The fields that differ between two headers, as text for each header. Prompts are left out."""
    names = [field.name for field in fields(TraceHeader) if getattr(kept, field.name) != getattr(requested, field.name)]
    shown = [name for name in names if name != "prompts"]
    return [_field_text(kept, name) for name in shown], [_field_text(requested, name) for name in shown]


def _field_text(header: TraceHeader, name: str) -> str:
    """A field of a header as text."""
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
    trace_prompt: Callable[[int], PromptTrace],
    num_prompts: int,
    trace: Trace,
    *,
    save: Callable[[Trace], None],
    on_prompt: Callable[[TracedPrompt], None] = lambda prompt: None,
    clock: Callable[[], Seconds] = time.perf_counter,
) -> Trace:
    """Trace all prompts. Save the trace periodically and at Ctrl-C.

    Args:
        trace_prompt: traces the prompt with this zero-based index.
        num_prompts: the number of prompts.
        trace: an earlier, unfinished trace; its prompts are not traced again.
        save: saves an unfinished trace.
        on_prompt: called after each prompt.
        clock: a monotonic clock in seconds.
    """
    fresh: list[PromptTrace] = []
    first = len(trace.header.prompts)
    saved_s = clock()
    try:
        for index in range(first, num_prompts):
            fresh.append(trace_prompt(index))
            on_prompt(fresh[-1].prompt)
            if clock() - saved_s >= SAVE_EVERY_S:
                save_or_warn(partial(save, extended(trace, fresh)))
                saved_s = clock()
    except KeyboardInterrupt:
        if fresh:
            save(extended(trace, fresh))
        raise
    return extended(trace, fresh)
