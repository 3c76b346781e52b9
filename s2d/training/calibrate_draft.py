"""A draft's own calibration: what its exits' confidence is worth, along the text that its targets write after prompts.

The text is the target's own and greedy, as in use: along other people's text an exit agrees less often. Prompts must be
ones the draft was not trained on.

Shapes: N emitted tokens, E exits, P positions of all prompts and targets.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from perfmodel.acceptance.confidence_curves import choose_curve
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Tokens
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import EncodedPrompt, Pair, load_pair
from s2d.loading.exits import RequestedExits, find_exits, with_exits
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Calibration, Sidecar, read_sidecar, write_sidecar
from s2d.model.choose_tokens import confidence_of
from s2d.model.finite import NotFinite, is_finite, naming_prompt

CONFIDENCE: Confidence = "max-prob"
NUM_FOLDS = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What every exit said along one text, and whether that is what the target wrote."""

    confidence: NDArray[np.float64]  # [N, E]
    agreement: NDArray[np.float64]  # [N, E], 0 or 1


@torch.inference_mode()
def answers_along(pair: Pair, session: Session, prompt: EncodedPrompt, max_new_tokens: Tokens) -> Answers:
    """Let the target write after one prompt, then ask every exit of the draft about that text."""
    settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=max_new_tokens, eos_token_id=pair.eos_token_id)
    written = session.generate(prompt.token_ids, settings).tokens
    text, first = [*prompt.token_ids, *written], len(prompt.token_ids)
    exits = pair.draft.decoder.all_exit_logits(text[:-1], pair.geometry.exit_layers)
    said = [logits[first - 1 :] for logits in exits]  # E of [N, V]
    confidence = torch.stack([confidence_of(logits.float().softmax(-1), CONFIDENCE) for logits in said], dim=1)
    if not is_finite(confidence):
        raise NotFinite("draft", pair.draft.decoder)
    agreement = torch.stack([logits.argmax(-1).cpu() == torch.tensor(written) for logits in said], dim=1)
    return Answers(confidence=confidence.cpu().numpy().astype(np.float64), agreement=agreement.numpy().astype(np.float64))


def calibrate_draft(
    folder: Path,
    target_names: Sequence[str],
    prompts_of: Callable[[Pair], Sequence[EncodedPrompt]],
    *,
    max_new_tokens: Tokens,
    device: str,
    requested_exits: RequestedExits | None = None,
    on_prompt: Callable[[EncodedPrompt], None] = lambda prompt: None,
) -> Sidecar:
    """Fit one curve per exit, over all targets together, and write them into the draft's sidecar, which may be new.

    Args:
        folder: the draft's.
        target_names: folders, or models of the reference family.
        prompts_of: texts that the draft was not trained on, as a target and it see them.
        max_new_tokens: what each target writes after each prompt.
        device: torch's name for it.
        requested_exits: of the draft; those of its sidecar, else its full depth, when None.
        on_prompt: told of every prompt when it is done with.

    Raises:
        BadFile: the sidecar cannot be read or written.
        Mismatch: a target has another tokenizer.
    """
    sidecar = read_sidecar(folder)
    exits = find_exits(folder, read_geometry(folder).num_layers, requested_exits, is_self=False)
    answers: list[Answers] = []
    folds: list[int] = []
    names: list[str] = []
    inputs: dict[str, str] = {}
    for name in target_names:
        pair = load_pair(name, str(folder), "fp32", device, requested_exits=requested_exits)
        names.append(pair.target.geometry.name)
        inputs |= {f"target {names[-1]}": pair.target.sha256, "draft": pair.draft.sha256}
        prompts = prompts_of(pair)
        session = pair.session(max(len(prompt.token_ids) for prompt in prompts) + max_new_tokens)
        for number, prompt in enumerate(prompts):
            with naming_prompt(prompt.name):
                answers.append(answers_along(pair, session, prompt, max_new_tokens))
            folds.append(number % NUM_FOLDS)
            on_prompt(prompt)
    calibration = fit_calibration(answers, folds, tuple(names))
    provenance = make_provenance(libraries=("torch", "transformers", "numpy"), inputs=inputs)
    calibrated = with_exits(sidecar, replace(exits, calibration=calibration))
    write_sidecar(folder, calibrated, provenance)
    return calibrated


def fit_calibration(answers: Sequence[Answers], folds: Iterable[int], targets: tuple[str, ...]) -> Calibration:
    """One curve per exit.

    Args:
        answers: one per text.
        folds: the fold of each text; a curve is the one that serves the folds it has not seen.
        targets: whose texts they are.
    """
    confidence = np.concatenate([one.confidence for one in answers])  # [P, E]
    agreement = np.concatenate([one.agreement for one in answers])
    fold = np.repeat(np.asarray(list(folds)), [len(one.confidence) for one in answers])
    curves = [choose_curve(confidence[:, e], agreement[:, e], fold)[0] for e in range(confidence.shape[1])]
    return Calibration(confidence=CONFIDENCE, curves=tuple(curves), targets=targets, num_positions=len(confidence))
