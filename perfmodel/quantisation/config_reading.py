"""Read a model's config.json once: its name, its shapes and the format of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel.models.config_file import check_is_decoder, model_name, note_file_in_errors, read_config_file
from perfmodel.models.geometry import ModelGeometry
from perfmodel.models.hub import CONFIG, QUANTISATION_FILE
from perfmodel.models.model_config import config_note, geometry_from_config
from perfmodel.quantisation.quantisation_block import Quantisation
from perfmodel.quantisation.quantised_config import check_same_weight_bytes, find_quantisation, stored_format
from perfmodel.quantisation.weight_format import WeightFormat

FetchQuantisationFile = Callable[[], Path | None]
"""Downloads the model's hf_quant_config.json; returns None if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReading:
    """The content of a config.json. Shapes and weight format are derived from it without reading the file again."""

    path: Path
    config: dict[str, Any]
    name: str
    """The model's name."""
    source: str
    """Origin of the config, for the geometry."""

    def geometry(self) -> ModelGeometry:
        """The model's shapes.

        Raises:
            UserInputError: the model is not a decoder, the latency law does not cover it, or a size is wrong.
            UnknownName: the architecture is not in the table.
        """
        with note_file_in_errors(self.path):
            check_is_decoder(self.path, self.config, self.name)
            return geometry_from_config(self.config, self.name, self.source)

    def note(self) -> str | None:
        """A note that only the text decoder is priced, or that sizes are defaults; None if neither is the case."""
        return config_note(self.config, self.name)

    def quantisation(self) -> Quantisation | None:
        """The quantisation block in the config or in the separate file next to it; None if the weights are not quantised.

        Raises:
            BadFile: the separate file is not a JSON object.
            UserInputError: the block is not an object, or its method is not a text.
        """
        return find_quantisation(self.config, self._separate_file(None), self.name)

    def stored_format(self, model: ModelGeometry, fetch: FetchQuantisationFile | None = None) -> WeightFormat | None:
        """The format in which the files store the weights; None if the weights are not quantised.

        Args:
            model: the model's shapes.
            fetch: downloads hf_quant_config.json if the config has no quantisation block; None for local models.

        Raises:
            BadFile: hf_quant_config.json is not a JSON object.
            UserInputError: the format is unknown, or the two files contradict each other.
        """
        separate_file = self._separate_file(fetch)
        with note_file_in_errors(self.path):
            quantisation = find_quantisation(self.config, separate_file, model.name)
            if quantisation is None:
                return None
            stored = stored_format(quantisation, model)
            check_same_weight_bytes(stored, separate_file, model)
        return stored

    def _separate_file(self, fetch: FetchQuantisationFile | None) -> dict[str, Any] | None:
        """The content of hf_quant_config.json, downloaded only if the config itself has no quantisation block."""
        path: Path | None = self.path.with_name(QUANTISATION_FILE)
        if path is not None and not path.is_file():
            path = fetch() if fetch is not None and find_quantisation(self.config, None, self.name) is None else None
        return None if path is None else read_config_file(path)


def read_model_config(path: Path, repository: str | None = None) -> ConfigReading:
    """Read a config.json.

    Args:
        path: the file.
        repository: `org/name` of the hub repository that the file is from; None for a local model.

    Raises:
        BadFile: the file is missing, or it is not a JSON object with unique keys.
    """
    config = read_config_file(path)
    name = repository.rpartition("/")[2] if repository else model_name(path, config)
    origin = f"{repository} on the Hugging Face hub" if repository else name
    return ConfigReading(path=path, config=config, name=name, source=f"{CONFIG} of {origin}")
