"""Calibrate a draft: fit the target's agreement with each exit as a function of confidence.

The texts are the target's own greedy texts, as in use: on other texts an exit agrees less often. The draft must not have been
trained on the prompts.

Shapes: N written tokens of one text, E exits, P positions of all texts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from perfmodel.acceptance.confidence_curves import choose_curve
from perfmodel.core.blocks import Block, Paragraph, Printable, Table
from perfmodel.core.disk import PathLike
from perfmodel.core.provenance import make_provenance
from perfmodel.core.units import Tokens, format_frac
from perfmodel.models.config_file import SIDECAR_NAME
from perfmodel.policies.policy import Confidence
from perfmodel.policies.sampling import GREEDY
from s2d.decoding.encode_prompts import EncodedPrompt, encode_prompts
from s2d.decoding.generate import Session, Settings
from s2d.decoding.pair import Pair, PairRequest, load_pair
from s2d.decoding.teacher_forced import teacher_forced_text
from s2d.loading.exits import DraftExits, find_exits, requested_exits, with_exits
from s2d.loading.load_model import load_tokenizer
from s2d.loading.model_folder import find_model
from s2d.loading.read_config import read_geometry
from s2d.loading.sidecar import Calibration, read_sidecar, write_sidecar
from s2d.model.finite import naming_prompt
from s2d.model.torch_device import use_device
from s2d.prompt_files.read_as import Form
from s2d.prompts.conversation import Prompt
from s2d.prompts.special_tokens import SpecialTokens, special_tokens_note
from s2d.training.requests import CalibrateDraftRequest, as_names

CONFIDENCE: Confidence = "max-prob"
NUM_FOLDS = 4
SHOWN_CONFIDENCES = (0.1, 0.3, 0.5, 0.7, 0.9)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExitAgreement:
    """Confidence of every exit along one text, and whether its token is the target's."""

    confidence: NDArray[np.float64]  # [N, E]
    agreement: NDArray[np.float64]  # [N, E], 0 or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedDraft(Printable):
    """A draft with its new calibration. `print` shows what s2d-train prints."""

    folder: Path
    exits: DraftExits
    """The exits with their new calibration."""

    def blocks(self, *, explain: bool = False) -> list[Block]:
        """The table of the curves and the file that was written."""
        assert self.exits.calibration is not None
        written = Paragraph(f"wrote {self.folder / SIDECAR_NAME}, {self.exits.label}")
        return [*calibration_blocks(self.exits.layers, self.exits.calibration), written]


def calibrate_draft(
    draft: PathLike,
    *,
    targets: PathLike | Sequence[PathLike],
    prompts: PathLike | None = None,
    exits: Sequence[int] | None = None,
    max_new_tokens: Tokens = 128,
    special_tokens: SpecialTokens = "parse",
    device: str = "cpu",
    prompt_format: Form = "auto",
    prompt_column: str | None = None,
    on_prompt: Callable[[str], None] = lambda name: None,
) -> CalibratedDraft:
    """Fit one confidence curve per exit over all targets, and write the curves into the draft's sidecar.

    Args:
        draft: a model folder, which gets an `s2d.json` if it has none, or a name of the reference family.
        targets: the models that it drafts for: folders, hub names, or names of the reference family.
        prompts: a file with prompts that the draft was not trained on. The calibration half of it is used. None takes the
            held-out prompts of the reference family.
        exits: exits of the draft; those of its sidecar, else its full depth, if None.
        max_new_tokens: tokens that each target writes after each prompt.
        special_tokens: whether the text of a special token in a prompt is this token (`parse`) or ordinary text (`text`).
        device: torch's name: `cpu`, `cuda`, `cuda:1`.
        prompt_format: how to read the file: by its content, or as plain text with one prompt per line or per file.
        prompt_column: column or key that holds the prompt; found by its name if None.
        on_prompt: called with the name of every finished prompt.

    Raises:
        BadFile: the prompts or the sidecar cannot be read, or the sidecar cannot be written.
        BadPolicy: the draft does not have the exits.
        Mismatch: a target has another tokenizer.
        UserInputError: no prompts for a target outside the reference family, or a prompt does not fit.

    Example:
        >>> print(s2d.calibrate_draft("my-draft", targets="my-target", prompts="prompts.jsonl"))  # doctest: +SKIP
    """
    request = CalibrateDraftRequest(
        draft=os.fspath(draft),
        targets=as_names(targets),
        prompts=None if prompts is None else Path(prompts),
        exits=None if exits is None else tuple(exits),
        max_new_tokens=max_new_tokens,
        special_tokens=special_tokens,
        device=device,
        prompt_format=prompt_format,
        prompt_column=prompt_column,
    )
    return calibrate(request, request.read_prompts(), on_prompt=on_prompt)


