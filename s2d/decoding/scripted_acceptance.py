"""Acceptance by script: what exits and target say is taken from a trace, whatever the models say.

The runtime does all that it would do: every pass runs, every exit check reads a token and a confidence back to the host,
every verification decides. Only then are the answers overruled by the traced ones. So models with random weights can be
timed under the acceptance of real ones, and every round is the one that replay counts, beyond a block's first mistake too.
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
from s2d.decoding.verify import Verdict, Verifier, longest_agreement
from s2d.model.choose_tokens import ExitPredictor
from s2d.model.decoder import Decoder
from s2d.model.host_copies import PendingPrediction


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptedAcceptance:
    """What is said after one prompt. Past its last position, where only a rejected block gets, that one is repeated."""

    prompt_tokens: Tokens
    max_new_tokens: Tokens
    eos_token_id: int | None
    exit_layers: tuple[int, ...]
    answers: tuple[tuple[tuple[int, float], ...], ...]
    """Token and confidence, by position and exit."""
    off_path: tuple[tuple[float, ...], ...] | None
    """Confidence behind a mistake, by position and exit; None where the trace does not tell."""
    chosen: tuple[int, ...]
    """The target's token, by position."""

    def answer(self, text: Sequence[int], known: Tokens, exit_number: int) -> tuple[int, float]:
        """Token and confidence of an exit (zero-based) after a text of so many certain tokens, and drafted ones."""
        row = self._row(len(text))
        token, confidence = self.answers[row][exit_number]
        if self.off_path is not None and self._has_mistake(text, known):
            confidence = self.off_path[row][exit_number]
        return token, confidence

    def _has_mistake(self, text: Sequence[int], known: Tokens) -> bool:
        """Whether a drafted token is not the target's."""
        begin = known - self.prompt_tokens
        return tuple(text[known:]) != self.chosen[begin : begin + len(text) - known]

    def choices(self, position: Tokens, number: int) -> list[int]:
        """The target's tokens for so many absolute positions."""
        return [self.chosen[self._row(position + place)] for place in range(number)]

    def _row(self, position: Tokens) -> int:
        return min(position - self.prompt_tokens, len(self.chosen) - 1)


def scripts_of(trace: Trace) -> tuple[ScriptedAcceptance, ...]:
    """A script per prompt of a trace.

    Raises:
        UserInputError: acceptance is drawn (the ratio test), or a text stops short of its limit without an end-of-text token.
    """
    header = trace.header
    if header.sampling.rule == "ratio":
        raise UserInputError(
            "a trace of the ratio test holds chances, not tokens that a run could follow: expected one taken greedily or with "
            "shared noise. Record it again with --rule shared-noise."
        )
    bounds = np.cumsum([0, *(prompt.num_positions for prompt in header.prompts)]).tolist()
    chosen = trace.target_token.tolist()
    answers = [
        tuple(zip(*said, strict=True)) for said in zip(trace.draft_token.tolist(), trace.confidence.tolist(), strict=True)
    ]
    for prompt, end in zip(header.prompts, bounds[1:], strict=True):
        if prompt.num_positions < header.max_new_tokens and chosen[end - 1] != header.eos_token_id:
            raise UserInputError(
                f"traced prompt {prompt.name!r} stops after {prompt.num_positions} of {header.max_new_tokens} tokens: expected "
                "an end-of-text token there, or as many tokens as were asked for. Record the trace again."
            )
    confidence = off_path_confidence(trace.confidence, trace.off_path)
    off_path = None if confidence is None else [tuple(row) for row in confidence.tolist()]
    return tuple(
        ScriptedAcceptance(
            prompt_tokens=prompt.prompt_tokens,
            max_new_tokens=header.max_new_tokens,
            eos_token_id=header.eos_token_id,
            exit_layers=header.draft.exit_layers,
            answers=tuple(answers[start:end]),
            off_path=None if off_path is None else tuple(off_path[start:end]),
            chosen=tuple(chosen[start:end]),
        )
        for prompt, (start, end) in zip(header.prompts, pairwise(bounds), strict=True)
    )


class ScriptedJudge:
    """Lets a verifier decide as it would, then says what the script says.

    Args:
        verifier: reads the logits, so that its seconds are paid.
        script: of the prompt that is decoded.
    """

    def __init__(self, verifier: Verifier, script: ScriptedAcceptance) -> None:
        self._judge = verifier
        self._script = script

    @property
    def choice(self) -> ExitPredictor | None:
        """See `Verifier`."""
        return self._judge.choice

    def start(self, prompt_tokens: Tokens, max_tokens: Tokens) -> None:
        """See `Verifier`."""
        self._judge.start(prompt_tokens, max_tokens)

    def ask(self, decoder: Decoder, states: Tensor, text: Sequence[int], known: Tokens, exit_number: int) -> PendingPrediction:
        """See `Verifier`."""
        read = self._judge.ask(decoder, states, text, known, exit_number)
        said = self._script.answer(text, known, exit_number)

        def answer() -> tuple[int, float]:
            read()
            return said

        return answer

    def verdict(self, logits: Tensor, text: Sequence[int], known: Tokens) -> Verdict:
        """See `Verifier`."""
        self._judge.verdict(logits, text, known)
        drafted = text[known:]
        return longest_agreement(self._script.choices(known, len(drafted) + 1), drafted)


def overruled(
    verifier: Verifier,
    script: ScriptedAcceptance,
    known_tokens: Tokens,
    new_tokens: Tokens,
    eos_token_id: int | None,
    exit_layers: tuple[int, ...],
) -> ScriptedJudge:
    """A verifier that says what a script says; refused where replay would count another run.

    Raises:
        Mismatch: other exits, another end of text, or a text that begins before or may go on after the traced one.
    """
    first, last = script.prompt_tokens, script.prompt_tokens + script.max_new_tokens
    facts = (
        (f"exits {script.exit_layers}", f"exits {exit_layers}", exit_layers == script.exit_layers),
        (f"end-of-text token {script.eos_token_id}", f"{eos_token_id}", eos_token_id == script.eos_token_id),
        (
            f"tokens {first} to {last}",
            f"{new_tokens} new tokens after {known_tokens}",
            first <= known_tokens and known_tokens + new_tokens <= last,
        ),
    )
    for made_for, given, fits in facts:
        if not fits:
            fix = "Decode what was traced, or take another trace"
            raise Mismatch("the script of a traced prompt", made_for=made_for, given=given, fix=fix)
    return ScriptedJudge(verifier, script)
