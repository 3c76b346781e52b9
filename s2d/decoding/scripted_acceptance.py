"""Replay a trace in a real run: every pass runs, but its results come from the trace.

Models with random weights are timed this way under the acceptance of trained models. Each pass runs, each exit check reads its
result back to the host, and each verification decides. Only then are the results replaced by those of the trace. The rounds
equal those of replay, also after the first mistake of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch import Tensor

from perfmodel.acceptance.off_path_trace import off_path_confidence
from perfmodel.acceptance.trace import Trace
from perfmodel.core.errors import Mismatch, UserInputError
from perfmodel.core.units import Tokens
from s2d.decoding.verify import Verification, Verifier, longest_agreed_prefix
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.decoder import Decoder
from s2d.model.host_copies import PendingPrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAcceptance:
    """The traced predictions and target tokens of one prompt.

    Positions after the last traced position repeat it. Only rejected blocks reach them.
    """

    prompt_tokens: Tokens
    max_new_tokens: Tokens
    eos_token_id: int | None
    exit_layers: tuple[int, ...]
    predictions: tuple[tuple[tuple[int, float], ...], ...]
    """Token and confidence, by position and exit."""
    off_path_confidence: tuple[tuple[float, ...], ...] | None
    """Confidence after a mistake, by position and exit; None if the trace has none."""
    target_tokens: tuple[int, ...]
    """The target's token, by position."""

    def prediction(self, text: Sequence[int], num_known: Tokens, exit_index: int) -> tuple[int, float]:
        """The token and confidence of an exit.

        Args:
            text: known tokens, then drafted ones.
            num_known: the number of known tokens.
            exit_index: zero-based, among all exits.
        """
        row = self._row(len(text))
        token, confidence = self.predictions[row][exit_index]
        if self.off_path_confidence is not None and self._has_mistake(text, num_known):
            confidence = self.off_path_confidence[row][exit_index]
        return token, confidence

    def _has_mistake(self, text: Sequence[int], num_known: Tokens) -> bool:
        """Whether a drafted token differs from the target's."""
        start = num_known - self.prompt_tokens
        return tuple(text[num_known:]) != self.target_tokens[start : start + len(text) - num_known]

    def target_tokens_at(self, position: Tokens, count: int) -> list[int]:
        """The target's tokens at `count` positions of the text, from `position` on."""
        return [self.target_tokens[self._row(position + offset)] for offset in range(count)]

    def _row(self, position: Tokens) -> int:
        return min(position - self.prompt_tokens, len(self.target_tokens) - 1)


def scripts_from_trace(trace: Trace) -> tuple[ScriptedAcceptance, ...]:
    """One script for each prompt of a trace.

    Raises:
        UserInputError: the trace is of the ratio test, or a text ends early without an end-of-text token.
    """
    header = trace.header
    if header.sampling.rule == "ratio":
        raise UserInputError(
            "a trace of the ratio test holds probabilities, not tokens that a run could follow: expected greedy decoding or "
            "shared noise. Record it again with --rule shared-noise."
        )
    bounds = np.cumsum([0, *(prompt.num_positions for prompt in header.prompts)]).tolist()
    target_tokens = trace.target_token.tolist()
    tokens_and_confidences = zip(trace.draft_token.tolist(), trace.confidence.tolist(), strict=True)
    predictions = [tuple(zip(tokens, confidences, strict=True)) for tokens, confidences in tokens_and_confidences]
    for prompt, end in zip(header.prompts, bounds[1:], strict=True):
        if prompt.num_positions < header.max_new_tokens and target_tokens[end - 1] != header.eos_token_id:
            raise UserInputError(
                f"traced prompt {prompt.name!r} stops after {prompt.num_positions} of {header.max_new_tokens} tokens: expected "
                "an end-of-text token there, or the requested number of tokens. Record the trace again."
            )
    confidence = off_path_confidence(trace.confidence, trace.off_path)
    off_path = None if confidence is None else [tuple(row) for row in confidence.tolist()]
    return tuple(
        ScriptedAcceptance(
            prompt_tokens=prompt.prompt_tokens,
            max_new_tokens=header.max_new_tokens,
            eos_token_id=header.eos_token_id,
            exit_layers=header.exit_layers,
            predictions=tuple(predictions[start:end]),
            off_path_confidence=None if off_path is None else tuple(off_path[start:end]),
            target_tokens=tuple(target_tokens[start:end]),
        )
        for prompt, (start, end) in zip(header.prompts, pairwise(bounds), strict=True)
    )


class ScriptedVerifier:
    """Runs a verifier, then returns the results of a script in its place.

    Args:
        verifier: reads the logits and decides, at its usual cost.
        script: the script of the current prompt.
    """

    def __init__(self, verifier: Verifier, script: ScriptedAcceptance) -> None:
        self._verifier = verifier
        self._script = script

    @property
    def predictor(self) -> ExitPredictor | None:
        """See `Verifier`."""
        return self._verifier.predictor

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`."""
        self._verifier.start(prompt_tokens, max_tokens)

    def check_exit(
        self, decoder: Decoder, states: Tensor, text: Sequence[int], num_known: Tokens, exit_index: int
    ) -> PendingPrediction:
        """See `Verifier`."""
        read = self._verifier.check_exit(decoder, states, text, num_known, exit_index)
        prediction = self._script.prediction(text, num_known, exit_index)

        def read_then_replace() -> tuple[int, float]:
            read()
            return prediction

        return read_then_replace

    def verify(self, logits: Tensor, text: Sequence[int], num_known: Tokens) -> Verification:
        """See `Verifier`."""
        self._verifier.verify(logits, text, num_known)
        drafted = text[num_known:]
        return longest_agreed_prefix(self._script.target_tokens_at(num_known, len(drafted) + 1), drafted)


def scripted_verifier(
    verifier: Verifier,
    script: ScriptedAcceptance,
    *,
    prompt_tokens: Tokens,
    max_new_tokens: Tokens,
    eos_token_id: int | None,
    exit_layers: tuple[int, ...],
) -> ScriptedVerifier:
    """A verifier that replays a trace.

    Raises:
        Mismatch: the run could differ from replay: its exits or its end of text differ, or it starts before the traced text
            or may continue after it.
    """
    start, end = script.prompt_tokens, script.prompt_tokens + script.max_new_tokens
    comparisons = (
        (f"exits {script.exit_layers}", f"exits {exit_layers}", exit_layers == script.exit_layers),
        (f"end-of-text token {script.eos_token_id}", f"{eos_token_id}", eos_token_id == script.eos_token_id),
        (
            f"tokens {start} to {end}",
            f"{max_new_tokens} new tokens after {prompt_tokens}",
            start <= prompt_tokens and prompt_tokens + max_new_tokens <= end,
        ),
    )
    for made_for, given, fits in comparisons:
        if not fits:
            fix = "Decode the traced text, or use another trace"
            raise Mismatch("the script of a traced prompt", made_for=made_for, given=given, fix=fix)
    return ScriptedVerifier(verifier, script)