def calibrate(
    request: CalibrateDraftRequest,
    prompts: Sequence[Prompt] | Sequence[EncodedPrompt],
    *,
    on_prompt: Callable[[str], None] = lambda name: None,
) -> CalibratedDraft:
    """Calibrate a draft on prompts that are already read: see `calibrate_draft`.

    Args:
        request: the draft and its targets. Its file of prompts is not read.
        prompts: texts, or token ids.
        on_prompt: called with the name of every finished prompt.
    """
    use_device(request.device)
    folder, requested = find_model(request.draft), requested_exits(request.exits)
    sidecar = read_sidecar(folder)
    exits = find_exits(folder, read_geometry(folder).num_layers, requested, is_self=False)
    if exits.note is not None:
        _LOG.info(exits.note)
    if _are_texts(prompts) and (note := special_tokens_note(load_tokenizer(folder), prompts, request.special_tokens)):
        _LOG.info(note.removeprefix("note: "))
    agreements: list[ExitAgreement] = []
    folds: list[int] = []
    names: list[str] = []
    inputs: dict[str, str] = {}
    for target in request.targets:
        pair = load_pair(PairRequest(target=target, draft=str(folder), dtype="fp32", device=request.device, exits=requested))
        names.append(pair.target.geometry.name)
        inputs |= {f"target {names[-1]}": pair.target.sha256, "draft": pair.draft.sha256}
        encoded = _encode(pair, prompts, request)
        session = pair.session(max(len(prompt.token_ids) for prompt in encoded) + request.max_new_tokens)
        for number, prompt in enumerate(encoded):
            with naming_prompt(prompt.name):
                agreements.append(exit_agreement(pair, session, prompt, request.max_new_tokens))
            folds.append(number % NUM_FOLDS)
            on_prompt(prompt.name)
    calibrated = replace(exits, calibration=fit_calibration(agreements, folds, tuple(names)))
    provenance = make_provenance(libraries=("torch", "transformers", "numpy"), inputs=inputs)
    write_sidecar(folder, with_exits(sidecar, calibrated), provenance)
    return CalibratedDraft(folder=folder, exits=calibrated)


def _are_texts(prompts: Sequence[Prompt] | Sequence[EncodedPrompt]) -> TypeGuard[Sequence[Prompt]]:
    return isinstance(prompts[0], Prompt)


def _encode(
    pair: Pair, prompts: Sequence[Prompt] | Sequence[EncodedPrompt], request: CalibrateDraftRequest
) -> Sequence[EncodedPrompt]:
    if not _are_texts(prompts):
        return prompts  # type: ignore[return-value]
    return encode_prompts(pair, prompts, max_new_tokens=request.max_new_tokens, special_tokens=request.special_tokens)


def exit_agreement(pair: Pair, session: Session, prompt: EncodedPrompt, max_new_tokens: Tokens) -> ExitAgreement:
    """Agreement of the draft's exits with the greedy text that the target writes after one prompt."""
    settings = Settings(policy=None, sampling=GREEDY, max_new_tokens=max_new_tokens, eos_token_id=pair.eos_token_id)
    forced = teacher_forced_text(pair, session, prompt.token_ids, settings, CONFIDENCE)
    agreement = forced.draft_tokens.cpu() == torch.tensor(forced.written)[:, None]  # [N, E]
    confidence = forced.confidence.cpu().numpy().astype(np.float64)
    return ExitAgreement(confidence=confidence, agreement=agreement.numpy().astype(np.float64))


def fit_calibration(texts: Sequence[ExitAgreement], folds: Iterable[int], targets: tuple[str, ...]) -> Calibration:
    """One curve per exit.

    Args:
        texts: agreement along every text.
        folds: the fold of each text. The form of a curve is chosen by cross-validation over the folds.
        targets: names of the targets that wrote the texts.
    """
    confidence = np.concatenate([text.confidence for text in texts])  # [P, E]
    agreement = np.concatenate([text.agreement for text in texts])  # [P, E]
    fold = np.repeat(np.asarray(list(folds)), [len(text.confidence) for text in texts])  # [P]
    curves = [choose_curve(confidence[:, e], agreement[:, e], fold)[0] for e in range(confidence.shape[1])]
    return Calibration(confidence=CONFIDENCE, curves=tuple(curves), targets=targets, num_positions=len(confidence))


def calibration_blocks(exit_layers: Sequence[int], calibration: Calibration) -> list[Block]:
    """A table of the agreement that each curve predicts at a few confidences, and the source of the curves."""
    rows = [
        [f"exit {layer}", *(format_frac(curve(confidence)) if curve else "-" for confidence in SHOWN_CONFIDENCES)]
        for layer, curve in zip(exit_layers, calibration.curves, strict=True)
    ]
    headers = ["agreement", *(f"at {confidence:.1f}" for confidence in SHOWN_CONFIDENCES)]
    targets = ", ".join(calibration.targets)
    source = f"Fitted to {calibration.num_positions} positions of text by {targets}; confidence: {calibration.confidence}."
    return [Table(rows, headers), Paragraph(source)]
