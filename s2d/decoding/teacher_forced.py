"""Teacher forcing: the draft's prediction of each token of the target's text, at every exit.

The target writes the text. Then one pass of the draft predicts its tokens.

Position t is predicted by the logits after token t - 1, with the shared noise of position t.
Symbols: N written tokens, E exits, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfmodel.core.units import Tokens
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import Sampling
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import Pair
from s2d.decoding.process_logits import LogitsProcessor
from s2d.model.choose_tokens import NoiseTable, choose, confidence_values, probabilities
from s2d.model.finite import NotFinite, is_finite


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherForcedText:
    """A text of the target, and the predictions of every exit of the draft along it."""

    text: tuple[int, ...]
    """The prompt and the N tokens that the target wrote."""
    prompt_tokens: Tokens
    exit_logits: tuple[Tensor, ...]  # E of [N, V], processed as for choosing a token
    draft_tokens: Tensor  # int64 [N, E]
    confidence: Tensor  # float32 [N, E]

    @property
    def written(self) -> tuple[int, ...]:
        """The N tokens that the target wrote."""
        return self.text[self.prompt_tokens :]


@torch.inference_mode()
def teacher_forced_text(
    pair: Pair,
    session: Session,
    prompt_ids: Sequence[int],
    settings: Settings,
    confidence: Confidence,
    noise: NoiseTable | None = None,
) -> TeacherForcedText:
    """Decode plainly after one prompt, then run the draft once over the whole text.

    Args:
        pair: target and draft.
        session: a session of this pair.
        prompt_ids: the prompt.
        settings: how the target writes; its policy is None.
        confidence: the kind of confidence to compute.
        noise: the table of the shared noise; None for the other acceptance rules.

    Raises:
        NotFinite: logits of the target or the draft are not finite.
    """
    first = len(prompt_ids)
    text = [*prompt_ids, *session.generate(prompt_ids, settings).tokens]
    logits = pair.draft.decoder.all_exit_logits(text[:-1], pair.geometry.exit_layers)
    exits = tuple(processed_along(text, first, exit_logits, settings.sampling) for exit_logits in logits)  # E of [N, V]
    noise_rows = noise.rows(first, len(text)) if noise is not None else None
    confidences = torch.stack(
        [confidence_values(probabilities(exit_logits), confidence) for exit_logits in exits], dim=1
    )  # [N, E]
    if not is_finite(confidences):
        raise NotFinite("draft", pair.draft.decoder)
    return TeacherForcedText(
        text=tuple(text),
        prompt_tokens=first,
        exit_logits=exits,
        draft_tokens=torch.stack([choose(exit_logits, noise_rows) for exit_logits in exits], dim=1),
        confidence=confidences,
    )


def processed_along(text: Sequence[int], first: int, logits: Tensor, sampling: Sampling) -> Tensor:
    """Logits that choose the tokens from `first` on, each processed with the true tokens before it: [N, V].

    Args:
        text: prompt and written tokens.
        first: length of the prompt.
        logits: after every token of the text but the last.
        sampling: temperature, cut-offs and penalties.
    """
    return LogitsProcessor(sampling, first)(logits[first - 1 :], text[:-1], first)
