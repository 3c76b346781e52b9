"""Resolve a draft: the names under which a trace may list it, or its shapes and weight format."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from calibrate.inputs.target import config_path, resolve_target
from perfmodel.core.errors import UnknownName
from perfmodel.core.units import Tokens
from perfmodel.models.config_file import check_is_decoder, folder_model_name, model_name, note_file_in_errors, read_config_file
from perfmodel.models.find_model import find_draft
from perfmodel.models.geometry import DraftGeometry, with_reduced_head
from perfmodel.quantisation.weight_format import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftName:
    """A draft of a plan. Its shapes come from the trace."""

    text: str
    """The request: a name, an alias, a folder, or `self`."""
    known_name: str | None
    """Its name in the table of known drafts; None if it is not there."""

    @property
    def names(self) -> tuple[str | None, ...]:
        """Every name under which a trace may list it."""
        return (self.text, self.known_name, folder_model_name(Path(self.text)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A draft whose shapes are needed, not only its name."""

    geometry: DraftGeometry
    stored: WeightFormat | None
    """How its files store the weights. None: plain, known by name alone, or not read."""


def resolve_draft_name(text: str) -> DraftName:
    """The names of a draft, which need not be on this machine.

    Raises:
        UserInputError: a path to an embedding model, a reward model, or a head such as EAGLE's.
        BadFile: the config at that path cannot be read.
    """
    path = config_path(text)
    if path is not None and path.is_file():
        config = read_config_file(path)
        with note_file_in_errors(path):
            check_is_decoder(path, config, model_name(path, config))
    try:
        return DraftName(text=text, known_name=find_draft(text).model.name)
    except UnknownName:
        return DraftName(text=text, known_name=None)


def resolve_draft(text: str, draft_vocab: Tokens | None, *, reads_format: bool) -> Draft:
    """A known nested draft, or any model as a draft with one exit after its last layer.

    Args:
        text: a draft's name, or anything that `resolve_target` takes.
        draft_vocab: tokens in its LM head; None for the whole vocabulary.
        reads_format: whether to read how its files store the weights.

    Raises:
        UserInputError: anything that `resolve_target` raises, or more head tokens than the vocabulary has.
    """
    try:
        geometry, stored = find_draft(text), None
    except UnknownName:
        model = resolve_target(text, reads_format=reads_format)
        geometry = DraftGeometry(kind="separate", model=model.geometry, exit_layers=(model.geometry.num_layers,))
        stored = model.stored
    return Draft(geometry=replace(geometry, model=with_reduced_head(geometry.model, draft_vocab)), stored=stored)
